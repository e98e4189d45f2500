"""Codebooks: entries with a key and a radius, which answer for the questions inside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmedit.cases import Example
from mmedit.editors.closed_form.positions import spots
from mmedit.editors.config import layer_in
from mmedit.editors.entries import Entries, joined_rows
from mmedit.vlm.interface import VLM

Expand = Literal["coverage", "moving_average"]
"""The way in which an entry takes in a near edit with the same answer: its radius becomes wider
(coverage), or its key moves half way to that edit as well (moving_average).
"""
GAP = 1e-5
"""Distance that keeps the balls of two entries with different answers apart."""


class Nearest(NamedTuple):
    """The nearest entry of each row, among those that the row sees."""

    distance: Float[Tensor, " rows"]
    """Euclidean distance, in float64; infinite for a row that sees none."""
    entry: Int[Tensor, " rows"]


def nearest(
    keys: Float[Tensor, "entries width"],
    asked: Float[Tensor, "rows width"],
    visible: Bool[Tensor, "rows entries"],
) -> Nearest:
    """Return the nearest key of each row; among equally near keys the oldest. No entry: entry 0."""
    if not len(keys):
        away = torch.full((len(asked),), torch.inf, dtype=torch.float64, device=asked.device)
        return Nearest(away, torch.zeros(len(asked), dtype=torch.long, device=asked.device))
    away = torch.cdist(
        asked.double(), keys.double(), compute_mode="donot_use_mm_for_euclid_dist"
    ).masked_fill(~visible, torch.inf)
    distance, entry = away.min(1)
    return Nearest(distance, entry)


def layer_of(vlm: VLM, layer: int | None, *, usual: int) -> int:
    """Return the decoder layer that a codebook belongs to. Raises SiteError."""
    return layer_in(
        len(vlm.value_sites),
        layer,
        usual=usual,
        unknown="the feed-forward blocks of this VLM's language model are not known by name; use a "
        "method that names its sites (ft, mend)",
    )


class PromptEnd(NamedTuple):
    """Input and output of a Linear at the last prompt token, in float32."""

    x: Float[Tensor, "rows in"]
    y: Float[Tensor, "rows out"]
    writes: Float[Tensor, "rows tokens 1"]
    """1 at that token."""


def at_prompt_end(vlm: VLM, examples: Sequence[Example], site: str) -> PromptEnd:
    """Return what a site takes and gives where the first token of the answer is predicted. Costs a
    forward up to the site.
    """
    observed = vlm.observe(examples, [site])
    at = spots("last_prompt", vlm.places(examples))
    x, y = (at.read(values[site].float())[:, 0] for values in (observed.x, observed.y))
    return PromptEnd(x, y, at.writes)


def shift_to_values(
    entries: Entries, at: PromptEnd
) -> tuple[Bool[Tensor, " rows"], Float[Tensor, "rows out"]]:
    """Return which rows are inside the ball of their nearest entry, and what leads from the output
    of the Linear to the entry's value there; 0 outside.
    """
    found = nearest(entries["key"], at.x, entries.seen_by(len(at.x)))
    inside = found.distance <= entries["radius"][found.entry]
    return inside, (entries["value"][found.entry] - at.y).where(inside.unsqueeze(1), 0)


class _Verdict(NamedTuple):
    """The place of new entries in a codebook, a row for each."""

    near: Nearest
    splits: Bool[Tensor, " rows"]
    """Whether the nearest entry sets another answer, and its ball must become smaller."""
    covers: Bool[Tensor, " rows"]
    """Whether the nearest entry sets the same answer and takes the new one in."""


def _judged(
    entries: Entries,
    new: Mapping[str, Tensor],
    visible: Bool[Tensor, "rows entries"],
    radius: float,
) -> _Verdict:
    """Return where new entries belong in the codebook that each row sees."""
    if not len(entries):
        none = torch.zeros(len(new["key"]), dtype=torch.bool, device=new["key"].device)
        return _Verdict(nearest(new["key"][:0], new["key"], visible), none, none)
    near = nearest(entries["key"], new["key"], visible)
    reaches = near.distance <= radius + entries["radius"][near.entry]
    same = _same_tokens(entries["label"][near.entry], new["label"])
    return _Verdict(near, reaches & ~same, reaches & same)


def _same_tokens(first: Int[Tensor, "rows _"], second: Int[Tensor, "rows _"]) -> Tensor:
    """Return which rows of token ids are equal."""
    both = joined_rows(first, second).unflatten(0, (2, -1))
    return (both[0] == both[1]).all(1)


def _widened(
    entries: Entries, new: Mapping[str, Tensor], verdict: _Verdict, expand: Expand
) -> dict[str, Tensor]:
    """Return the nearest entry of each row after it has taken in the new one."""
    distance, entry = verdict.near
    reach = torch.maximum(entries["radius"][entry], distance)
    key = entries["key"][entry]
    if expand == "moving_average":
        outside = (distance > entries["radius"][entry]).unsqueeze(1)
        key = ((key + new["key"]) / 2).where(outside, key)
    return {"key": key, "value": new["value"], "label": new["label"], "radius": reach}


def placed(
    entries: Entries, new: Mapping[str, Tensor], *, radius: float, expand: Expand
) -> Entries:
    """Return the codebook of all rows with one new entry, by the rules of GRACE."""
    verdict = _judged(entries, new, entries.seen_by(1), radius)
    (distance, entry), start = verdict.near, torch.full_like(verdict.near.distance, radius)
    if verdict.covers:
        return entries.replaced(int(entry), _widened(entries, new, verdict, expand))
    if verdict.splits:
        smaller = {name: tensor[entry] for name, tensor in entries.tensors.items()}
        smaller["radius"] = distance / 2 - GAP
        entries, start = entries.replaced(int(entry), smaller), distance / 2
    return entries.with_all({**new, "radius": start})


def placed_each(
    entries: Entries, new: Mapping[str, Tensor], *, radius: float, expand: Expand
) -> Entries:
    """Return the codebook with a new entry for each row, as if it were placed alone: an entry that
    it changes stays as it is for the other rows, and this row sees a changed copy.
    """
    rows = len(new["key"])
    verdict = _judged(entries, new, entries.seen_by(rows), radius)
    distance = verdict.near.distance
    own = {**new, "radius": torch.full_like(distance, radius)}
    own["radius"] = (distance / 2).where(verdict.splits, own["radius"])
    if not (verdict.splits | verdict.covers).any():
        return entries.with_each(own)
    wide = _widened(entries, new, verdict, expand)
    covers = verdict.covers.unsqueeze(1)
    own["key"] = wide["key"].where(covers, own["key"])
    own["radius"] = wide["radius"].where(verdict.covers, own["radius"])
    changed = verdict.splits | verdict.covers
    found = entries.hidden_from_rows(verdict.near.entry, changed).with_each(own)
    smaller = {name: tensor[verdict.near.entry] for name, tensor in entries.tensors.items()}
    smaller["radius"] = distance / 2 - GAP
    return found.with_each(smaller).hidden_from_rows(
        torch.arange(len(found), len(found) + rows, device=distance.device), ~verdict.splits
    )
