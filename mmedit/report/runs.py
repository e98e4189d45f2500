"""What tables, comparisons and plots read: the records of run folders, every row under a label of
its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mmedit.errors import DataError, UnknownNameError
from mmedit.records.schema import Record, notes_of
from mmedit.records.store import read_manifest, read_records
from mmedit.report.scores import all_by_editor, by_editor, is_base


@dataclass(frozen=True)
class Origin:
    """What the records of a row were measured on, as the run's manifest calls it."""

    vlm: str
    dataset: str


@dataclass(frozen=True)
class Measured:
    """The records of one or more runs, with what their manifests tell of each label."""

    records: list[Record]
    training_seconds: dict[str, float]
    origins: dict[str, Origin]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Method:
    """One side of a comparison: the records of one editor in one run."""

    run: Path
    editor: str
    origin: Origin
    records: list[Record]

    @property
    def label(self) -> str:
        """The editor with its run."""
        return f"{self.editor} in {self.run}"


def read_runs(paths: Iterable[Path], *, edits: int | None = None) -> Measured:
    """Read run folders. Where a label is taken by an earlier run, the row is called LABEL (RUN).

    The unedited model of a later run is left out where an earlier one measured it on the same
    edits. `edits`: of sequences only what was tested after so many edits. Raises DataError.
    """
    records: list[Record] = []
    training_seconds: dict[str, float] = {}
    origins: dict[str, Origin] = {}
    bases: set[tuple[object, ...]] = set()
    notes: dict[str, None] = {}
    for path in dict.fromkeys(paths):
        manifest = read_manifest(path)
        notes |= dict.fromkeys(notes_of(manifest))
        made = (manifest.vlm, manifest.dataset, manifest.seed, manifest.limit)
        read = read_records(path)
        for editor, found in all_by_editor(at_checkpoint(read, edits, path)).items():
            if is_base(editor) and made in bases:
                continue
            label = f"{editor} ({path})" if editor in origins else editor
            origins[label] = Origin(manifest.vlm, manifest.dataset)
            records += [record.model_copy(update={"editor": label}) for record in found]
            if editor in manifest.training_seconds:
                training_seconds[label] = manifest.training_seconds[editor]
        bases.add(made)
    if edits is not None:
        notes[f"Here after {edits:,} edits."] = None
    return Measured(records, training_seconds, origins, tuple(notes))


def at_checkpoint(records: list[Record], edits: int | None, run: Path) -> list[Record]:
    """The records of the first so many edits; all, for None.

    The unedited model keeps its answers to those edits. Raises DataError.
    """
    stops = {r.edits for r in records if r.test == "checkpoint" and not is_base(r.editor)}
    if edits is None:
        return records
    if edits not in stops:
        there = ", ".join(map(str, sorted(stops))) or "none, as it is no sequence"
        raise DataError(f"{run} was not tested after {edits} edits; its checkpoints: {there}")
    base = [r for r in records if is_base(r.editor) and r.place <= edits]
    return [*base, *(r for r in records if r.edits <= edits and not is_base(r.editor))]


def read_methods(argument: str) -> list[Method]:
    """The methods that RUN or RUN:EDITOR names: all editors of a run but the unedited model, or the
    one named, which may be "base".
    """
    path, _, wanted = argument.rpartition(":")
    if Path(argument).exists() or not path:
        path, wanted = argument, ""
    manifest = read_manifest(Path(path))
    origin = Origin(manifest.vlm, manifest.dataset)
    found = by_editor(read_records(Path(path)))
    if wanted and wanted not in found:
        raise UnknownNameError(f"editor in {path}", wanted, found)
    editors = [wanted] if wanted else [e for e in found if not is_base(e)] or list(found)
    return [Method(Path(path), editor, origin, found[editor]) for editor in editors]


def matched_methods(first: str, second: str) -> list[tuple[Method, Method]]:
    """The pairs that a comparison of two arguments means: one method each, or the labels of both.

    Raises DataError where that is not clear.
    """
    ours, theirs = read_methods(first), read_methods(second)
    if len(ours) == len(theirs) == 1:
        return [(ours[0], theirs[0])]
    by_label = {method.editor: method for method in theirs}
    pairs = [(method, by_label[method.editor]) for method in ours if method.editor in by_label]
    same = ours[0].run.resolve() == theirs[0].run.resolve()
    if not pairs or (same and all(a.editor == b.editor for a, b in pairs)):
        raise DataError(
            f"{first} and {second} leave open what to compare; write RUN:EDITOR. There are: "
            f"{', '.join(f'{method.run}:{method.editor}' for method in [*ours, *theirs])}"
        )
    return pairs
