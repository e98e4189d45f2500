"""A transformers folder of an edited VLM: same answers, ordinary files, nothing claimed unseen."""

from __future__ import annotations

import errno
import gc
import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import exports
import pytest
import tiny
import torch
from exports import LOCALITY, REQUEST
from safetensors import safe_open
from transformers import AutoModelForImageTextToText, GenerationConfig

from mmedit.adapters.blip2 import Blip2Adapter
from mmedit.deltas import Dense, LowRank
from mmedit.errors import (
    ConfigError,
    EditError,
    LostEditError,
    ModelError,
    RunError,
    SiteError,
    UnknownNameError,
)
from mmedit.export import folder as folder_module
from mmedit.export import places, shards
from mmedit.export.folder import FolderForm, export_transformers
from mmedit.vlm.interface import VLM
from mmedit.vlm.loading import load_vlm
from mmedit.vlm.network import NetworkVLM

ASKED = (REQUEST, *LOCALITY)
SMALL = FolderForm(check_in=("float32",))
"""Opened in its own dtype alone."""


def logits(vlm: VLM) -> torch.Tensor:
    predictions = vlm.predict(ASKED)
    return predictions.logits[predictions.is_answer]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return found


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exports.save_fragile(tmp_path_factory.mktemp("fragile") / "vlm")


@pytest.mark.parametrize(
    ("family", "stage"),
    [
        ("blip2", "language"),
        ("llava", "bridge"),
        ("qwen2_5_vl", "vision"),
        ("qwen3_vl", "language"),
        ("fast_vlm", "vision"),
        ("photo", "language"),
    ],
)
def test_the_folder_answers_as_the_edited_vlm(family: str, stage: Any, tmp_path: Path):
    vlm = load_vlm(exports.save_tiny(family, tmp_path / "vlm"))
    deltas = exports.low_rank(vlm, stage)
    edited = exports.with_edit(vlm, deltas)
    edited = exports.with_edit(edited, exports.dense(vlm, stage), name="second")
    before = logits(vlm)

    export = export_transformers(lambda: edited, tmp_path / "out", LOCALITY, form=SMALL)

    opened = load_vlm(tmp_path / "out")
    assert export.is_kept
    assert export.checks[0].largest_logit_difference < 1e-4
    assert (logits(opened) - logits(edited)).abs().max() < 1e-4
    assert (logits(opened) - before).abs().max() > 0.1
    assert opened.generate(ASKED, max_new_tokens=6) == edited.generate(ASKED, max_new_tokens=6)
    assert torch.equal(logits(vlm), before)
    assert opened.edits == ()


def test_plain_transformers_reads_every_weight_and_the_edited_ones_are_their_sum(
    tiny_vlm: NetworkVLM, tmp_path: Path
):
    deltas = exports.low_rank(tiny_vlm)
    edited = exports.with_edit(tiny_vlm, deltas)
    export_transformers(lambda: edited, tmp_path / "out", form=SMALL)
    loaded: Any = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    network, loading = loaded
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    theirs = tiny_vlm.adapter.network.state_dict()
    for name, weight in network.state_dict().items():
        delta = deltas.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        expected = theirs[name] if delta is None else theirs[name] + delta.weight()
        assert torch.equal(weight, expected), name


def test_other_files_are_those_of_the_checkpoint(tmp_path: Path):
    source = exports.save_tiny("llava", tmp_path / "vlm")
    settings = json.loads((source / "generation_config.json").read_text())
    settings |= {"do_sample": True, "temperature": 0.6, "repetition_penalty": 1.2}
    (source / "generation_config.json").write_text(json.dumps(settings))
    for name in ("LICENSE", "README.md", "notes.pdf"):
        (source / name).write_text("text")
    edited = exports.with_edit(load_vlm(source), exports.low_rank(load_vlm(source)))

    export_transformers(lambda: edited, tmp_path / "out", form=SMALL)

    there = {file.name for file in (tmp_path / "out").iterdir()}
    kept = {file.name for file in source.iterdir()} - {"README.md", "notes.pdf"}
    assert there == kept | {"mmedit-export.json"}
    for name in kept - {"config.json", "model.safetensors"}:
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes(), name
    assert GenerationConfig.from_pretrained(tmp_path / "out").repetition_penalty == 1.2
    assert exports.config_of(tmp_path / "out") == exports.config_of(source)


