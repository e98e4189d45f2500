"""The VLM photo from its parts: names, merging, and the folder that results."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import tiny
import torch
from closeness import assert_close
from torch import Tensor

pytest.importorskip("gguf", reason="gguf is not installed (pip install mmedit[photo])")
pytest.importorskip("timm", reason="timm is not installed (pip install mmedit[photo])")

import tiny_photo

from mmedit.cases import Example
from mmedit.config import named_vlms
from mmedit.convert import photo
from mmedit.convert.photo import PhotoParts
from mmedit.errors import ModelError
from mmedit.vlm.loading import load_vlm


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> PhotoParts:
    return tiny_photo.write_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def folder(parts: PhotoParts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("photo")
    photo.assemble(parts, made)
    return made


@pytest.fixture(scope="module")
def network(parts: PhotoParts) -> photo.FastVlmForConditionalGeneration:
    """The network before anything trained is merged. No test may change it."""
    config, language = photo.read_language_model(parts.language)
    network = photo.build_network(config, 4)
    photo.load_parts(network, photo.read_tower(parts.tower), language)
    return network


# The tower's names


def test_the_released_names_of_the_tower_become_those_of_timm():
    released, expected = tiny_photo.released_tower()
    state = photo.tower_state(released)
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    "name", ["_blocks.16._bn0.weight", "_blocks.0._expand_conv.weight", "_blocks.x", "stem.weight"]
)
def test_a_weight_that_the_tower_does_not_have_is_named(name: str):
    with pytest.raises(ModelError, match=f"the weight '{name}' is not one of EfficientNet-Lite0"):
        photo.tower_state({name: torch.zeros(1)})


def test_the_tower_gives_the_features_of_the_reference_package(network):
    reference = pytest.importorskip(
        "efficientnet_lite_pytorch",
        reason="the reference is not installed (pip install efficientnet-lite-pytorch)",
    )
    torch.manual_seed(0)
    released = reference.EfficientNet.from_name("efficientnet-lite0").eval()
    for module in released.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(cast("Tensor", module.running_mean), std=0.1)
            torch.nn.init.uniform_(cast("Tensor", module.running_var), 0.5, 2)
    tower = copy.deepcopy(network.model.vision_tower.timm_model)
    tower.load_state_dict(photo.tower_state(released.state_dict()))
    pixels = torch.rand(2, 3, 160, 160) * 2 - 1
    with torch.no_grad():
        expected = released.extract_features(pixels)
        assert_close(tower.forward_features(pixels), expected)


# Tokenizer


def test_an_unused_token_becomes_the_image_token(parts: PhotoParts):
    tokenizer = photo.read_tokenizer(parts.language)
    assert tokenizer.convert_tokens_to_ids("<image>") == 4
    assert tokenizer.tokenize("a <image> that") == ["a", "Ġ", "<image>", "Ġ", "th", "a", "t"]
    asked: Any = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which?"}]}
    ]
    text = tokenizer.apply_chat_template(
        asked,
        tokenize=False,
        add_generation_prompt=True,
    )
    assert text == "<|im_start|>user\n<image>Which?<|im_end|>\n<|im_start|>assistant\n"


# Merging


def test_lora_is_added_to_every_linear_of_the_language_model(parts: PhotoParts, network):
    merged = copy.deepcopy(network)
    photo.merge_trained(merged, parts.trained)
    trained = tiny_photo.trained_tensors()
    before = network.model.language_model.state_dict()
    for name, weight in merged.model.language_model.state_dict().items():
        linear = f"lora.{name.removesuffix('.weight')}"
        if f"{linear}.A" in trained:
            a, b = (trained[f"{linear}.{side}"].float() for side in "AB")
            before[name] = before[name] + tiny_photo.ALPHA / tiny_photo.RANK * (b @ a)
        assert_close(weight, before[name])
    projector = merged.model.multi_modal_projector.state_dict()
    assert all(torch.equal(w, trained[f"projector.{n}"].float()) for n, w in projector.items())


Change = Callable[[dict[str, Tensor]], object]
CHANGES: dict[str, tuple[Change, str]] = {
    "missing": (
        lambda tensors: tensors.pop("lora.layers.1.mlp.up_proj.A"),
        r"lacks 1 tensors, for example lora\.layers\.1\.mlp\.up_proj\.A",
    ),
    "extra": (
        lambda tensors: tensors.update({"lora.layers.9.mlp.up_proj.A": torch.zeros(4, 32)}),
        r"has, beside the expected ones, 1 tensors, for example lora\.layers\.9",
    ),
    "shape": (
        lambda tensors: tensors.update({"projector.linear_1.bias": torch.zeros(3)}),
        r"projector\.linear_1\.bias in .* has the shape \(3,\), expected \(32,\)",
    ),
    "rank": (
        lambda tensors: tensors.update({"lora.layers.1.mlp.up_proj.B": torch.zeros(64, 5)}),
        r"up_proj\.B in .* has the shape \(64, 5\), expected \(64, 4\)",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_trained_file_that_does_not_fit_is_refused(network, tmp_path: Path, change: str):
    tensors, (make, message) = tiny_photo.trained_tensors(), CHANGES[change]
    make(tensors)
    file = tiny_photo.write_trained(tmp_path / "trained.safetensors", tensors)
    with pytest.raises(ModelError, match=message):
        photo.merge_trained(network, file)


def test_a_trained_file_without_a_scale_is_refused(network, tmp_path: Path):
    file = tmp_path / "trained.safetensors"
    tiny_photo.write_trained(file, tiny_photo.trained_tensors(), alpha="much")
    with pytest.raises(ModelError, match="has no number `alpha` in its metadata"):
        photo.merge_trained(network, file)
    file.write_bytes(b"not tensors")
    with pytest.raises(ModelError, match=r"cannot be read: .*; expected a safetensors file"):
        photo.merge_trained(network, file)


def test_pretrained_weights_that_do_not_fit_are_refused(network):
    with pytest.raises(ModelError, match="the pretrained weights do not fit the network"):
        photo.load_parts(network, {}, {})


# The folder


def test_the_folder_is_an_ordinary_one_in_half_precision(folder: Path):
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["dtype"]) == ("fast_vlm", "float16")
    assert "_name_or_path" not in config["text_config"]
    vlm = load_vlm(folder)
    asked = [
        Example(prompt="What is this?", target="a", image=tiny.random_image(0)),
        Example(prompt="Which?", target="a", image=tiny.random_image(1)),
        Example(prompt="Which?", target="a", image=None),
    ]
    together = vlm.generate(asked, max_new_tokens=4)
    assert together == [vlm.generate([one], max_new_tokens=4)[0] for one in asked]


def test_the_same_parts_give_the_same_bytes(parts: PhotoParts, folder: Path, tmp_path: Path):
    elsewhere = tmp_path / "parts"
    elsewhere.mkdir()
    moved = replace(parts, language=elsewhere / "other.gguf")
    moved.language.write_bytes(parts.language.read_bytes())
    photo.assemble(moved, tmp_path)
    for file in folder.iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes(), file.name


def test_the_named_sites_are_linear_weights_of_the_network_in_its_full_size():
    config = photo.LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, vocab_size=64,
    )  # fmt: skip
    with torch.device("meta"):
        network = photo.build_network(config, 4)
    linears = {n for n, module in network.named_modules() if isinstance(module, torch.nn.Linear)}
    sites = named_vlms()["photo"].sites
    assert (len(sites["language"]), len(sites["bridge"])) == (6, 2)
    assert linears.issuperset((*sites["language"], *sites["bridge"]))
    assert not any("vision_tower" in name for name in linears)


def test_missing_readers_are_named_with_their_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(photo, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"gguf and timm, .* pip install 'mmedit\[photo\]'"):
        photo.require_readers()
