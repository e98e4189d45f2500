"""Decoding row by row: each row of a batch has its own temperature, seed, stop texts and length.

    decoding = RowsDecoding([RowDecoding(temperature=0.7, seed=1), RowDecoding(stop=("\\n",))])
    vlm.answer(examples, max_new_tokens=64, decoding=decoding)

A token is sampled as the largest of the scores divided by the temperature, plus Gumbel noise (the
Gumbel-max trick: Gumbel 1954), which draws from the softmax exactly. The noise comes from a
generator of the row's own, on the CPU, so an answer does not depend on the rows beside it or on the
device, except that rounding may decide between two tokens that are equally near. Under one seed an
edited model and its base get the same noise, so their answers differ only where their probabilities
do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from mmedit.adapters.generation import (
    Answer,
    Decoding,
    Steps,
    Stops,
    any_in,
    length_until,
    text_before,
)
from mmedit.arguments import as_count
from mmedit.errors import ConfigError, shortened

SEEDS = 2**63
"""Number of seeds: they are whole numbers from 0 on."""
LEAST_TEMPERATURE = 1e-6
"""A lower temperature above 0 counts as this one, which is greedy already: float32 overflows."""
SLACK = 8
"""Tokens beside those that a stop text may have, because a decoder may strip the first ones."""


@dataclass(frozen=True, kw_only=True)
class RowDecoding:
    """How the tokens of one row are chosen, and when it ends."""

    temperature: int | float = 0.0
    """Divides the scores before a token is sampled; 0 takes the likeliest token."""
    top_p: int | float = 1.0
    """Sample among the likeliest tokens that have this probability together."""
    seed: int = 0
    """Seed of the row's noise."""
    max_new_tokens: int | None = None
    """Largest number of new tokens, if it is below that of the call."""
    stop: Sequence[str] = ()
    """Texts that end the answer. They are not part of it."""
    on_tokens: Callable[[list[int]], bool] | None = None
    """Called after each step with all new tokens of the row, the end token left out. The row is
    cancelled if it returns False. It runs between two steps of the whole batch, so it must be quick
    and must not raise.
    """
    on_end: Callable[[Answer], None] | None = None
    """Called with the answer as soon as the row has ended, while others may go on."""

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        object.__setattr__(self, "stop", stop)
        if not _is_number(self.temperature) or not 0 <= self.temperature < math.inf:
            raise ConfigError(
                f"temperature is {shortened(self.temperature)}; expected a number from 0 on"
            )
        if not _is_number(self.top_p) or not 0 < self.top_p <= 1:
            raise ConfigError(
                f"top_p is {shortened(self.top_p)}; expected a number above 0, at most 1"
            )
        if as_count("seed", least=0)(self.seed) >= SEEDS:
            raise ConfigError(f"seed is {self.seed}; expected a whole number below 2**63")
        if self.max_new_tokens is not None:
            as_count("max_new_tokens")(self.max_new_tokens)
        if not all(isinstance(text, str) and text for text in stop):
            raise ConfigError(f"stop is {shortened(self.stop)}; expected texts that are not empty")


@final
@dataclass(frozen=True)
class RowsDecoding(Decoding):
    """The decoding of a batch: a `RowDecoding` for each row."""

    rows: tuple[RowDecoding, ...]

    def __init__(self, rows: Sequence[RowDecoding]) -> None:
        object.__setattr__(self, "rows", tuple(rows))

    def limits(self, max_new_tokens: int) -> list[int]:
        return [min(row.max_new_tokens or max_new_tokens, max_new_tokens) for row in self.rows]

    def select(self, rows: Sequence[int]) -> RowsDecoding:
        return RowsDecoding([self.rows[row] for row in rows])

    def silent(self, rows: Sequence[int]) -> RowsDecoding:
        nobody = RowDecoding(max_new_tokens=1)
        unheard = set(rows)
        return RowsDecoding(
            [nobody if number in unheard else row for number, row in enumerate(self.rows)]
        )

    def begin(self, tokenizer: Any, stops: Stops, *, max_new_tokens: int) -> Steps:
        limits = self.limits(max_new_tokens)
        return _RowsSteps(
            [
                _Row(row, limit, tokenizer, stops)
                for row, limit in zip(self.rows, limits, strict=True)
            ]
        )


def groups_with_room(lengths: Sequence[int], limits: Sequence[int], most: int) -> list[list[int]]:
    """Return the rows in groups, of which each has room to be answered as one batch.

    A row that has ended goes on through the network until the last row of its batch has ended, so
    the longest prompt of a batch needs room for the largest number of new tokens in it.

    >>> groups_with_room([50, 5, 40], [10, 55, 14], 64)
    [[0, 2], [1]]
    """
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        for group in groups:
            together = [*group, row]
            if max(lengths[n] for n in together) + max(limits[n] for n in together) <= most:
                group.append(row)
                break
        else:
            groups.append([row])
    return [sorted(group) for group in groups]


