"""Causal tracing of one item (Meng et al. 2022, "Locating and editing factual associations in GPT").

    TE = p(answer | clean) - p(answer | corrupted)
    IE = p(answer | corrupted, with clean outputs put back) - p(answer | corrupted)

A group of positions x a window of layers x a component is put back at a time. Draws of the noise
are averaged here; items are averaged in `mmedit.trace.summary`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mmedit.cases import Example, image_name
from mmedit.trace.groups import Groups, groups_of
from mmedit.trace.item_runs import Captured, ItemRuns, Probabilities, Restorations, begin_of
from mmedit.trace.records import Restored, Scores, TraceRecord
from mmedit.trace.settings import Component, TraceSettings, window_at
from mmedit.trace.sweep import Prefixes, Sweep


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

    Costs a clean and a corrupted forward, and a row for each group, layer, component and draw, in
    forwards of at most `settings.rows` rows. A row costs the layers from the restored one on, at
    the positions from its group on. Groups before the first corrupted position cost nothing:
    putting their states back changes nothing.
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
        restored=dict(_restored(runs, item, (clean, corrupt), groups, settings)),
    )


def _restored(
    runs: ItemRuns,
    item: Corrupted,
    both: tuple[Captured, Captured],
    groups: Groups,
    settings: TraceSettings,
) -> Mapping[Component, Restored]:
    """Return, by component, the means over the draws with each group and layer put back."""
    clean, corrupt = both
    components, layers = settings.components, len(corrupt.states) - 1
    shape = (2, len(components), len(groups.groups), layers, item.draws)
    as_corrupt = torch.stack(list(corrupt.probabilities[:2])).cpu()
    found = as_corrupt[:, None, None, None].expand(shape).clone()
    for places, one in _forwards(groups, corrupt, item, settings):
        scores = runs.restored(clean, corrupt, one, item.features)
        found[(slice(None), *places)] = torch.stack(list(scores[:2])).cpu()
    first, answer = found.mean(-1).tolist()
    return {
        component: Restored(first=first[number], answer=answer[number])
        for number, component in enumerate(components)
    }


def _forwards(
    groups: Groups, corrupt: Captured, item: Corrupted, settings: TraceSettings
) -> Iterator[tuple[tuple[Tensor, ...], Restorations]]:
    """Yield what every forward puts back, with component, group, layer and draw of its rows."""
    layers = len(corrupt.states) - 1
    cells = _cells(settings, layers)
    of_layers = torch.tensor([[cell.component, cell.layer] for cell in cells])
    for start, members in _by_start(groups, corrupt.prefixes, item.first).items():
        asked = torch.cartesian_prod(
            torch.arange(len(cells)), torch.tensor(members), torch.arange(item.draws)
        )
        for part in asked.split(settings.rows):
            cell, group, draw = part.T
            chosen = [cells[number] for number in cell.tolist()]
            yield (
                (of_layers[cell, 0], group, of_layers[cell, 1], draw),
                Restorations(
                    components=[settings.components[one.component] for one in chosen],
                    windows=[one.window for one in chosen],
                    masks=groups.masks[group.to(groups.masks.device)],
                    sweep=Sweep([one.begin for one in chosen], draw, start),
                ),
            )


class _Cell(NamedTuple):
    """One component in one layer, in the order in which rows begin."""

    begin: int
    component: int
    layer: int
    window: range


def _cells(settings: TraceSettings, layers: int) -> list[_Cell]:
    cells = []
    for number, component in enumerate(settings.components):
        width = 1 if component == "block" else settings.window_of(layers)
        for layer in range(layers):
            window = window_at(layer, width, layers)
            cells.append(_Cell(begin_of(component, window), number, layer, window))
    return sorted(cells, key=lambda cell: cell[:3])


def _by_start(groups: Groups, prefixes: Prefixes, corrupted: int) -> dict[int, list[int]]:
    """Return the groups by the position that their rows begin at; without those that lie before all
    that is corrupted.
    """
    unchanged = prefixes.start_before(corrupted)
    found: dict[int, list[int]] = defaultdict(list)
    firsts, lasts = groups.masks.int().argmax(1).tolist(), _lasts(groups.masks)
    for group, (first, last) in enumerate(zip(firsts, lasts, strict=True)):
        if last >= unchanged:
            found[prefixes.start_before(first)].append(group)
    return found


def _lasts(masks: Tensor) -> list[int]:
    return (masks.shape[1] - 1 - masks.flip(1).int().argmax(1)).tolist()


def _scores(found: Probabilities) -> Scores:
    return Scores(first=tuple(found.first.tolist()), answer=tuple(found.answer.tolist()))
