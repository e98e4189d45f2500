"""Read run folders for tables and plots: rows that may be compared, each with a label of its own.

Rows may be compared if they are of one mode, VLM and dataset, with the same cases. Runs that differ
in one of these make several tables.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mmedit.errors import DataError
from mmedit.records.notes import notes_of
from mmedit.records.schema import Record, RunManifest
from mmedit.records.store import read_run
from mmedit.report.checkpoints import Checkpoint, after, complete_checkpoints, last_shared
from mmedit.report.scores import all_by_editor, is_base

INDEPENDENT, SEQUENTIAL = "independent", "sequential"
_PLACING = ("vlm.batch_size", "vlm.device_map", "vlm.max_memory", "vlm.offload_folder")
"""Settings of a VLM that change none of its answers."""


@dataclass(frozen=True)
class Origin:
    """The VLM, dataset and mode of the records of a row, as the run's manifest names them."""

    vlm: str
    dataset: str
    mode: str = INDEPENDENT
    protocol: Mapping[str, Any] | None = None
    """Image size and text format of the VLM; None if the run does not say them."""

    def __str__(self) -> str:
        mode = [] if self.mode == INDEPENDENT else [self.mode]
        return ", ".join([self.vlm, self.dataset, *mode])


@dataclass(frozen=True)
class Measured:
    """The rows of one table: the records of one or more runs that may be compared."""

    records: list[Record]
    training_seconds: dict[str, float]
    origins: dict[str, Origin]
    """Origin of each row, by its label."""
    notes: tuple[str, ...] = ()
    latencies: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Seconds of edits that were made one at a time, by label."""
    title: str = ""
    """VLM, dataset and mode of the rows, and whatever tells this table from the others."""

    @property
    def origin(self) -> Origin:
        """The origin of the first row."""
        return next(iter(self.origins.values()))


class RunRecords(NamedTuple):
    """The records of one run."""

    path: Path
    manifest: RunManifest
    rows: Mapping[str, Sequence[Record]]
    """Records by editor."""

    @property
    def origin(self) -> Origin:
        """VLM, dataset and mode of the run."""
        manifest = self.manifest
        protocol = manifest.run.protocol or None
        return Origin(manifest.vlm, manifest.dataset, mode_of(manifest), protocol)


def mode_of(manifest: RunManifest) -> str:
    """Return how the edits of a run were made: "independent", "batch" or "sequential"."""
    return str(manifest.run.mode["kind"])


def orders_of(manifest: RunManifest) -> int:
    """Return the number of orders of a sequence; 1 in another mode."""
    return int(manifest.run.mode.get("orders", 1))


def read_runs(paths: Iterable[Path], *, edits: int | None = None) -> list[Measured]:
    """Read run folders, as one `Measured` for each set of rows that may be compared.

    An editor that several runs of a set have becomes LABEL (RUN) in each of them. The base model of
    a later run is left out if an earlier run measured it on the same edits. A sequence is shown at
    the last checkpoint that all rows have, or after `edits` edits. Raises DataError.
    """
    runs = [read_one(path) for path in dict.fromkeys(paths)]
    if edits is not None:
        for run in runs:
            _require_checkpoint(run, edits)
    groups: dict[str, list[RunRecords]] = {}
    for run in runs:
        groups.setdefault(_same(run.manifest), []).append(run)
    titles = _titles(list(groups.values()))
    return [
        _measured(group, title, edits) for group, title in zip(groups.values(), titles, strict=True)
    ]


def measured_run(
    records: Iterable[Record], manifest: RunManifest, path: Path | None = None
) -> Measured:
    """Return the rows of the table of one run, as `read_runs` would read them from its folder."""
    run = RunRecords(path or Path(), manifest, all_by_editor(records))
    return _measured([run], str(run.origin), None)


def read_one(path: Path) -> RunRecords:
    """Read one run folder. Raises DataError."""
    records, manifest = read_run(path)
    return RunRecords(path, manifest, all_by_editor(records))


def _same(manifest: RunManifest) -> str:
    """Return a text that two runs share if their rows may be compared."""
    vlm, dataset = (manifest.hashes.get(name) for name in ("vlm", "dataset"))
    overrides = sorted(
        text
        for text in manifest.run.overrides
        if (text.startswith("vlm.") and text.partition("=")[0] not in _PLACING)
        or (text.startswith("dataset.") and dataset is None)
    )
    cases = [dataset] if dataset else [manifest.dataset, manifest.limit]
    made = [vlm or manifest.vlm, *cases, manifest.seed, manifest.run.mode, overrides]
    return json.dumps(made, sort_keys=True)


def _titles(groups: Sequence[Sequence[RunRecords]]) -> list[str]:
    """Name each group by VLM, dataset and mode, and by what else it takes to tell them apart."""
    titles = [str(group[0].origin) for group in groups]
    for more in (_settings_of, _runs_of):
        shared = {title for title, number in Counter(titles).items() if number > 1}
        titles = [
            f"{title}, {more(group)}" if title in shared else title
            for title, group in zip(titles, groups, strict=True)
        ]
    return titles


def _settings_of(group: Sequence[RunRecords]) -> str:
    manifest = group[0].manifest
    mode = {key: value for key, value in manifest.run.mode.items() if key != "kind"}
    limit = "all cases" if manifest.limit is None else f"limit {manifest.limit:,}"
    settings = [f"{key}={json.dumps(value)}" for key, value in mode.items()]
    return ", ".join([*settings, limit, f"seed {manifest.seed}"])


def _runs_of(group: Sequence[RunRecords]) -> str:
    return ", ".join(str(run.path) for run in group)


def _require_checkpoint(run: RunRecords, edits: int) -> None:
    """Raise DataError if no method of the run was tested after this number of edits."""
    orders = orders_of(run.manifest)
    stops = set().union(
        *(complete_checkpoints(found, orders) for e, found in run.rows.items() if not is_base(e))
    )
    if edits not in stops:
        there = ", ".join(map(str, sorted(stops)))
        hint = f"its checkpoints are {there}" if stops else "it has no checkpoints"
        raise DataError(
            f"{run.path} was not tested after {edits} edits: {hint}; choose one of the checkpoints "
            "of a sequence"
        )


def _measured(runs: Sequence[RunRecords], title: str, edits: int | None) -> Measured:
    """Put the rows of runs that may be compared into one table."""
    runs = _with_each_base_once(runs)
    labels = _labels(runs)
    rows = {
        labels[run.path, editor]: [_labelled(record, labels[run.path, editor]) for record in found]
        for run in runs
        for editor, found in run.rows.items()
    }
    orders = orders_of(runs[0].manifest)
    checkpoint: Checkpoint | None = None
    if mode_of(runs[0].manifest) == SEQUENTIAL:
        checkpoint = last_shared(rows, orders) if edits is None else after(rows, edits, orders)
        rows = _ready(rows) if checkpoint is None else checkpoint.rows
    known = {labels[run.path, e]: (run, e) for run in runs for e in run.rows}
    return Measured(
        [record for found in rows.values() for record in found],
        {
            label: run.manifest.training_seconds[editor]
            for label, (run, editor) in known.items()
            if label in rows and editor in run.manifest.training_seconds
        },
        {label: run.origin for label, (run, _) in known.items() if label in rows},
        (*_notes(runs, labels, checkpoint, edits), *_unready(known, rows)),
        {
            label: run.manifest.latencies[editor]
            for label, (run, editor) in known.items()
            if label in rows and editor in run.manifest.latencies
        },
        title,
    )


def _ready(rows: Mapping[str, list[Record]]) -> dict[str, list[Record]]:
    """Return the base models of a sequence whose methods have reached no checkpoint; else all."""
    base = {label: found for label, found in rows.items() if is_base(label)}
    return base or dict(rows)


def _unready(labels: Iterable[str], rows: Mapping[str, object]) -> list[str]:
    missing = [label for label in labels if label not in rows]
    if not missing:
        return []
    return [f"Left out, as they have not reached this checkpoint: {', '.join(missing)}."]


def _with_each_base_once(runs: Sequence[RunRecords]) -> list[RunRecords]:
    """Leave out the base model of a run if another run has the same on these edits or on more."""
    base = [
        {r.case_id: r for editor, found in run.rows.items() if is_base(editor) for r in found}
        for run in runs
    ]
    kept = []
    for place, run in enumerate(runs):
        again = any(
            _holds(other, base[place]) and (number < place or len(other) > len(base[place]))
            for number, other in enumerate(base)
            if number != place
        )
        rows = {e: found for e, found in run.rows.items() if not (again and is_base(e))}
        kept.append(run._replace(rows=rows))
    return kept


def _holds(there: Mapping[str, Record], here: Mapping[str, Record]) -> bool:
    """Return whether the same cases, with the same answers, are among others."""
    return all(case in there and _said(there[case]) == _said(here[case]) for case in here)


def _said(record: Record) -> list[tuple[object, ...]]:
    return [
        (probe, one.prompt, one.target, one.image, one.post.exact_match)
        for probe, asked in record.probes.items()
        for one in asked
    ]


def _labels(runs: Sequence[RunRecords]) -> dict[tuple[Path, str], str]:
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
    runs: Sequence[RunRecords],
    labels: Mapping[tuple[Path, str], str],
    checkpoint: Checkpoint | None,
    edits: int | None,
) -> list[str]:
    """List the notes of all runs. A note that not all runs share names the rows it is about."""
    of_runs = [notes_of(run.manifest, **_tested(run, checkpoint, edits)) for run in runs]
    notes: dict[str, None] = {}
    for note in dict.fromkeys(note for of_run in of_runs for note in of_run):
        having = [run for run, of_run in zip(runs, of_runs, strict=True) if note in of_run]
        rows = [labels[run.path, e] for run in having for e in run.rows if not is_base(e)]
        about = f"{', '.join(rows)}: " if len(having) < len(runs) and rows else ""
        notes[about + note] = None
    return list(notes)


def _tested(run: RunRecords, checkpoint: Checkpoint | None, chosen: int | None) -> dict[str, str]:
    """Name the edit after which a sequence was tested, if it is not the last one."""
    if checkpoint is None:
        return {}
    manifest, edits = run.manifest, checkpoint.edits
    number = max(r.edits for found in run.rows.values() for r in found)
    number = manifest.cases or max(number, edits)
    if edits == number:
        return {}
    why = "" if chosen is not None else ", the last checkpoint that all rows have"
    return {"tested": f"{edits:,} of {number:,} edits{why}"}
