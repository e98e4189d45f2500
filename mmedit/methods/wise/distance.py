"""The activation distance of WISE: how much a side memory would change a question.

    Δ_act = mean_t ‖σ(W'x_t + b) - σ(W x_t + b)‖₂,   t: the text tokens of the prompt

A side memory is kept as its change W' - W, so W'x + b = y + (W' - W) x with the output y of the
model, and the bias is in y.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmedit.adapters.inputs import side_by_side
from mmedit.adapters.places import Places
from mmedit.cases import Example
from mmedit.editors.chosen import NOTHING
from mmedit.vlm.interface import VLM

LONG = 100
"""Tokens of a question above which the published code takes the largest distance, not the mean."""


class Reading(NamedTuple):
    """Input and output of a Linear at the tokens that count, in float32, shorter rows filled up.

    Its first axis is that of separate edits, or of length 1 for what all edits share.
    """

    x: Float[Tensor, "edits rows tokens in"]
    y: Float[Tensor, "edits rows tokens out"]
    counts: Bool[Tensor, "edits rows tokens"]
    """False behind the last token of a row."""

    def of_rows(self, rows: Int[Tensor, " chosen"]) -> Reading:
        """Return the reading of some rows."""
        return Reading(*(part[:, rows.to(part.device)] for part in self))

    def each_apart(self) -> Reading:
        """Return the reading in which every row belongs to an edit of its own."""
        return Reading(*(part.transpose(0, 1) for part in self))

    def to(self, device: torch.device) -> Reading:
        """Return the reading on a device."""
        return Reading(*(part.to(device) for part in self))


def read(vlm: VLM, examples: Sequence[Example], site: str, *, all_tokens: bool = False) -> Reading:
    """Return what a site takes and gives at the prompts' text tokens. Costs a forward up to it.

    With `all_tokens`, at all tokens before the answer (image and markers too).
    """
    observed, places = vlm.observe(examples, [site]), vlm.places(examples)
    counts = places.before_answer if all_tokens else prompt_text(places)
    first = side_by_side(counts)
    x, y = (
        values[site].float().gather(1, first.unsqueeze(-1).expand(-1, -1, values[site].shape[-1]))
        for values in (observed.x, observed.y)
    )
    counts = counts.gather(1, first)
    spare = ~counts.unsqueeze(-1)  # what stands at padding may be no number
    return Reading(x.masked_fill(spare, 0)[None], y.masked_fill(spare, 0)[None], counts[None])


def prompt_text(places: Places) -> Bool[Tensor, "batch sequence"]:
    """Return the prompts' text tokens; of an empty prompt the position that predicts the answer."""
    place = torch.arange(places.is_real.shape[1], device=places.is_real.device)
    is_last = place == places.last_prompt.unsqueeze(1)
    return places.is_prompt | (is_last & ~places.is_prompt.any(1, keepdim=True))


def token_distance(
    x: Float[Tensor, "#edits rows tokens in"],
    y: Float[Tensor, "#edits rows tokens out"],
    change: Float[Tensor, "edits out in"],
    activation: Callable[[Tensor], Tensor],
    dropped_bias: Float[Tensor, " out"] | None = None,
) -> Float[Tensor, "edits rows tokens"]:
    """Return ‖σ(y + ΔW x) - σ(y)‖ of every token. The gradient at 0 is 0.

    `dropped_bias` is taken away on the side, as the published code does.
    """
    side = (x.flatten(1, 2) @ change.mT).unflatten(1, x.shape[1:3]) + y
    if dropped_bias is not None:
        side = side - dropped_bias
    return torch.linalg.vector_norm(activation(side) - activation(y), dim=-1)


def row_distance(
    per_token: Float[Tensor, "edits rows tokens"],
    counts: Bool[Tensor, "#edits rows tokens"],
    *,
    longest: int | None = None,
) -> Float[Tensor, "edits rows"]:
    """Return the mean over the tokens that count. With `longest`, a row of more tokens has its
    largest distance instead, as published.
    """
    number = counts.sum(-1)
    masked = per_token.masked_fill(~counts, 0)
    mean = masked.sum(-1) / number.clamp(min=1)
    return mean if longest is None else masked.amax(-1).where(number > longest, mean)


class Hinges(NamedTuple):
    """The three hinge losses, for every edit."""

    relative: Float[Tensor, " edits"]
    """Irrelevant questions nearer than γ to the edited ones."""
    outside: Float[Tensor, " edits"]
    """Irrelevant questions above α."""
    inside: Float[Tensor, " edits"]
    """Edited questions below β."""


def hinges(
    inside: Float[Tensor, "edits asked"],
    outside: Float[Tensor, "edits others"],
    gap: Float[Tensor, "edits pairs"],
    *,
    alpha: float,
    beta: float,
    gamma: float,
) -> Hinges:
    """Return the hinges of the distances; `gap` is out - in of every pair that is compared. Each is
    the mean of its positive entries.
    """
    return Hinges(
        mean_of_positive(gap + gamma),
        mean_of_positive(outside - alpha),
        mean_of_positive(beta - inside),
    )


def mean_of_positive(values: Float[Tensor, "edits entries"]) -> Float[Tensor, " edits"]:
    """Return the mean of the positive entries, 0 without any."""
    return values.relu().sum(1) / (values > 0).sum(1).clamp(min=1)


def route(
    distance: Float[Tensor, "rows memories"],
    threshold: Float[Tensor, " memories"],
    visible: Bool[Tensor, "rows memories"],
    *,
    current_blocks: bool = False,
) -> Int[Tensor, " rows"]:
    """Return the memory that answers each row, or NOTHING: of those that are above their own
    threshold the one with the largest distance.

    With `current_blocks` the last one stands in the way of older ones with smaller distances even
    if it is below its threshold, as published.
    """
    above = visible & (distance > threshold)
    able = above.clone()
    if current_blocks:
        able[:, -1] = visible[:, -1]
    best = distance.masked_fill(~able, -torch.inf).argmax(1)
    return best.where(above.gather(1, best.unsqueeze(1)).squeeze(1), NOTHING)
