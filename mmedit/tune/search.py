"""The search of an editor's settings: a run for every point of a grid, on validation cases.

    block = Block(editors="ft", dataset="easyvqa", limit=50)
    table = run_search(block, {"lr": [1e-4, 1e-3], "steps": [10, 20]}, "tune/ft")
    table.best.settings

tune/ft/search.json             what is searched, and the points
tune/ft/lr=0.001,steps=10/      an ordinary run folder for each point
tune/ft/table.md, table.csv     all points, the best first
tune/ft/best.yaml               the best settings: mmedit bench --editor tune/ft/best.yaml

The table is made from these folders alone. The same call continues a search that was stopped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmedit.config import load_editors, read_overrides
from mmedit.config_checks import require_number
from mmedit.config_files import Block, require_names, smallest
from mmedit.editors.base import Editor
from mmedit.errors import ConfigError, DivergedError, one_line
from mmedit.processes import on_main
from mmedit.progress import Progress, by_itself, silent
from mmedit.records.store import read_manifest
from mmedit.settings import Overrides
from mmedit.storage import require_path, write_atomically
from mmedit.suite import BlockPlan, Reusable, RunOptions, load_vlm_for, prepare, run_block
from mmedit.tune.grid import Point, folder_name, key_of, label_of, points_of, subset
from mmedit.tune.table import FAILURE, Search, SearchTable, is_finished, write_table

LIMIT = 100
"""Number of validation cases, if none is given."""


@dataclass(frozen=True)
class SearchPlan:
    """A search whose points were all checked, before anything costs time."""

    folder: Path
    search: Search
    plans: tuple[BlockPlan, ...]
    """The runs of the points, in their order."""


def run_search(
    block: Block,
    grid: Mapping[str, Any],
    folder: str | Path,
    *,
    points: int | None = None,
    options: RunOptions | None = None,
    progress: Progress | None = None,
) -> SearchTable:
    """Run every point of a grid, or `points` of them drawn by the seed; return the table.

    `grid` has a list of values for each setting of the block's one editor. The points are measured
    on the first validation cases of the dataset: `block.limit`, or 100. No answers are generated
    unless `options` say so. Raises MmeditError.
    """
    progress = progress or by_itself()
    plan = prepare_search(block, grid, Path(folder), points=points, options=options)
    for _ in measure_points(plan, progress=progress):
        pass
    return on_main(lambda: write_table(plan.folder))


def prepare_search(
    block: Block,
    grid: Mapping[str, Any],
    folder: Path,
    *,
    points: int | None = None,
    options: RunOptions | None = None,
) -> SearchPlan:
    """Check all points of a search, and that the folder is new or of this search. The VLM is not
    loaded. Raises MmeditError.
    """
    require_path(folder)
    require_number("points", points, least=1)
    require_names(block)
    if len(block.editors) != 1:
        raise ConfigError(f"a search has one editor; here are {', '.join(block.editors)}")
    options = options or RunOptions(generate=False)
    limit = smallest(block.limit, options.limit) or LIMIT
    block = block.model_copy(update={"split": "validation", "limit": limit})
    [editor] = block.editors
    whole = points_of(grid, editor)
    chosen = subset(whole, points, options.seed)
    overrides = read_overrides(block.settings) | options.overrides
    _require_apart(chosen, overrides, editor)
    editors = [_editor(block, overrides | Overrides.parse(point)) for point in chosen]
    search = Search(
        vlm=block.vlm,
        editor=editor,
        method=editors[0].method,
        dataset=block.dataset,
        mode=block.mode,
        limit=limit,
        seed=options.seed,
        settings=overrides.written,
        grid_size=len(whole),
        points=chosen,
    )
    search.require_continues(folder)
    return SearchPlan(folder, search, tuple(_plans(block, chosen, folder, options)))


def measure_points(plan: SearchPlan, *, progress: Progress = silent) -> Iterator[BlockPlan]:
    """Run the points that are not finished, one after another; yield each one before it begins.

    A training that diverges is noted in the folder of its point, and the search goes on. Must be
    called by all processes of `accelerate launch`. Raises MmeditError.
    """
    on_main(lambda: plan.search.write(plan.folder))
    left = [one for one in plan.plans if not is_finished(one.folder)]
    if not left:
        return
    reusable = Reusable(fitted=_fitted_before(plan))
    vlm = load_vlm_for(left[0], reusable, progress)
    reusable = replace(reusable, vlm=vlm, vlm_file=left[0].vlm_file)
    for one in left:
        for editor in one.plan.editors.values():
            editor.require_fits(vlm)
    for one in left:
        yield one
        try:
            _, reusable = run_block(one, reusable, progress=progress)
        except DivergedError as error:
            note = f"{one_line(error)}\n".encode()
            on_main(lambda place=one.folder / FAILURE, note=note: write_atomically(place, note))


def _plans(
    block: Block, points: tuple[Point, ...], folder: Path, options: RunOptions
) -> Iterator[BlockPlan]:
    cases = None
    for point in points:
        name = folder_name(point)
        one = block.model_copy(
            update={"settings": (*block.settings, *point), "title": label_of(point)}
        )
        plan = prepare(name, one, folder / name, options, cases=cases)
        cases = plan.read
        yield plan


def _editor(block: Block, overrides: Overrides) -> Editor:
    """Return the editor of a point. Raises ConfigError for settings that it does not take."""
    [editor] = load_editors(block.editors, block.vlm, overrides).values()
    return editor


def _require_apart(points: tuple[Point, ...], overrides: Overrides, editor: str) -> None:
    """Raise ConfigError if a setting of the grid is set for all points too."""
    fixed = {key_of(text).removeprefix(f"{editor}.") for text in overrides.written}
    for key in (key_of(text) for point in points for text in point):
        if key in fixed:
            raise ConfigError(
                f"{key} is in the grid, and is set for all points too; leave out one of the two"
            )


def _fitted_before(plan: SearchPlan) -> dict[tuple[Any, ...], Any]:
    """Return the editors that an earlier part of the search has fitted."""
    fitted = {}
    for one in plan.plans:
        if is_finished(one.folder) and not (one.folder / FAILURE).exists():
            seconds = read_manifest(one.folder).training_seconds
            for label, found in one.plan.fitted_in(one.folder, seconds).items():
                if found.folder.is_dir():
                    fitted[one.trainings[label]] = found
    return fitted
