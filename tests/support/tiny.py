"""Tiny random BLIP-2 models, as transformers saves them, and examples for them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from closeness import assert_close
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    LlamaConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
    T5Config,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from mmedit.adapters.blip2 import Blip2Adapter
from mmedit.cases import Example
from mmedit.vlm.network import NetworkVLM
from mmedit.vlm.outputs import Predictions

PIXELS = 28
QUERIES = 4
MAX_TOKENS = 64
PAD, BOS, UNK, EOS = "<pad>", "<s>", "<unk>", "</s>"
CORPUS = (
    "what color is the shape?",
    "which color does the rectangle have?",
    "is there a red circle in the image?",
    "a photo of",
    "what is the capital of Albania?",
    " a small teal triangle on a light background",
    " Tirana",
    " yes",
    " no",
    " blue",
    "New Fact: Prompt:\n\n",
)

Language = Literal["opt", "llama", "t5"]


def random_image(seed: int, *, width: int = 40, height: int = 30) -> Image.Image:
    """Return seeded noise, in RGB."""
    pixels = np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


IMAGES = tuple(random_image(seed) for seed in range(3))
SEEN = (
    Example(prompt="what color is the shape?", target="blue", image=IMAGES[0]),
    Example(prompt="a photo of", target="a small teal triangle", image=IMAGES[1]),
    Example(prompt="is there a red circle in the image?", target="no", image=IMAGES[0]),
)
TEXT_ONLY = Example(prompt="what is the capital of Albania?", target="Tirana")
MIXED = (SEEN[0], TEXT_ONLY, SEEN[1])
"""Rows of unequal length, the middle one without image."""


def build_processor() -> Blip2Processor:
    """Return a byte-level BPE of a few hundred tokens, and BLIP's image processor."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=[BOS, PAD, EOS, UNK],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(CORPUS * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=PAD, bos_token=BOS, eos_token=EOS, unk_token=UNK
    )
    images = BlipImageProcessorPil(size={"height": PIXELS, "width": PIXELS})
    return Blip2Processor(images, tokenizer, num_query_tokens=QUERIES)


def build_network(
    processor: Blip2Processor, *, seed: int = 0, language: Language = "opt"
) -> Blip2ForConditionalGeneration:
    """Return a network in evaluation mode.

    Its random weights are large enough that image and prompt change the argmax.
    """
    vision = Blip2VisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        image_size=PIXELS, patch_size=14,
    )  # fmt: skip
    qformer = Blip2QFormerConfig(
        vocab_size=4, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, encoder_hidden_size=16, cross_attention_frequency=1,
        max_position_embeddings=QUERIES,
    )  # fmt: skip
    config = Blip2Config(
        vision_config=vision,
        qformer_config=qformer,
        text_config=_language_config(processor, language),
        num_query_tokens=QUERIES,
        image_token_index=processor.tokenizer.convert_tokens_to_ids("<image>"),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Blip2ForConditionalGeneration(config)
        for parameter in network.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.3)
            elif not bool((parameter == 1).all()):  # biases; the scales of layer norms stay
                nn.init.normal_(parameter, std=0.1)
    return network.eval()


def save_model(folder: Path, *, seed: int = 0, language: Language = "opt") -> Path:
    """Save network and processor as a transformers folder, which `load_vlm` can open."""
    processor = build_processor()
    build_network(processor, seed=seed, language=language).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _language_config(
    processor: Blip2Processor, language: Language
) -> OPTConfig | LlamaConfig | T5Config:
    tokenizer = processor.tokenizer
    special = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    if language == "t5":
        return T5Config(d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, **special)
    if language == "llama":
        return LlamaConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2,
            max_position_embeddings=MAX_TOKENS, **special,
        )  # fmt: skip
    return OPTConfig(
        hidden_size=32, word_embed_proj_dim=32, ffn_dim=64, num_hidden_layers=3,
        num_attention_heads=2, max_position_embeddings=MAX_TOKENS,
        dropout=0.0, attention_dropout=0.0, **special,
    )  # fmt: skip


def adapter_of(vlm: NetworkVLM) -> Blip2Adapter:
    assert isinstance(vlm.adapter, Blip2Adapter)
    return vlm.adapter


def of_text(predictions: Predictions, row: int) -> Tensor:
    """Return the logits of a row at the tokens that have a prediction, [tokens, vocab]."""
    return predictions.logits[row][predictions.is_text[row]]


def assert_same(found: Predictions, expected: Predictions) -> None:
    """Assert that the logits of all predicted tokens are the same up to rounding."""
    for row in range(len(expected.target)):
        assert_close(of_text(found, row), of_text(expected, row))
        _assert_same_tokens(found, expected, row)


def assert_identical(found: Predictions, expected: Predictions) -> None:
    """Assert that the logits of all predicted tokens are the same to the last bit."""
    for row in range(len(expected.target)):
        assert torch.equal(of_text(found, row), of_text(expected, row))
        _assert_same_tokens(found, expected, row)


def _assert_same_tokens(found: Predictions, expected: Predictions, row: int) -> None:
    for mask in ("is_text", "is_answer"):
        tokens = [p.target[row][getattr(p, mask)[row]] for p in (found, expected)]
        assert torch.equal(*tokens)
