"""All in a model folder that can change an answer is part of the VLM's identity, is checked when it
is loaded, or has no effect.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_families
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import SEEN
from torch import Tensor

from mmedit.adapters.blip2 import Blip2Adapter
from mmedit.cases import Example
from mmedit.convert.language import language_config
from mmedit.errors import ImageError, MmeditError, ModelError, UnknownNameError
from mmedit.vlm.identity import Identity
from mmedit.vlm.loading import load_vlm, resolve_vlm
from mmedit.vlm.network import NetworkVLM

pytestmark = pytest.mark.filterwarnings("ignore:The following device_map keys do not match")


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny BLIP-2, which a test may change."""
    return shutil.copytree(tiny_folder, tmp_path / "model")


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_families.save_family("llava", tmp_path_factory.mktemp("llava"))


def rewrite(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    described = json.loads(file.read_text(encoding="utf-8"))
    change(described)
    file.write_text(json.dumps(described), encoding="utf-8")


def reweigh(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def refusal(folder: Path) -> str:
    """Return why a folder is not loaded: an error of one line that names it."""
    with pytest.raises(ModelError) as raised:
        load_vlm(folder)
    message = str(raised.value)
    assert message.startswith(str(folder))
    assert "\n" not in message
    return message


# Images


def test_a_picture_that_an_image_processor_refuses_is_an_error_that_names_the_file(tmp_path: Path):
    vlm = load_vlm(tiny_families.save_family("qwen2_vl", tmp_path / "model"))
    strip = tmp_path / "strip.png"
    Image.new("RGB", (1005, 5)).save(strip)
    with pytest.raises(ImageError, match=rf"^{strip} has 1005 x 5 pixels, and .* refuses it"):
        vlm.predict([Example(prompt="what color is it?", target="red", image=strip)])


def test_so_is_one_that_is_decoded_when_its_pixels_are_needed(tiny_vlm, tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise ValueError("not\nsuch a picture")

    monkeypatch.setattr(Blip2Adapter, "prepare", refuse)
    picture = tmp_path / "picture.png"
    Image.new("RGB", (8, 9)).save(picture)
    with pytest.raises(ImageError, match=rf"^{picture} has 8 x 9 .*: not such a picture. Crop"):
        tiny_vlm.predict([Example(prompt="what color is it?", target="red", image=picture)])


# Processors


@pytest.mark.parametrize("family", ["llava", "llava_next", "llava_onevision", "fast_vlm", "photo"])
def test_counts_that_a_processor_lacks_follow_from_the_network(family: str, tmp_path: Path):
    whole = tiny_families.save_family(family, tmp_path / "whole")
    wanted = load_vlm(whole).predict(SEEN).logits
    counts = {"num_additional_image_tokens", "patch_size", "num_image_tokens"}
    counts |= {"vision_feature_select_strategy", "vision_aspect_ratio"}
    settings = json.loads((whole / "processor_config.json").read_text())
    lacking = sorted(counts & settings.keys())
    assert lacking
    for name in lacking:
        rest = {key: value for key, value in settings.items() if key != name}
        (whole / "processor_config.json").write_text(json.dumps(rest))
        assert torch.equal(load_vlm(whole).predict(SEEN).logits, wanted)


def test_a_processor_that_counts_otherwise_than_the_network_is_refused(tmp_path: Path):
    folder = tiny_families.save_family("internvl", tmp_path)
    rewrite(folder / "processor_config.json", lambda s: s.update(image_seq_length=5))
    assert "its processor puts 25 tokens for an image into the text, and its" in refusal(folder)


def test_a_fastvlm_whose_processor_counts_otherwise_than_its_tower_is_refused(tmp_path: Path):
    folder = tiny_families.save_family("fast_vlm", tmp_path)
    rewrite(folder / "processor_config.json", lambda s: s.update(patch_size=16))
    assert "its processor puts 4 tokens for an image into the text, and its n" in refusal(folder)


def test_a_processor_for_another_size_of_images_is_refused(folder: Path):
    def resize(settings: dict[str, Any]) -> None:
        settings["image_processor"]["size"] = {"height": 42, "width": 42}

    rewrite(folder / "processor_config.json", resize)
    assert "its network cannot read the images that its processor makes" in refusal(folder)


@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "internvl"])
def test_a_chat_template_in_the_tokenizer_alone_is_used(family: str, tmp_path: Path):
    folder = tiny_families.save_family(family, tmp_path)
    wanted = load_vlm(folder).predict(SEEN).logits
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    assert "neither the processor nor the tokenizer of this model has a chat te" in refusal(folder)
    rewrite(folder / "tokenizer_config.json", lambda s: s.update(chat_template=template))
    assert torch.equal(load_vlm(folder).predict(SEEN).logits, wanted)


@pytest.mark.parametrize("name", ["processor_config.json", "tokenizer.json"])
def test_a_folder_without_a_part_of_its_processor_is_refused(folder: Path, name: str):
    for file in [folder / name, *folder.glob("tokenizer*" if "token" in name else "nothing")]:
        file.unlink(missing_ok=True)
    refusal(folder)


def test_a_tokenizer_without_its_vocabulary_is_refused(llava: Path, tmp_path: Path):
    folder = shutil.copytree(llava, tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    assert "it has no tokenizer: expected tokenizer.json, or the files that" in refusal(folder)


@pytest.fixture
def with_tokenizer_model(folder: Path, monkeypatch) -> Path:
    """A folder as Vicuna's, where sentencepiece is not installed."""
    monkeypatch.setattr("mmedit.adapters.checkpoint.find_spec", lambda name: None)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").touch()
    return folder


def test_a_tokenizer_that_needs_sentencepiece_is_an_error_that_names_the_extra(
    with_tokenizer_model: Path,
):
    wanted = (
        "its tokenizer is tokenizer.model, without tokenizer.json; reading it needs the packages "
        "sentencepiece and protobuf (not installed: sentencepiece, protobuf): "
        "pip install 'mmedit[convert]'"
    )
    assert refusal(with_tokenizer_model) == f"{with_tokenizer_model} cannot be loaded: {wanted}"
    config = {"model_type": "llama"}
    (with_tokenizer_model / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError) as raised:
        language_config(str(with_tokenizer_model))
    assert str(raised.value) == f"--language {with_tokenizer_model} cannot be used: {wanted}"


# Adapters beside the weights, and other weights that nothing reads


def test_an_adapter_beside_the_weights_is_refused(folder: Path):
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    message = refusal(folder)
    assert "an adapter (LoRA) lies beside its weights (adapter_config.json)" in message
    assert "merge_and_unload().save_pretrained" in message


def test_a_folder_of_an_adapter_alone_says_so(tmp_path: Path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"holds an adapter \(LoRA\) alone, and no model. Merge"):
        resolve_vlm(tmp_path)


def test_weights_of_an_adapter_among_the_weights_are_refused(folder: Path):
    site = "language_model.model.decoder.layers.0.self_attn.q_proj"
    names = [f"{site}.lora_{part}.default.weight" for part in "AB"]
    reweigh(folder, lambda weights: weights.update({name: torch.ones(2, 2) for name in names}))
    assert f"hold 2 weights of an adapter (LoRA), for example {names[0]}" in refusal(folder)


def test_a_weight_that_a_module_of_the_network_does_not_read_is_refused(folder: Path):
    name = "qformer.layernorm.bias"
    other = "language_model.lm_head.bias"
    reweigh(folder, lambda weights: weights.update({other: torch.ones(3), name: weights[name]}))
    assert f"does not read, for example {other}; config.json is not that of" in refusal(folder)


def test_weights_quantised_by_a_program_that_mmedit_does_not_know_are_refused(folder: Path):
    awq = {"quant_method": "awq", "bits": 4}
    rewrite(folder / "config.json", lambda config: config.update(quantization_config=awq))
    assert "its weights are quantised by 'awq'; expected plain weights or bits" in refusal(folder)


# Weights that are not finite


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(folder: Path, value: float):
    reweigh(folder, lambda weights: weights["query_tokens"][0, 0, :1].fill_(value))
    assert "1 of its weights hold NaN or infinity: query_tokens; expected fi" in refusal(folder)


def test_weights_too_large_for_half_precision_are_refused(folder: Path):
    reweigh(folder, lambda weights: weights["language_projection.bias"].fill_(1e6))
    assert load_vlm(folder, dtype="bfloat16").name
    with pytest.raises(ModelError, match="too large for float16, load it with dtype=bfloat16"):
        load_vlm(folder, dtype="float16")


def test_offloaded_weights_that_are_not_finite_are_refused_when_they_are_read(folder: Path):
    reweigh(folder, lambda weights: weights["language_projection.bias"].fill_(float("nan")))
    vlm = on_disk(folder)
    with pytest.raises(ModelError, match=r"NaN or infinity: language_projection\.bias;"):
        _ = vlm.identity


def on_disk(folder: Path) -> NetworkVLM:
    return load_vlm(
        folder, device_map={"": "disk"}, offload_folder=folder.parent / f"{folder.name}-off"
    )


# The identity


def test_a_vlm_offloaded_to_disk_has_the_identity_of_one_in_memory(folder: Path, tmp_path: Path):
    whole, parted = load_vlm(folder), on_disk(folder)
    assert parted.identity == whole.identity
    other = shutil.copytree(folder, tmp_path / "other")
    reweigh(other, lambda weights: weights["query_tokens"].add_(1))
    assert on_disk(other).identity.difference(whole.identity) == "weights"


def of_config(settings: dict[str, Any]) -> None:
    settings["text_config"]["rope_parameters"] = {"rope_type": "default", "rope_theta": 5.0}


def of_ends(settings: dict[str, Any]) -> None:
    settings["eos_token_id"] = [2, 7]


def of_stop_strings(settings: dict[str, Any]) -> None:
    settings["stop_strings"] = ["###"]


def of_pixels(settings: dict[str, Any]) -> None:
    settings["image_processor"]["image_mean"] = [0.1, 0.2, 0.3]


def of_crop(settings: dict[str, Any]) -> None:
    settings["image_processor"]["do_center_crop"] = False


def of_merges(settings: dict[str, Any]) -> None:
    settings["model"]["merges"].pop()


def of_two_words(settings: dict[str, Any]) -> None:
    vocabulary = settings["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]


def of_words(settings: dict[str, Any]) -> None:
    settings["normalizer"] = {"type": "Lowercase"}


@pytest.mark.parametrize(
    ("name", "change", "part"),
    [
        ("config.json", of_config, "config"),
        ("generation_config.json", of_ends, "processing"),
        ("generation_config.json", of_stop_strings, "processing"),
        ("processor_config.json", of_pixels, "processing"),
        ("processor_config.json", of_crop, "processing"),
        ("tokenizer.json", of_merges, "processing"),
        ("tokenizer.json", of_words, "processing"),
    ],
)
def test_what_changes_answers_changes_the_identity(
    llava: Path, tmp_path: Path, name: str, change: Callable[[dict[str, Any]], None], part: str
):
    folder = shutil.copytree(llava, tmp_path / "model")
    rewrite(folder / name, change)
    before, after = load_vlm(llava).identity, load_vlm(folder).identity
    assert after.difference(before) == part
    assert after.hash != before.hash


def test_a_chat_template_changes_the_identity(llava: Path, tmp_path: Path):
    folder = shutil.copytree(llava, tmp_path / "model")
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("ASSISTANT:", "Assistant:"))
    assert load_vlm(folder).identity.difference(load_vlm(llava).identity) == "processing"


def test_the_tokenizer_of_the_qformer_is_part_of_the_identity(tmp_path: Path):
    folder = tiny_families.save_family("instructblip", tmp_path)
    before = load_vlm(folder).identity
    (file,) = (folder / "qformer_tokenizer").glob("tokenizer.json")
    rewrite(file, of_two_words)
    assert load_vlm(folder).identity.difference(before) == "processing"


def test_what_has_no_effect_does_not_change_the_identity(llava: Path, tmp_path: Path):
    folder = shutil.copytree(llava, tmp_path / "elsewhere")
    rewrite(folder / "config.json", lambda config: config.update(transformers_version="4.1"))
    rewrite(folder / "tokenizer_config.json", lambda s: s.update(model_max_length=7))
    rewrite(folder / "processor_config.json", lambda s: s.update(processor_class="LlavaProcessor"))
    (folder / "README.md").write_text("A model.")
    first, second = load_vlm(llava), load_vlm(folder)
    assert first.identity == second.identity
    assert first.identity.hash == second.identity.hash
    assert torch.equal(first.predict(SEEN).logits, second.predict(SEEN).logits)


def test_identities_are_compared_as_far_as_both_tell():
    now = Identity("blip-2", "c", "w", "1-p")
    assert now.difference(Identity("blip-2", "c", "w")) is None
    assert now.difference(now._replace(processing="2-q")) is None
    assert now.difference(now._replace(processing="1-q")) == "processing"
    assert now.difference(Identity("blip-2", "c", "x")) == "weights"
    assert now.difference(Identity("llava", "d", "x")) == "family"


# Folders that cannot be read, and options


@pytest.mark.parametrize(
    "name", ["generation_config.json", "processor_config.json", "tokenizer_config.json"]
)
@pytest.mark.parametrize("content", ["{", "[1]", "\x80"])
def test_settings_that_are_not_json_are_refused_by_name(folder: Path, name: str, content: str):
    (folder / name).write_text(content, encoding="latin-1")
    assert name in refusal(folder)


def test_a_locked_folder_is_an_error(tmp_path: Path, monkeypatch):
    def lock(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", lock)
    with pytest.raises(ModelError, match=rf"^{tmp_path} cannot be read: Permission denied; expect"):
        resolve_vlm(tmp_path)


@pytest.mark.parametrize("name", ["a" * 5000, "a/" + "b" * 5000, "x\0y"])
def test_a_name_that_cannot_be_a_path_is_an_error_in_a_few_words(name: str):
    with pytest.raises(MmeditError) as raised:
        load_vlm(name)
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize(
    ("option", "error", "match"),
    [
        ({"dtype": "bf16"}, UnknownNameError, "no dtype named 'bf16'. Did you mean 'bfloat16'?"),
        ({"adapter": dict}, ModelError, "expected a name (blip2, "),
        ({"adapter": 5}, ModelError, "the adapter is 5; expected a name (blip2, "),
        ({"sites": {"brain": ("a",)}}, UnknownNameError, "no stage of a VLM named 'brain'"),
    ],
)
def test_an_option_of_another_kind_is_an_error(
    tiny_folder: Path, option: dict[str, Any], error: type[MmeditError], match: str
):
    with pytest.raises(error) as raised:
        load_vlm(tiny_folder, **option)
    assert match in str(raised.value)
