"""A tiny random sentence encoder, as sentence-transformers saves one."""

from __future__ import annotations

import atexit
import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

WIDTH = 16
MAX_TOKENS = 32
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
TEXT = (
    "what which color colour is are there a an the no not red green blue yellow teal black gray "
    "brown yes shape image picture in this does contain have present rectangle circle triangle "
    "capital of peru italy lima rome new fact east west question request answer ?"
)


def save_encoder(folder: Path, *, seed: int = 0, pooling: str = "mean_tokens") -> Path:
    """Save network, tokenizer and the kind of pooling, and return the folder."""
    ids = {word: number for number, word in enumerate((*SPECIAL, *TEXT.split()))}
    words = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(name, ids[name]) for name in ("[CLS]", "[SEP]")]
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=ends
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]",
    )  # fmt: skip
    config = BertConfig(
        vocab_size=len(ids), hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=MAX_TOKENS, initializer_range=0.3,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    modes = {f"pooling_mode_{mode}": mode == pooling for mode in ("cls_token", "mean_tokens")}
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(modes), encoding="utf-8")
    return folder


@cache
def saved_encoder() -> str:
    """Return the folder of one that all tests of this process share."""
    kept = TemporaryDirectory()
    atexit.register(kept.cleanup)
    return str(save_encoder(Path(kept.name)))
