"""Causal tracing of one item (Meng et al. 2022, "Locating and Editing Factual Associations").

    TE = p(answer | clean) - p(answer | corrupted)
    IE = p(answer | corrupted, with clean outputs put back) - p(answer | corrupted)

A group of positions x a window of layers x a component is put back at a time. Draws of the noise
are averaged here; items are averaged in `mmedit.trace.summary`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mmedit.cases import Example, image_name
from mmedit.trace.groups import Groups, groups_of
from mmedit.trace.item_runs import Captured, ItemRuns, Probabilities, Restorations, begin_of
from mmedit.trace.records import Cells, Restored, Scores, TraceRecord
from mmedit.trace.settings import TraceSettings, window_at
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

    Costs a clean and a corrupted forward, and a row for each group, layer, component and draw (of
    cells: in some layers), in forwards of at most `settings.rows` rows. A row costs the layers from
    the restored one on, at the positions from its group on. Groups before the first corrupted
    position cost nothing: putting their states back changes nothing.
    """
    groups = groups_of(runs.places, settings.cells, runs.image_grid)
    clean = runs.captured(1, runs.features(), settings.components)
    corrupt = runs.captured(item.draws, item.features, noise=item.noise)
    first, answer = _put_back(runs, item, (clean, corrupt), groups, settings).mean(-1)
    number = len(groups.groups)
    return TraceRecord(
        id=item.id,
        prompt=item.example.prompt,
        answer=item.example.target,
        subject=item.example.subject,
        image=image_name(item.example),
        other=item.other and image_name(item.other),
        groups=groups.groups,
        clean=_scores(clean.probabilities),
        corrupt=_scores(corrupt.probabilities),
        restored={
            component: Restored(
                first=_rows(first[place, :number]), answer=_rows(answer[place, :number])
            )
            for place, component in enumerate(settings.components)
        },
        cells=_cells_of(groups, first, answer, settings),
    )


def _cells_of(
    groups: Groups, first: Tensor, answer: Tensor, settings: TraceSettings
) -> Cells | None:
    """Return the record of the cells; None if there are none."""
    layers = settings.cell_layers_of(first.shape[-1])
    if not groups.cells or not layers:
        return None
    block = settings.components.index("block")
    chosen = [_rows(one[block, groups.cells][:, layers]) for one in (first, answer)]
    return Cells(
        grid=groups.grid,
        tokens=tuple(groups.masks[groups.cells].sum(1).tolist()),
        layers=layers,
        restored=Restored(first=chosen[0], answer=chosen[1]),
    )


def _put_back(
    runs: ItemRuns,
    item: Corrupted,
    both: tuple[Captured, Captured],
    groups: Groups,
    settings: TraceSettings,
) -> Float[Tensor, "2 components groups_and_cells layers draws"]:
    """Return the probabilities of the first token and of the answer, with each component put back
    in each group and layer, or each cell in its layers; elsewhere those of the corrupted runs.
    """
    clean, corrupt = both
    shape = (2, len(settings.components), len(groups.masks), len(corrupt.states) - 1, item.draws)
    as_corrupt = torch.stack(list(corrupt.probabilities[:2])).cpu()
    found = as_corrupt[:, None, None, None].expand(shape).clone()
    for places, one in _forwards(groups, corrupt, item, settings):
        scores = runs.restored(clean, corrupt, one, item.features)
        found[(slice(None), *places)] = torch.stack(list(scores[:2])).cpu()
    return found


def _forwards(
    groups: Groups, corrupt: Captured, item: Corrupted, settings: TraceSettings
) -> Iterator[tuple[tuple[Tensor, ...], Restorations]]:
    """Yield what every forward puts back, with component, group, layer and draw of its rows."""
    points = _points(groups, settings, len(corrupt.states) - 1)
    for start, members in _by_start(groups, corrupt.prefixes, item.first).items():
        here = [point for point in points if point.group in members]
        if not here:  # cells, without the component block
            continue
        asked = torch.cartesian_prod(torch.arange(len(here)), torch.arange(item.draws))
        for part in asked.split(settings.rows):
            chosen, draw = [here[number] for number in part[:, 0].tolist()], part[:, 1]
            places = torch.tensor([(one.component, one.group, one.layer) for one in chosen])
            yield (
                (*places.T, draw),
                Restorations(
                    components=[settings.components[one.component] for one in chosen],
                    windows=[one.window for one in chosen],
                    masks=groups.masks[places[:, 1].to(groups.masks.device)],
                    sweep=Sweep([one.begin for one in chosen], draw, start),
                ),
            )


class _Point(NamedTuple):
    """One component in one group and layer, in the order in which rows begin."""

    begin: int
    component: int
    layer: int
    group: int
    window: range


def _points(groups: Groups, settings: TraceSettings, layers: int) -> list[_Point]:
    """Return all that is put back, sorted by the layer that its rows begin at."""
    in_cells = settings.cell_layers_of(layers)
    points = []
    for number, component in enumerate(settings.components):
        width = 1 if component == "block" else settings.window_of(layers)
        for layer in range(layers):
            window = window_at(layer, width, layers)
            cells = groups.cells if component == "block" and layer in in_cells else ()
            for group in (*range(len(groups.groups)), *cells):
                begin = begin_of(component, window)
                points.append(_Point(begin, number, layer, group, window))
    return sorted(points, key=lambda point: point[:4])


def _by_start(groups: Groups, prefixes: Prefixes, corrupted: int) -> dict[int, set[int]]:
    """Return the groups by the position that their rows begin at; without those that lie before all
    that is corrupted.
    """
    unchanged = prefixes.start_before(corrupted)
    found: dict[int, set[int]] = defaultdict(set)
    firsts, lasts = groups.masks.int().argmax(1).tolist(), _lasts(groups.masks)
    for group, (first, last) in enumerate(zip(firsts, lasts, strict=True)):
        if last >= unchanged:
            found[prefixes.start_before(first)].add(group)
    return found


def _lasts(masks: Tensor) -> list[int]:
    return (masks.shape[1] - 1 - masks.flip(1).int().argmax(1)).tolist()


def _scores(found: Probabilities) -> Scores:
    return Scores(first=tuple(found.first.tolist()), answer=tuple(found.answer.tolist()))


def _rows(values: Float[Tensor, "rows columns"]) -> tuple[tuple[float, ...], ...]:
    return tuple(map(tuple, values.tolist()))
