"""VLMs for measuring: the embedded one, and BLIP-2 networks of other sizes with random values.

Nothing here knows mmedit, so that the same networks can be measured under any version of it. All
have the embedded VLM's tokenizer, whose tokens are those of easy-VQA's questions.
"""

# transformers' configs take keywords that their signatures do not tell.
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportOptionalMemberAccess=false

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import (
    AutoProcessor,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipImageProcessor,
    OPTConfig,
    PreTrainedModel,
    ProcessorMixin,
)

EMBEDDED = Path(__file__).parents[2] / "mmedit" / "assets" / "embedded-vlm"
VOCABULARY = 50272
"""Tokens that OPT knows."""


def _opt(hidden: int, layers: int, heads: int) -> OPTConfig:
    return OPTConfig(
        hidden_size=hidden, word_embed_proj_dim=hidden, ffn_dim=4 * hidden,
        num_hidden_layers=layers, num_attention_heads=heads, vocab_size=VOCABULARY,
        dropout=0.0, attention_dropout=0.0, bos_token_id=0, pad_token_id=1, eos_token_id=2,
    )  # fmt: skip


def _blip2(vision: dict[str, int], qformer: dict[str, int], text: OPTConfig) -> Blip2Config:
    # transformers' own 1e-10 would make features that hardly depend on the image
    drawn = {**vision, "initializer_range": 0.02}
    width = {"encoder_hidden_size": vision["hidden_size"], "max_position_embeddings": 32}
    return Blip2Config(
        vision_config=drawn,
        qformer_config={**qformer, **width, "vocab_size": 4},
        text_config=text,
        num_query_tokens=32,
    )


def medium() -> Blip2Config:
    """Return the config of a ViT-B at 224 pixels, a Q-Former of 6 layers, 32 queries, OPT-125M."""
    vision = {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12, "image_size": 224, "patch_size": 16,
    }  # fmt: skip
    qformer = {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 6,
        "num_attention_heads": 12,
    }  # fmt: skip
    return _blip2(vision, qformer, _opt(768, layers=12, heads=12))


def deep() -> Blip2Config:
    """Return the config of a small vision tower before 24 language layers of width 1,024."""
    small = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4}
    vision = {**small, "num_hidden_layers": 4, "image_size": 64, "patch_size": 8}
    return _blip2(vision, {**small, "num_hidden_layers": 2}, _opt(1024, layers=24, heads=16))


RANDOM: dict[str, Callable[[], Blip2Config]] = {"medium": medium, "deep": deep}
"""Shapes that have no released weights here."""
SHAPES = ("embedded", *RANDOM)


def build(name: str, seed: int = 0) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Return a network in float32, ready to be asked, and its processor."""
    processor = AutoProcessor.from_pretrained(EMBEDDED)
    if name == "embedded":
        network = Blip2ForConditionalGeneration.from_pretrained(EMBEDDED, dtype=torch.float32)
        return network.eval().requires_grad_(False), processor
    config = RANDOM[name]()
    config.image_token_index = processor.tokenizer.convert_tokens_to_ids("<image>")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Blip2ForConditionalGeneration(config)
    side = config.vision_config.image_size
    images = BlipImageProcessor(size={"height": side, "width": side})
    made = Blip2Processor(images, processor.tokenizer, num_query_tokens=config.num_query_tokens)
    return network.eval().requires_grad_(False), made