class _Row:
    """One row while its answer is generated."""

    def __init__(self, how: RowDecoding, limit: int, tokenizer: Any, stops: Stops) -> None:
        self.how = how
        self.answer: Answer | None = None
        self._limit = limit
        self._tokenizer = tokenizer
        self._stops = stops
        self._ids: list[int] = []
        self._generator = torch.Generator().manual_seed(how.seed) if how.temperature else None

    @property
    def is_sampled(self) -> bool:
        """Whether the next token is sampled."""
        return self._generator is not None and self.answer is None

    def noise(self, vocabulary: int) -> Float[Tensor, " vocab"]:
        """Return Gumbel noise for the next token."""
        drawn = torch.empty(vocabulary, dtype=torch.float64)
        return -drawn.exponential_(generator=self._generator).log().float()

    def advance(self, token: int, is_stopped: bool) -> bool:
        """Take the next token, and return whether the row has ended. `is_stopped` tells that it
        ends with a stop string of the checkpoint.
        """
        if self.answer is not None:
            return True
        if token in self._stops.ends:
            return self._end([*self._ids, token], is_cut_off=False)
        self._ids.append(token)
        goes_on = self.how.on_tokens is None or self.how.on_tokens(list(self._ids)) is not False
        if is_stopped or self._has_stop_text():
            return self._end(self._ids, is_cut_off=False)
        if not goes_on or len(self._ids) == self._limit:
            return self._end(self._ids, is_cut_off=True)
        return False

    def _has_stop_text(self) -> bool:
        """Return whether a stop text is in the last tokens, each of which has a byte or more."""
        stop = self.how.stop
        if not stop:
            return False
        last = self._ids[-max(len(text.encode()) for text in stop) - SLACK :]
        return any_in(stop, self._tokenizer.decode(last, skip_special_tokens=True))

    def _end(self, ids: Sequence[int], *, is_cut_off: bool) -> bool:
        """Make the answer of all its tokens, those of an end included."""
        decode, strings = self._tokenizer.decode, self._stops.strings
        text = decode(ids, skip_special_tokens=True)
        self.answer = Answer(
            text=text_before((*strings, *self.how.stop), text),
            is_cut_off=is_cut_off and not (strings and any_in(strings, decode(ids))),
            tokens=length_until(strings, self._ids, self._tokenizer),
        )
        if self.how.on_end is not None:
            self.how.on_end(self.answer)
        return True


@final
class _RowsSteps(Steps):
    def __init__(self, rows: Sequence[_Row]) -> None:
        self._rows = rows

    def choose(self, scores: Float[Tensor, "batch vocab"]) -> Float[Tensor, "batch vocab"]:
        sampled = [number for number, row in enumerate(self._rows) if row.is_sampled]
        if not sampled:
            return scores
        rows = [self._rows[number] for number in sampled]
        noise = torch.stack([row.noise(scores.shape[-1]) for row in rows])
        index = torch.tensor(sampled, device=scores.device)
        chosen = tempered(scores[index].float(), [row.how for row in rows])
        return scores.index_copy(0, index, (chosen + noise.to(scores.device)).to(scores))

    def advance(self, tokens: Sequence[int], is_stopped: Sequence[bool]) -> list[bool]:
        each = zip(self._rows, tokens, is_stopped, strict=True)
        return [row.advance(token, stopped) for row, token, stopped in each]

    def answers(self) -> list[Answer]:
        return [row.answer for row in self._rows if row.answer is not None]


def tempered(
    scores: Float[Tensor, "rows vocab"], rows: Sequence[RowDecoding]
) -> Float[Tensor, "rows vocab"]:
    """Return scores divided by each row's temperature, with minus infinity outside its top p."""
    temperature = scores.new_tensor([max(row.temperature, LEAST_TEMPERATURE) for row in rows])
    scores = (scores - scores.amax(-1, keepdim=True)) / temperature.unsqueeze(-1)
    if all(row.top_p == 1 for row in rows):
        return scores
    top_p = scores.new_tensor([row.top_p for row in rows]).unsqueeze(-1)
    probability, order = scores.softmax(-1).sort(dim=-1, descending=True, stable=True)
    is_outside = (probability.cumsum(-1) - probability >= top_p) & (top_p < 1)
    return scores.masked_fill(is_outside.scatter(-1, order, is_outside), -torch.inf)


def _is_number(given: object) -> bool:
    return isinstance(given, int | float) and not isinstance(given, bool)