def test_a_vlm_made_by_hand_gets_its_files_from_the_loaded_objects(tmp_path: Path):
    processor = tiny.build_processor()
    vlm = NetworkVLM(Blip2Adapter(tiny.build_network(processor), processor))
    edited = exports.with_edit(vlm, exports.low_rank(vlm))
    export_transformers(lambda: edited, tmp_path / "out", form=SMALL)
    opened = load_vlm(tmp_path / "out")
    text = [tiny.TEXT_ONLY]  # its image processor is another class once it is loaded
    difference = opened.predict(text).logits - edited.predict(text).logits
    assert difference.abs().max() < 1e-5
    assert opened.frozen.ends == vlm.frozen.ends


def test_no_shard_is_larger_than_asked_and_the_index_names_every_tensor(
    tiny_vlm: NetworkVLM, tmp_path: Path
):
    edited = exports.with_edit(tiny_vlm, exports.dense(tiny_vlm))
    form = FolderForm(shard_size="100KB", check_in=("float32",))
    export_transformers(lambda: edited, tmp_path / "out", form=form)
    files = sorted(file.name for file in (tmp_path / "out").glob("*.safetensors"))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(files) > 2
    assert set(index["weight_map"].values()) == set(files)
    assert index["weight_map"].keys() == tensors(tmp_path / "out").keys()
    for name in files:
        with safe_open(tmp_path / "out" / name, framework="pt") as opened:
            held = [opened.get_tensor(key) for key in opened.keys()]  # noqa: SIM118
        assert sum(tensor.nbytes for tensor in held) <= 100_000


def test_the_edited_vlm_is_let_go_before_the_folder_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source = exports.save_tiny("blip2", tmp_path / "vlm")
    networks: list[Any] = []

    def load() -> VLM:
        vlm = load_vlm(source)
        networks.append(weakref.ref(vlm.adapter.network))
        return exports.with_edit(vlm, exports.low_rank(vlm))

    def opening(*args: Any, **kwargs: Any) -> NetworkVLM:
        gc.collect()
        assert [network() for network in networks] == [None] * len(networks)
        vlm = load_vlm(*args, **kwargs)
        networks.append(weakref.ref(vlm.adapter.network))
        return vlm

    monkeypatch.setattr(folder_module, "load_vlm", opening)
    export = export_transformers(load, tmp_path / "out")
    assert [check.opened_in for check in export.checks] == ["float32", "bfloat16"]
    assert len(networks) == 3


def test_weights_that_were_offloaded_to_disk_are_read_back(tmp_path: Path):
    source = exports.save_tiny("llava", tmp_path / "vlm")
    size = sum(weight.nbytes for weight in tensors(source).values())
    limits: dict[int | str, int | str] = {"cpu": f"{size // 2000}KB"}
    vlm = load_vlm(source, max_memory=limits, offload_folder=tmp_path / "spare")
    assert any(weight.is_meta for weight in vlm.adapter.network.parameters())
    edited = exports.with_edit(vlm, exports.low_rank(vlm))
    export = export_transformers(lambda: edited, tmp_path / "out", LOCALITY, form=SMALL)
    assert export.is_kept
    whole = load_vlm(source)
    expected = logits(exports.with_edit(whole, exports.low_rank(whole)))
    assert (logits(load_vlm(tmp_path / "out")) - expected).abs().max() < 1e-4


