"""FastVLM beside what all families keep: its count of image tokens, its answers, and towers of
convolutions with BatchNorm. The tests of all families are `test_families.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from tiny_families import build_family, save_family
from torch import Tensor, nn
from transformers import (
    AutoModelForImageTextToText,
    LlavaProcessor,
    TimmWrapperConfig,
)

from mmedit.adapters import adapter_for, fast_vlm
from mmedit.cases import Example
from mmedit.convert import photo
from mmedit.editors.base import Editor
from mmedit.errors import ModelError
from mmedit.methods.ft import FT, FTConfig
from mmedit.vlm.loading import load_vlm
from mmedit.vlm.network import NetworkVLM

TOWERS = ("fast_vlm", "photo")
"""A FastViT with attention, and an EfficientNet."""
SEEN = tuple(
    Example(prompt="what color is the shape?", target="blue", image=tiny.random_image(seed))
    for seed in range(6)
)


def build(family: str) -> NetworkVLM:
    network, processor = build_family(family)
    return vlm_of(network.requires_grad_(False), processor)


def vlm_of(network: Any, processor: Any) -> NetworkVLM:
    return NetworkVLM(adapter_for(network.config)(network, processor))


# Image tokens


@pytest.mark.parametrize("family", TOWERS)
def test_a_processor_without_patch_size_counts_as_the_tower_does(family: str):
    network, processor = build_family(family)
    assert isinstance(processor, LlavaProcessor)
    expected = vlm_of(network, processor).adapter.see(SEEN[0]).layout
    processor.patch_size = None
    assert vlm_of(network, processor).adapter.see(SEEN[0]).layout == expected


def test_an_image_of_224_pixels_is_49_tokens_of_an_efficientnet():
    network, processor = build_family("photo")
    vlm = vlm_of(network, photo.build_processor(processor.tokenizer, pixels=224))
    image = vlm.adapter.see(SEEN[0])
    with torch.no_grad():
        (features,) = vlm.adapter.encode([image])
    assert image.layout.placeholder == (vlm.adapter.image_token,) * 49
    assert vlm.adapter.feature_count(features) == 49


# Answers


def test_an_answer_follows_the_generation_prompt_at_once_though_the_template_breaks_the_line():
    vlm = build("fast_vlm")
    processor = vlm.adapter.processor
    assert isinstance(processor, LlavaProcessor)
    turns = [
        {"role": role, "content": [{"type": "text", "text": text}]}
        for role, text in (("user", "what?"), ("assistant", "blue"))
    ]
    assert "assistant\n\nblue" in processor.apply_chat_template(turns, tokenize=False)
    assert str(vlm.protocol["text"]).endswith("<|im_start|>assistant\n{answer}")


# Towers


def test_timm_that_is_not_installed_is_an_error_that_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = save_family("photo", tmp_path)
    monkeypatch.setattr(fast_vlm, "find_spec", lambda name: None)
    with pytest.raises(ModelError) as raised:
        load_vlm(folder)
    assert str(raised.value) == (
        f"{folder} cannot be loaded: its vision tower is a network of timm, which is not "
        "installed: pip install 'mmedit[convert]'"
    )


@pytest.mark.parametrize("family", TOWERS)
def test_features_of_an_image_do_not_depend_on_the_images_beside_it(family: str):
    """In any order, alone, and after another one was looked up: bit for bit."""
    expected = features_of(build(family), SEEN)
    for asked in (SEEN[::-1], SEEN[3:4], (*SEEN[4:], *SEEN[:3])):
        vlm = build(family)
        features_of(vlm, SEEN[1:2])
        for example, found in zip(asked, features_of(vlm, asked), strict=True):
            assert torch.equal(found, expected[SEEN.index(example)])


def features_of(vlm: NetworkVLM, examples: Sequence[Example]) -> list[Tensor]:
    return [found for found in vlm.frozen.image_features(examples) if found is not None]


EDITS: dict[str, Editor[Any]] = {
    where: FT(FTConfig(where=where, steps=2)) for where in ("language", "bridge", "vision")
}


@pytest.mark.parametrize("where", EDITS)
def test_no_edit_trains_batchnorm_or_moves_its_statistics(where: str):
    vlm = build("fast_vlm")
    norms = [m for m in vlm.adapter.network.modules() if isinstance(m, nn.BatchNorm2d)]
    before = [{name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in norms]
    trained: list[bool] = []
    for norm in norms:
        norm.register_forward_hook(lambda module, *_: trained.append(module.training))
    edited = EDITS[where].apply(vlm, SEEN[:2])
    EDITS[where].apply_each(vlm, SEEN[:2])
    edited.predict(SEEN[:2])
    assert trained
    assert not any(trained)
    for norm, buffers in zip(norms, before, strict=True):
        for name, buffer in norm.named_buffers():
            assert torch.equal(buffer, buffers[name]), name


def test_a_tower_with_linear_feed_forward_is_edited_there():
    """ConvNeXt's feed-forward reads a map with two axes of places."""
    network, processor = build_family("photo")
    config: Any = network.config
    settings: dict[str, Any] = {"architecture": "test_convnext", "hidden_size": 64}
    config.vision_config = TimmWrapperConfig(**settings)
    torch.manual_seed(0)
    network = AutoModelForImageTextToText.from_config(config).eval().requires_grad_(False)
    vlm = vlm_of(network, processor)
    (site,) = vlm.sites("vision")
    assert site == "model.vision_tower.timm_model.stages.3.blocks.1.mlp.fc2"
    editor = FT(FTConfig(where="vision", steps=3, lr=1e-2))
    each = editor.apply_each(vlm, SEEN[:2])
    for row, example in enumerate(SEEN[:2]):
        alone = editor.apply(vlm, [example]).predict([example])
        torch.testing.assert_close(
            each.select([row]).predict([example]).logits, alone.logits, rtol=1e-4, atol=1e-4
        )
        assert not torch.equal(alone.logits, vlm.predict([example]).logits)
