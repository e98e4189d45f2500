"""CLIPScore on a tiny random CLIP: the formula, not the meaning."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from closeness import assert_close
from tiny import random_image

from mmedit.errors import ModelError
from mmedit.metrics.clip_score import PROMPT, load_clip_score

open_clip = pytest.importorskip("open_clip", reason="the extra `clip` is not installed")

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny architecture that OpenCLIP knows by name, and its weights in a file."""
    folder = tmp_path_factory.mktemp("clip")
    (folder / "tiny-for-tests.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(folder / "tiny-for-tests.json")
    torch.manual_seed(0)
    model = open_clip.create_model("tiny-for-tests", load_weights=False)
    torch.save(model.state_dict(), folder / "weights.pt")
    return f"tiny-for-tests/{folder / 'weights.pt'}"


def test_clip_score_is_two_and_a_half_times_the_cosine(named: str):
    score = load_clip_score(named)
    images, texts = [random_image(0), random_image(1)], ["a red circle", "no"]
    model, _, transform = open_clip.create_model_and_transforms(
        named.partition("/")[0], pretrained=named.partition("/")[2], weights_only=True
    )
    model.eval()
    tokens = open_clip.get_tokenizer("tiny-for-tests")([PROMPT + text for text in texts])
    with torch.no_grad():
        seen = model.encode_image(torch.stack([transform(image) for image in images]))
        read = model.encode_text(tokens)
    cosine = torch.cosine_similarity(seen, read)
    expected = 2.5 * cosine.clamp(min=0)
    assert_close(torch.tensor(score(images, texts)), expected)
    assert_close(torch.tensor(score(images[1:], texts[1:])), expected[1:])


@pytest.mark.parametrize("name", ["ViT-B-32", "/openai", ""])
def test_a_name_without_weights_is_an_error(name: str):
    with pytest.raises(ModelError, match="expected ARCHITECTURE/WEIGHTS"):
        load_clip_score(name)


def test_an_unknown_architecture_or_file_is_an_error(named: str, tmp_path: Path):
    for name in ("no-such-clip/openai", f"tiny-for-tests/{tmp_path / 'nothing.pt'}"):
        with pytest.raises(ModelError, match="cannot be loaded"):
            load_clip_score(name)
