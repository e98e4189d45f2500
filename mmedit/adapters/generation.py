"""Greedy generation, whatever a checkpoint's own generation settings say.

A `generation_config.json` may hold some sixty settings that bend the likeliest answer (penalties,
forced tokens, a time limit) or break a call. Only those that say when an answer ends are kept: the
end tokens and the stop strings, with the ids for padding and beginning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import GenerationConfig


@dataclass(frozen=True)
class Answer:
    """One greedy continuation of a prompt."""

    text: str
    """The text, stripped, without special tokens and without a stop string."""
    is_cut_off: bool
    """True if the largest number of new tokens was reached before an end token or stop string."""


@dataclass(frozen=True)
class Stops:
    """The ends of an answer in one checkpoint."""

    ends: tuple[int, ...]
    """The end tokens, the usual one first. Without any, every answer is cut off."""
    strings: tuple[str, ...] = ()
    """Texts that end an answer. They are not part of it."""
    begin: int | None = None
    """The id of the beginning."""
    padding: int = 0
    """The id that fills the rows that have ended."""

    def greedy(self, max_new_tokens: int | None = None) -> GenerationConfig:
        """Return settings that take the likeliest token until an end."""
        return GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=max_new_tokens,
            bos_token_id=self.begin,
            eos_token_id=list(self.ends) or None,
            pad_token_id=self.padding,
            stop_strings=list(self.strings) or None,
        )


def read_stops(network: Any, tokenizer: Any) -> Stops:
    """Return where the answers of a network end.

    The end tokens are the first that are known: those of its generation config, those of its
    language model's config, that of the tokenizer.
    """
    text = getattr(network.config.get_text_config(), "eos_token_id", None)
    found = (network.generation_config.eos_token_id, text, getattr(tokenizer, "eos_token_id", None))
    ends = next((_ids(given) for given in found if _ids(given)), ())
    padding = tokenizer.pad_token_id
    return Stops(
        ends=ends,
        strings=_strings(network.generation_config.stop_strings),
        begin=network.generation_config.bos_token_id,
        padding=padding if padding is not None else next(iter(ends), 0),
    )


def set_greedy(network: Any, stops: Stops) -> None:
    """Replace all generation settings of a network and of the models in it.

    `generate` of transformers takes from them whatever a call leaves open.
    """
    for module in network.modules():
        if isinstance(getattr(module, "generation_config", None), GenerationConfig):
            module.generation_config = stops.greedy()


def read_answers(
    tokenizer: Any, stops: Stops, tokens: Int[Tensor, "batch new"], *, max_new_tokens: int
) -> list[Answer]:
    """Return generated tokens as answers. One copy to the host."""
    tokens = tokens.cpu()
    ended = torch.isin(tokens, torch.tensor(stops.ends, dtype=tokens.dtype)).any(1)
    cut_off = ~ended if tokens.shape[1] >= max_new_tokens else torch.zeros_like(ended)
    texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    whole = tokenizer.batch_decode(tokens) if stops.strings else texts
    return [
        Answer(text_before(stops.strings, text), is_cut and not _any_in(stops.strings, all_of_it))
        for text, all_of_it, is_cut in zip(texts, whole, cut_off.tolist(), strict=True)
    ]


def text_before(stops: Sequence[str], text: str) -> str:
    """Return the text before the first stop string, stripped."""
    for stop in stops:
        text = text.partition(stop)[0]
    return text.strip()


def _any_in(stops: Sequence[str], text: str) -> bool:
    return any(stop in text for stop in stops)


def _ids(given: int | Sequence[int] | None) -> tuple[int, ...]:
    listed = [given] if isinstance(given, int) else given or ()
    return tuple(int(end) for end in listed)


def _strings(given: str | Sequence[str] | None) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given or ())