def test_an_edit_that_half_precision_rounds_away_is_refused_with_advice(
    fragile: Path, tmp_path: Path
):
    vlm = load_vlm(fragile)
    edited = exports.fragile_edit(vlm)
    form = FolderForm(dtype="bfloat16")
    with pytest.raises(
        LostEditError, match=r"lost the edit and was removed.*--keep-float32"
    ) as lost:
        export_transformers(lambda: edited, tmp_path / "out", form=form)
    assert list(tmp_path.iterdir()) == []
    report = lost.value.report
    assert report.stored["rounding"] == 1.0
    assert not report.is_kept
    [one] = report.checks[0].lost
    assert one.expected.startswith(edited.generate([REQUEST], max_new_tokens=4)[0])
    assert one.found != one.expected


def test_an_export_that_lost_its_edit_is_kept_only_on_demand_and_says_so(
    fragile: Path, tmp_path: Path
):
    edited = exports.fragile_edit(load_vlm(fragile))
    form = FolderForm(dtype="bfloat16")
    export = export_transformers(lambda: edited, tmp_path / "out", form=form, allow_lost=True)
    assert not export.is_kept
    report = json.loads((tmp_path / "out" / "mmedit-export.json").read_text())
    assert report["is_kept"] is False
    assert report["checks"][0]["lost"][0]["prompt"] == REQUEST.prompt


def test_edited_weights_in_float32_keep_what_half_precision_loses(fragile: Path, tmp_path: Path):
    edited = exports.fragile_edit(load_vlm(fragile))
    form = FolderForm(dtype="bfloat16", keep_float32=True)
    export = export_transformers(lambda: edited, tmp_path / "out", LOCALITY, form=form)
    stored = tensors(tmp_path / "out")
    wide = {name for name, tensor in stored.items() if tensor.dtype == torch.float32}
    assert wide == {f"{exports.FRAGILE_SITE}.weight"}
    assert exports.config_of(tmp_path / "out")["dtype"] == "float32"
    network = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    assert {weight.dtype for weight in network.parameters()} == {torch.float32}
    assert export.is_kept
    assert export.checks[0].largest_logit_difference < 1e-3


def test_a_folder_in_float32_tells_that_bfloat16_would_lose_the_edit(fragile: Path, tmp_path: Path):
    edited = exports.fragile_edit(load_vlm(fragile))
    export = export_transformers(lambda: edited, tmp_path / "out")
    own, half = export.checks
    assert (own.opened_in, half.opened_in) == ("float32", "bfloat16")
    assert own.is_kept
    assert len(half.lost) == 1


def test_float16_keeps_the_parts_that_transformers_opens_in_float32(
    tiny_vlm: NetworkVLM, tmp_path: Path
):
    edited = exports.with_edit(tiny_vlm, exports.low_rank(tiny_vlm))
    form = FolderForm(dtype="float16")
    export_transformers(lambda: edited, tmp_path / "out", form=form, allow_lost=True)
    stored = tensors(tmp_path / "out")
    wide = {name.split(".")[0] for name, tensor in stored.items() if tensor.dtype == torch.float32}
    assert wide == {"qformer", "query_tokens"}


