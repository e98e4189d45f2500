"""Generation: greedy whatever a checkpoint's own generation settings say, or as a `Decoding` says.

A `generation_config.json` may hold some sixty settings that bend the likeliest answer (penalties,
forced tokens, a time limit) or break a call. Only those that say when an answer ends are kept: the
end tokens and the stop strings, with the ids for padding and beginning.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)

from mmedit.errors import DataError, ModelError


@dataclass(frozen=True)
class Answer:
    """One continuation of a prompt."""

    text: str
    """The text, stripped, without special tokens and without a stop string."""
    is_cut_off: bool
    """True if the answer ended before an end token or a stop string: the largest number of new
    tokens was reached, or the row was cancelled.
    """
    tokens: int
    """Number of new tokens: those of a stop string count, the end token does not."""


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

    def with_ends(self, ends: Sequence[int]) -> Stops:
        """Return the ends of a model that knows these end tokens alone."""
        return replace(self, ends=tuple(ends), begin=None, padding=next(iter(ends), 0))


class Steps(ABC):
    """One generation of a batch under a `Decoding`, step by step."""

    @abstractmethod
    def choose(self, scores: Float[Tensor, "batch vocab"]) -> Float[Tensor, "batch vocab"]:
        """Return scores of which the largest in a row is the row's next token."""

    @abstractmethod
    def advance(self, tokens: Sequence[int], is_stopped: Sequence[bool]) -> list[bool]:
        """Take the next token of every row, and return which rows have ended.

        `is_stopped` tells the rows that end with a stop string of the checkpoint.
        """

    @abstractmethod
    def answers(self) -> list[Answer]:
        """Return the answers, after all rows have ended."""


class Decoding(ABC):
    """How the tokens of each row of a batch are chosen, and when a row ends.

    It is a value: `begin` makes the state of one generation.
    """

    @abstractmethod
    def limits(self, max_new_tokens: int) -> list[int]:
        """Return the largest number of new tokens of every row, at most `max_new_tokens`."""

    @abstractmethod
    def select(self, rows: Sequence[int]) -> Decoding:
        """Return the decoding of a batch whose row i is row rows[i] of this one."""

    @abstractmethod
    def silent(self, rows: Sequence[int]) -> Decoding:
        """Return the same in which these rows end after one token, and nobody is told of it."""

    @abstractmethod
    def begin(self, tokenizer: Any, stops: Stops, *, max_new_tokens: int) -> Steps:
        """Return the beginning of a generation."""


def require_decoding_of(decoding: Decoding | None, rows: int) -> None:
    """Raise DataError if a decoding is for another number of rows."""
    if decoding is not None and (found := len(decoding.limits(1))) != rows:
        raise DataError(
            f"the decoding is for {found} rows and {rows} examples were given; give one "
            "RowDecoding for each example"
        )


def require_room(length: int, most: int, new: int) -> None:
    """Raise ModelError if the new tokens do not fit after the longest prompt of a batch."""
    if length + new > most:
        raise ModelError(
            f"{new} new tokens do not fit after a prompt of {length} tokens; this model takes "
            f"{most} in total"
        )


Generate = Callable[..., Tensor]
"""`generate` of transformers for given inputs: takes its settings, returns the new tokens."""


def generate_answers(
    generate: Generate,
    tokenizer: Any,
    stops: Stops,
    *,
    max_new_tokens: int,
    decoding: Decoding | None = None,
) -> list[Answer]:
    """Generate, and return the answers: greedy ones without a decoding."""
    settings: dict[str, Any] = {"tokenizer": tokenizer} if stops.strings else {}
    if decoding is None:
        tokens = generate(generation_config=stops.greedy(max_new_tokens), **settings)
        return read_answers(tokenizer, stops, tokens, max_new_tokens=max_new_tokens)
    steps = decoding.begin(tokenizer, stops, max_new_tokens=max_new_tokens)
    generate(
        generation_config=stops.greedy(max(decoding.limits(max_new_tokens))),
        logits_processor=LogitsProcessorList([_Choosing(steps)]),
        stopping_criteria=StoppingCriteriaList([_Ending(steps, tokenizer, stops.strings)]),
        **settings,
    )
    return steps.answers()


class _Choosing(LogitsProcessor):
    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return self._steps.choose(scores)


class _Ending(StoppingCriteria):
    def __init__(self, steps: Steps, tokenizer: Any, strings: Sequence[str]) -> None:
        self._steps = steps
        # The criterion that `generate` has too: both must end a row at the same token, because
        # `generate` puts padding behind a row that it has ended.
        self._strings = StopStringCriteria(tokenizer, list(strings)) if strings else None

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        is_stopped = [False] * len(input_ids)
        if self._strings is not None:
            is_stopped = self._strings(cast("Any", input_ids), scores).tolist()
        # The last column alone: before it are the prompts, or not, by the model family.
        is_done = self._steps.advance(input_ids[:, -1].tolist(), is_stopped)
        return torch.tensor(is_done, device=input_ids.device)


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
    """Return greedily generated tokens as answers. One copy to the host."""
    tokens = tokens.cpu()
    is_end = torch.isin(tokens, torch.tensor(stops.ends, dtype=tokens.dtype))
    ended = is_end.any(1)
    lengths = is_end.int().argmax(1).where(ended, tokens.shape[1]).tolist()
    cut_off = ~ended if tokens.shape[1] >= max_new_tokens else torch.zeros_like(ended)
    texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    whole = tokenizer.batch_decode(tokens) if stops.strings else texts
    return [
        Answer(
            text=text_before(stops.strings, text),
            is_cut_off=is_cut and not any_in(stops.strings, all_of_it),
            tokens=length_until(stops.strings, row[:length], tokenizer),
        )
        for text, all_of_it, is_cut, row, length in zip(
            texts, whole, cut_off.tolist(), tokens.tolist(), lengths, strict=True
        )
    ]


def text_before(stops: Sequence[str], text: str) -> str:
    """Return the text before the first stop string, stripped."""
    for stop in stops:
        text = text.partition(stop)[0]
    return text.strip()


def any_in(stops: Sequence[str], text: str) -> bool:
    """Return whether a text contains a stop string."""
    return any(stop in text for stop in stops)


def length_until(stops: Sequence[str], ids: Sequence[int], tokenizer: Any) -> int:
    """Return the number of tokens up to the one that completes a stop string; else all."""
    if not stops or not any_in(stops, tokenizer.decode(ids)):
        return len(ids)
    return 1 + bisect_left(
        range(len(ids)), True, key=lambda last: any_in(stops, tokenizer.decode(ids[: last + 1]))
    )


def _ids(given: int | Sequence[int] | None) -> tuple[int, ...]:
    listed = [given] if isinstance(given, int) else given or ()
    return tuple(int(end) for end in listed)


def _strings(given: str | Sequence[str] | None) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given or ())
