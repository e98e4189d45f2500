"""Read run folders for tables, comparisons and plots. Every row has a label of its own."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mmedit.errors import DataError, UnknownNameError
from mmedit.records.schema import Record, RunManifest, notes_of
from mmedit.records.store import read_manifest, read_records
from mmedit.report.scores import all_by_editor, by_editor, is_base

INDEPENDENT = "independent"


@dataclass(frozen=True)
class Origin:
    """The VLM, dataset and mode of the records of a row, as the run's manifest names them."""

    vlm: str
    dataset: str
    mode: str = INDEPENDENT

    def __str__(self) -> str:
        mode = [] if self.mode == INDEPENDENT else [self.mode]
        return ", ".join([self.vlm, self.dataset, *mode])


@dataclass(frozen=True)
class Measured:
    """The records of one or more runs, with what their manifests say about each label."""

    records: list[Record]
    training_seconds: dict[str, float]
    origins: dict[str, Origin]
    notes: tuple[str, ...] = ()
    latencies: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Seconds of edits that were made one at a time, by label."""

    @property
    def title(self) -> str:
        """VLM, dataset and mode of the rows, each combination once: "embedded, easyvqa"."""
        return "; ".join(dict.fromkeys(map(str, self.origins.values())))


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


@dataclass(frozen=True)
class _Run:
    path: Path
    manifest: RunManifest
    rows: Mapping[str, list[Record]]
    """Records by editor."""

    @property
    def origin(self) -> Origin:
        return Origin(self.manifest.vlm, self.manifest.dataset, mode_of(self.manifest))


def mode_of(manifest: RunManifest) -> str:
    """Return how the edits of a run were made: "independent", "batch" or "sequential"."""
    return str(manifest.run.mode["kind"])


def read_runs(paths: Iterable[Path], *, edits: int | None = None) -> Measured:
    """Read run folders. An editor that several runs have becomes LABEL (RUN) in each of them.

    The base model of a later run is left out if an earlier run measured it on the same edits in the
    same mode. `edits` selects of sequences what was tested after this many edits. Raises DataError.
    """
    runs = _with_each_base_once(_read(path, edits) for path in dict.fromkeys(paths))
    labels = _labels(runs)
    training_seconds = {
        labels[run.path, editor]: seconds
        for run in runs
        for editor, seconds in run.manifest.training_seconds.items()
        if editor in run.rows
    }
    return Measured(
        [
            _labelled(record, labels[run.path, editor])
            for run in runs
            for editor, found in run.rows.items()
            for record in found
        ],
        training_seconds,
        {labels[run.path, editor]: run.origin for run in runs for editor in run.rows},
        tuple(_notes(runs, labels, edits)),
        {
            labels[run.path, editor]: seconds
            for run in runs
            for editor, seconds in run.manifest.latencies.items()
            if editor in run.rows
        },
    )


def _read(path: Path, edits: int | None) -> _Run:
    records = at_checkpoint(read_records(path), edits, path)
    return _Run(path, read_manifest(path), all_by_editor(records))


def _with_each_base_once(runs: Iterable[_Run]) -> list[_Run]:
    measured: set[str] = set()
    kept = []
    for run in runs:
        manifest = run.manifest
        made = (manifest.vlm, manifest.dataset, manifest.seed, manifest.limit, manifest.run.mode)
        key = json.dumps(made, sort_keys=True)
        rows = {e: found for e, found in run.rows.items() if key not in measured or not is_base(e)}
        kept.append(replace(run, rows=rows))
        measured.add(key)
    return kept


def _labels(runs: Sequence[_Run]) -> dict[tuple[Path, str], str]:
    """Name every row, by run and editor: the editor alone if no other row has this name."""
    rows = [(run.path, editor) for run in runs for editor in run.rows]
    named = Counter(editor for _, editor in rows)
    labels = {
        (path, editor): editor if named[editor] == 1 else f"{editor} ({path})"
        for path, editor in rows
    }
    if len(set(labels.values())) == len(rows):
        return labels
    return {(path, editor): f"{editor} ({path})" for path, editor in rows}


def _labelled(record: Record, label: str) -> Record:
    return record if record.editor == label else record.model_copy(update={"editor": label})


def _notes(
    runs: Sequence[_Run], labels: Mapping[tuple[Path, str], str], edits: int | None
) -> list[str]:
    """List the notes of all runs. A note that not all runs share names the rows it is about."""
    of_runs = [notes_of(run.manifest) for run in runs]
    if len({run.origin.mode for run in runs}) > 1:
        alone = "Each edit was made by itself, from the base model."
        of_runs = [
            [*notes, *([alone] if run.origin.mode == INDEPENDENT else [])]
            for run, notes in zip(runs, of_runs, strict=True)
        ]
    notes: dict[str, None] = {}
    for note in dict.fromkeys(note for of_run in of_runs for note in of_run):
        having = [run for run, of_run in zip(runs, of_runs, strict=True) if note in of_run]
        rows = [labels[run.path, e] for run in having for e in run.rows if not is_base(e)]
        about = f"{', '.join(rows)}: " if len(having) < len(runs) and rows else ""
        notes[about + note] = None
    if edits is not None:
        notes[f"Tested after {edits:,} edits."] = None
    return list(notes)


def at_checkpoint(records: list[Record], edits: int | None, run: Path) -> list[Record]:
    """Return the records of the first `edits` edits of a run, all for None.

    The base model keeps its answers to these edits. Raises DataError.
    """
    stops = {r.edits for r in records if r.test == "checkpoint" and not is_base(r.editor)}
    if edits is None:
        return records
    if edits not in stops:
        there = ", ".join(map(str, sorted(stops)))
        hint = f"its checkpoints are {there}" if stops else "it has no checkpoints"
        raise DataError(
            f"{run} was not tested after {edits} edits: {hint}; choose one of the checkpoints of a "
            "sequence"
        )
    base = [r for r in records if is_base(r.editor) and r.place <= edits]
    return [*base, *(r for r in records if r.edits <= edits and not is_base(r.editor))]


def read_methods(argument: str) -> list[Method]:
    """Read the methods that RUN or RUN:EDITOR names: all editors of a run except the base model, or
    the one named, which may be "base".
    """
    path, _, named = argument.rpartition(":")
    if Path(argument).exists() or not path:
        path, named = argument, ""
    run = _read(Path(path), None)
    found = by_editor(record for records in run.rows.values() for record in records)
    if named and named not in found:
        raise UnknownNameError(f"editor in {path}", named, found)
    editors = [named] if named else [e for e in found if not is_base(e)] or list(found)
    return [Method(run.path, editor, run.origin, found[editor]) for editor in editors]


def matched_methods(first: str, second: str) -> list[tuple[Method, Method]]:
    """Pair the methods of two runs: one method each, or the methods with the same label.

    Raises DataError if the pairs are not clear.
    """
    ours, theirs = read_methods(first), read_methods(second)
    if len(ours) == len(theirs) == 1:
        return [(ours[0], theirs[0])]
    by_label = {method.editor: method for method in theirs}
    pairs = [(method, by_label[method.editor]) for method in ours if method.editor in by_label]
    same = ours[0].run.resolve() == theirs[0].run.resolve()
    if not pairs or (same and all(a.editor == b.editor for a, b in pairs)):
        raise DataError(
            f"cannot tell which methods of {first} and {second} to compare; write RUN:EDITOR. "
            f"Known: {', '.join(f'{method.run}:{method.editor}' for method in [*ours, *theirs])}"
        )
    return pairs