def test_a_weight_that_two_modules_share_is_not_folded(tmp_path: Path):
    vlm = load_vlm(exports.save_tiny("qwen3_vl", tmp_path / "vlm"))
    edited = exports.with_edit(vlm, {"lm_head": Dense(torch.ones(vlm.shape("lm_head")))})
    with pytest.raises(SiteError, match=r"lm_head shares its weight with .*embed_tokens.*to peft"):
        export_transformers(lambda: edited, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_nothing_behind(
    tiny_vlm: NetworkVLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    edited = exports.with_edit(tiny_vlm, exports.low_rank(tiny_vlm))
    monkeypatch.setattr(shards, "save_file", full_disk)
    with pytest.raises(RunError, match=r"cannot write .*No space left on device; nothing"):
        export_transformers(lambda: edited, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_found_before_a_weight_is_written(
    tiny_vlm: NetworkVLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    edited = exports.with_edit(tiny_vlm, exports.low_rank(tiny_vlm))
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(places.shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(shards, "save_file", lambda *_, **__: pytest.fail("a file was written"))
    with pytest.raises(RunError, match=r"the export takes .* MB, and .* has 0\.0 MB free"):
        export_transformers(lambda: edited, tmp_path / "out")


def test_a_folder_that_holds_something_is_refused_before_the_vlm_is_loaded(tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match="exists already"):
        export_transformers(lambda: pytest.fail("loaded"), tmp_path)
    assert (tmp_path / "file").read_text() == "mine"


def test_an_empty_folder_gives_way(tiny_vlm: NetworkVLM, tmp_path: Path):
    edited = exports.with_edit(tiny_vlm, exports.low_rank(tiny_vlm))
    export_transformers(lambda: edited, tmp_path, form=SMALL)
    assert (tmp_path / "model.safetensors").is_file()


def test_a_vlm_without_an_edit_of_weights_is_refused(tiny_vlm: NetworkVLM, tmp_path: Path):
    with pytest.raises(EditError, match="holds no edit"):
        export_transformers(lambda: tiny_vlm, tmp_path / "out")
    site = tiny_vlm.sites("language")[0]
    out, in_ = tiny_vlm.shape(site)
    separate = tiny_vlm.with_deltas({site: LowRank(torch.ones(2, 1, out), torch.ones(2, 1, in_))})
    with pytest.raises(EditError, match="separate edits"):
        export_transformers(lambda: separate, tmp_path / "out", LOCALITY)


def test_a_wrapper_is_refused_with_what_serves_it(vlm: NetworkVLM, tmp_path: Path):
    from mmedit.config import load_editor

    edited = load_editor("ike", vlm, k=0).apply(vlm, [REQUEST])
    with pytest.raises(EditError, match=r"made by IKE.*mmedit serve --edit"):
        export_transformers(lambda: edited, tmp_path / "out")


def test_quantised_weights_are_refused(
    tiny_vlm: NetworkVLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    edited = exports.with_edit(tiny_vlm, exports.low_rank(tiny_vlm))
    config = tiny_vlm.adapter.network.config
    monkeypatch.setattr(config, "quantization_config", {"load_in_4bit": True}, raising=False)
    with pytest.raises(EditError, match=r"are quantised.*--to peft"):
        export_transformers(lambda: edited, tmp_path / "out")


def test_settings_that_make_no_sense_are_errors(tiny_vlm: NetworkVLM, tmp_path: Path):
    with pytest.raises(UnknownNameError, match="no dtype of an export named 'bfloat61'"):
        FolderForm(dtype="bfloat61")
    with pytest.raises(ConfigError, match="--shard-size is '5 gigs'"):
        FolderForm(shard_size="5 gigs")
    edited = exports.with_edit(tiny_vlm, exports.low_rank(tiny_vlm))
    with pytest.raises(ConfigError, match="the dtype is float32; give --dtype bfloat16"):
        export_transformers(lambda: edited, tmp_path / "out", form=FolderForm(keep_float32=True))


def test_the_base_model_stays_as_it_was(tiny_vlm: NetworkVLM, tmp_path: Path):
    edited = exports.with_edit(tiny_vlm, exports.dense(tiny_vlm))
    network = tiny_vlm.adapter.network
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    config = network.config.to_dict()
    export_transformers(lambda: edited, tmp_path / "out", form=SMALL)
    for name, weight in network.state_dict().items():
        assert torch.equal(weight, before[name]), name
    assert network.config.to_dict() == config


def test_tensors_that_are_one_in_the_files_are_never_cut_apart(
    tiny_vlm: NetworkVLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first, *_, last = (f"{site}.weight" for site in tiny_vlm.sites("language")[::2])

    def joined(_: Any, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if not state.keys() >= {first, last}:
            return state
        rest = {name: tensor for name, tensor in state.items() if name not in (first, last)}
        return {**rest, "joined": torch.cat([state[first], state[last]])}

    monkeypatch.setattr(shards, "revert_weight_conversion", joined)
    edited = exports.with_edit(tiny_vlm, exports.low_rank(tiny_vlm))
    form = FolderForm(shard_size="20KB")
    with pytest.raises(ModelError, match="choose a larger --shard-size"):
        export_transformers(lambda: edited, tmp_path / "out", form=form)
    assert not (tmp_path / "out").exists()
