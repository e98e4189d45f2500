"""Causal tracing of one item (Meng et al. 2022, "Locating and editing factual associations in GPT").

    TE = p(answer | clean) - p(answer | corrupted)
    IE = p(answer | corrupted, with clean outputs put back) - p(answer | corrupted)

A group of positions x a window of layers x a component is put back at a time. Draws of the noise
are averaged here; items are averaged in `mmedit.trace.summary`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmedit.cases import Example, image_name
from mmedit.trace.groups import Groups, groups_of
from mmedit.trace.item_runs import Captured, ItemRuns, Probabilities, Restoration
from mmedit.trace.records import Restored, Scores, TraceRecord
from mmedit.trace.settings import Component, TraceSettings, window_at

NEAR = 8
"""Groups that begin within so many positions share a forward: a forward of few rows costs more for
each of them than computing some positions that did not change.
"""


@dataclass(frozen=True, eq=False)
class Corrupted:
    """One item with what its corrupted runs read, a row for each draw."""

    id: str
    example: Example
    features: Sequence[Tensor]
    """The features of the images, by draw; none if the text is corrupted and there is no image."""
    draws: int
    noise: Tensor | None = None
    """The noise on embeddings, [draws, sequence, hidden]; None if the image is corrupted."""
    first: int = 0
    """The first position that is corrupted."""
    other: Example | None = None
    """The item whose image takes the place of this item's."""


def trace_item(runs: ItemRuns, item: Corrupted, settings: TraceSettings) -> TraceRecord:
    """Trace one item.

    Costs a clean and a corrupted forward, and for each layer and component forwards of at most
    `settings.rows` rows, a row for each group and draw. Each begins at the restored layer and at
    the position of the group. Groups before the first corrupted position cost nothing: putting
    their states back changes nothing.
    """
    groups = groups_of(runs.places, settings.cells)
    clean = runs.captured(1, runs.features(), settings.components)
    corrupt = runs.captured(item.draws, item.features, noise=item.noise)
    return TraceRecord(
        id=item.id,
        prompt=item.example.prompt,
        answer=item.example.target,
        subject=item.example.subject,
        image=image_name(item.example),
        groups=groups.groups,
        grid=groups.grid,
        other=item.other and image_name(item.other),
        clean=_scores(clean.probabilities),
        corrupt=_scores(corrupt.probabilities),
        restored={
            component: _restored(runs, item, (clean, corrupt), groups, (component, settings))
            for component in settings.components
        },
    )


def _restored(
    runs: ItemRuns,
    item: Corrupted,
    both: tuple[Captured, Captured],
    groups: Groups,
    how: tuple[Component, TraceSettings],
) -> Restored:
    """Return the means over the draws, with one component restored in each group and layer."""
    (clean, corrupt), (component, settings) = both, how
    layers = len(corrupt.states) - 1
    width = 1 if component == "block" else settings.window_of(layers)
    batches = list(_batches(groups, corrupt, item, settings.rows))
    shape = (2, len(groups.groups), layers, item.draws)
    found = torch.stack(list(corrupt.probabilities[:2])).cpu()[:, None, None].expand(shape).clone()
    for layer in range(layers):
        window = window_at(layer, width, layers)
        for group, draw, start in batches:
            one = Restoration(component, window, groups.masks[group], draw, start)
            scores = runs.restored(clean, corrupt, one, item.features)
            found[:, group, layer, draw] = torch.stack(list(scores[:2])).cpu()
    first, answer = found.mean(-1).tolist()
    return Restored(first=first, answer=answer)


def _batches(
    groups: Groups, corrupt: Captured, item: Corrupted, rows: int
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Yield group, draw and start of the rows of every forward."""
    prefixes = corrupt.prefixes
    unchanged = prefixes.start_before(item.first)
    together: list[tuple[list[int], int]] = []
    firsts, lasts = groups.masks.int().argmax(1).tolist(), _lasts(groups.masks)
    for group in sorted(range(len(firsts)), key=lambda group: firsts[group]):
        if lasts[group] < unchanged:
            continue
        start = prefixes.start_before(firsts[group])
        if together and start - together[-1][1] < NEAR:
            together[-1][0].append(group)
        else:
            together.append(([group], start))
    for members, start in together:
        pairs = torch.cartesian_prod(torch.tensor(members), torch.arange(item.draws))
        for part in pairs.reshape(-1, 2).split(rows):
            yield part[:, 0], part[:, 1], start


def _lasts(masks: Tensor) -> list[int]:
    return (masks.shape[1] - 1 - masks.flip(1).int().argmax(1)).tolist()


def _scores(found: Probabilities) -> Scores:
    return Scores(first=tuple(found.first.tolist()), answer=tuple(found.answer.tolist()))
