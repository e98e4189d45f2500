"""The table of a search, from the files in its folder alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from mmedit.catalog import read_yaml
from mmedit.errors import DataError, RunError
from mmedit.records.schema import RunManifest
from mmedit.records.store import read_manifest, read_run
from mmedit.report.points import PointRecords, PointScores, ranked
from mmedit.report.render.cells import TIED
from mmedit.report.render.points import MEAN, as_csv, markdown, setting_names
from mmedit.report.significance import ALPHA
from mmedit.settings import Settings, number_or_same, validate
from mmedit.storage import make_folder, write_atomically
from mmedit.tune.grid import Point, folder_name, label_of, settings_of

SEARCH = "search.json"
TABLE = "table.md"
CSV = "table.csv"
BEST = "best.yaml"
FAILURE = "failed.txt"
"""File in the folder of a point whose training diverged, with the reason."""


class Search(Settings):
    """Settings of a search. They are noted in the folder, which takes no other search."""

    vlm: str
    editor: str
    method: str
    dataset: str
    mode: str
    limit: int
    """Number of validation cases."""
    seed: int
    settings: tuple[str, ...]
    """Settings of all points, in the form that `--set` takes."""
    grid_size: int
    """Number of points of the whole grid."""
    points: tuple[Point, ...]
    """The points that are measured, in the form that `--set` takes."""

    @classmethod
    def read(cls, folder: Path) -> Search:
        """Read the search of a folder. Raises ConfigError."""
        return validate(cls, read_yaml(folder / SEARCH), str(folder / SEARCH))

    def write(self, folder: Path) -> None:
        """Note the search in its folder."""
        write_atomically(folder / SEARCH, self.model_dump_json(indent=1).encode() + b"\n")

    def require_continues(self, folder: Path) -> None:
        """Make the folder. Raises RunError if it holds another search; one of fewer points, all of
        which are among these, may grow.
        """
        if (folder / SEARCH).exists():
            earlier = Search.read(folder)
            for name in ("vlm", "editor", "dataset", "mode", "limit", "seed", "settings"):
                there, here = getattr(earlier, name), getattr(self, name)
                if there != here:
                    raise RunError(
                        f"{folder} holds a search with {name}={there}, and this one has "
                        f"{name}={here}. Use the same value, or choose another --out."
                    )
            if missing := [point for point in earlier.points if point not in self.points]:
                raise RunError(
                    f"{folder} holds a search of another grid: it has the point "
                    f"{label_of(missing[0])}, which this one lacks. Keep its points and add others "
                    "(--points too: the larger number), or choose another --out."
                )
        make_folder(folder)


@dataclass(frozen=True)
class SearchTable:
    """The points of a search that are finished, the best first."""

    folder: Path
    search: Search
    points: tuple[PointScores, ...]
    manifests: tuple[RunManifest | None, ...]
    """The manifest of the run of every point; None for one whose training diverged."""

    @property
    def best(self) -> PointScores | None:
        """The best point; None if no point could be ranked."""
        return None if self.points[0].failure else self.points[0]

    @property
    def title(self) -> str:
        """The title of the page."""
        search = self.search
        mode = "" if search.mode == "independent" else f", {search.mode}"
        return f"Settings of {search.editor} on {search.vlm}, {search.dataset}{mode}"


def is_finished(folder: Path) -> bool:
    """Return whether a point is finished: its table is written after its last record."""
    return (folder / TABLE).exists() or (folder / FAILURE).exists()


def read_table(folder: Path) -> SearchTable:
    """Return the table of all points that are finished. Raises DataError if there are none."""
    search = Search.read(folder)
    places = {point: folder / folder_name(point) for point in search.points}
    manifests = {
        label_of(point): read_manifest(place) if (place / TABLE).exists() else None
        for point, place in places.items()
        if is_finished(place)
    }
    measured = [_measured(point, place) for point, place in places.items() if is_finished(place)]
    if not measured:
        raise DataError(f"{folder} holds no finished point yet; let the search go on")
    points = tuple(ranked(measured))
    return SearchTable(folder, search, points, tuple(manifests[_text(one)] for one in points))


def write_table(folder: Path) -> SearchTable:
    """Write `table.md`, `table.csv` and `best.yaml` of a search; return the table."""
    table = read_table(folder)
    content = {
        TABLE: markdown(table.title, table.points, notes_of(table)),
        CSV: as_csv(table.points),
    }
    if table.best is not None:
        content[BEST] = _best_file(table)
    for name, text in content.items():
        write_atomically(folder / name, text.encode())
    return table


def _measured(point: Point, place: Path) -> PointRecords:
    """Read one finished point."""
    if not (place / TABLE).exists():
        reason = (place / FAILURE).read_text(encoding="utf-8").strip()
        return PointRecords(settings_of(point), failure=f"training diverged: {reason}")
    records, manifest = read_run(place)
    [label] = manifest.editors
    return PointRecords(
        settings_of(point),
        [record for record in records if record.editor == label],
        manifest.training_seconds.get(label),
    )


def notes_of(table: SearchTable) -> list[str]:
    """Return what a reader of the table must know: the cases, the points, and how far the choice
    can be trusted.
    """
    search, number = table.search, len(table.search.points)
    drawn = f"{number:,} of the grid's {search.grid_size:,} points, drawn with seed {search.seed}"
    of_all = drawn if number < search.grid_size else f"All {number:,} points of the grid"
    unfinished = number - len(table.points)
    cases = next((one.cases or 0 for one in table.manifests if one is not None), search.limit)
    return [
        f"Cases: {cases:,} validation cases of {search.dataset} (seed {search.seed}). None of them "
        "is a test case, and no editor of this search was trained on them.",
        f"{of_all}{f'; {unfinished:,} are not finished' if unfinished else ''}.",
        f"{MEAN}: mean over the probes of their exact match in percent (of locality: agreement "
        "with the base model), and half of its 95 % interval (bootstrap over edits; those "
        "of one request or image together). Equal points are ordered by reliability, then by "
        "s/edit.",
        *_on_best(table),
        *(
            f"Not ranked: {_text(point)}: {point.failure}."
            for point in table.points
            if point.failure
        ),
    ]


def _on_best(table: SearchTable) -> list[str]:
    best = table.best
    if best is None:
        return ["No point could be ranked: choose other values."]
    others = [point for point in table.points[1:] if not point.failure]
    tied = sum(point.is_tied for point in others)
    mean = best.mean
    notes = [f"Best: {_text(best)}, with {mean.mean:.1f} ({mean.low:.1f} to {mean.high:.1f})."]
    if others:
        notes[0] += (
            f" {f'{tied:,}' if tied else 'None'} of the other {len(others):,} points cannot be "
            f"told apart from it ({TIED}: p ≥ {ALPHA:g} in a paired test on the edits, "
            "Holm-corrected)."
        )
        notes.append(
            f"The best of {len(others) + 1:,} points on {best.mean.n:,} cases looks better than it "
            "is, because it was chosen on these cases: report its score on the test cases."
        )
    if edges := _at_edge(best, table.points):
        notes.append(f"At an end of its list: {', '.join(edges)}. A value beyond may be better.")
    return notes


def _at_edge(best: PointScores, points: Sequence[PointScores]) -> list[str]:
    """Return the numeric settings whose best value is the smallest or the largest one tried."""
    found = []
    for key in setting_names(points):
        tried = {_number(point.settings.get(key)) for point in points}
        numbers = sorted(number for number in tried if number is not None)
        if len(numbers) > 1 and _number(best.settings.get(key)) in (numbers[0], numbers[-1]):
            found.append(f"{key}={best.settings[key]}")
    return found


def _number(text: str | None) -> float | None:
    value = number_or_same(text)
    return value if isinstance(value, float) else None


def _text(point: PointScores) -> str:
    return ", ".join(f"{key}={value}" for key, value in point.settings.items())


def _best_file(table: SearchTable) -> str:
    """Write the best point as a file of an editor, with all of its settings."""
    manifest, search = table.manifests[0], table.search
    assert manifest is not None
    assert table.best is not None
    [label] = manifest.editors
    editor = {"method": search.method, "label": label, "settings": manifest.config[label]}
    return (
        f"# The best of {len(table.points)} points on validation cases of {search.dataset}, for "
        f"{search.vlm}: {_text(table.best)}\n{yaml.safe_dump(editor, sort_keys=False)}"
    )
