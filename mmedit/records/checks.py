"""Checks of a file of records: each record stands in it once, and all of them are of one run.

A table counts every record, so a line that was copied, or that another run wrote, would change its
numbers without a word.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mmedit.cases import Probe
from mmedit.errors import DataError
from mmedit.records.schema import BASE, Key, Record, RunManifest

_Asked = tuple[tuple[str, str, str | None], ...]
"""Prompt, target and image of each example of a probe."""


def require_each_once(records: Sequence[Record], file: Path) -> None:
    """Raise DataError, with the rows, if a record stands in its file twice."""
    rows: dict[Key, int] = {}
    for row, record in enumerate(records, start=1):
        first = rows.setdefault(record.key, row)
        if first != row:
            raise DataError(
                f"{file}, row {row}: the record of {_named(record)} is in row {first} already; "
                "delete one of the two rows"
            )


def require_of_run(records: Sequence[Record], manifest: RunManifest, file: Path) -> None:
    """Raise DataError, with its row, for a record that is not of the run of the manifest.

    It is of an editor that the run does not have, of another seed or a longer run, or of a case
    that the run does not have or asks in another way.
    """
    for problem in _problems(records, manifest):
        raise DataError(
            f"{file}, row {problem.row}: {problem.text}, so this record is of another run; delete "
            "the rows of that run, and make a table of both folders instead"
        )


class _Problem(NamedTuple):
    row: int
    text: str


def _problems(records: Sequence[Record], manifest: RunManifest) -> Iterator[_Problem]:
    run = _Run(manifest)
    base = {record.case_id for record in records if record.editor == BASE}
    asked: dict[tuple[str, Probe], tuple[int, _Asked]] = {}
    for row, record in enumerate(records, start=1):
        if text := run.problem(record):
            yield _Problem(row, text)
        if base and record.case_id not in base:
            yield _Problem(row, f"the base model was not measured on case {record.case_id!r}")
        for probe, examples in record.probes.items():
            content = tuple((one.prompt, one.target, one.image) for one in examples)
            first, expected = asked.setdefault((record.case_id, probe), (row, content))
            if content != expected:
                where = f"{probe.value} of case {record.case_id!r}"
                yield _Problem(row, f"{where} asks something else than in row {first}")


class _Run:
    """The limits that a manifest sets to its records."""

    def __init__(self, manifest: RunManifest) -> None:
        mode = manifest.run.mode
        self._editors = {BASE, *manifest.editors, *manifest.config}
        self._seed = manifest.seed
        self._is_sequence = mode["kind"] == "sequential"
        self._orders = mode["orders"] if self._is_sequence else 1
        self._edits = _most_edits(manifest)

    def problem(self, record: Record) -> str:
        """Say why a record cannot be of the run; "" if it can."""
        if record.editor not in self._editors:
            known = ", ".join(sorted(self._editors))
            return f"the editor is {record.editor!r}, and the run has {known}"
        if record.seed != self._seed:
            return f"the seed is {record.seed}, and the run has seed {self._seed}"
        if self._is_sequence and record.editor == BASE and record.test != "checkpoint":
            return f"the base model has a test of kind {record.test}, and a sequence tests it once"
        if record.order >= self._orders:
            return f"it is of order {record.order}, and the run has {self._orders} (from 0)"
        if not self._is_sequence and record.test != "edit":
            return f"it is a test of a sequence ({record.test}), and the run has none"
        if self._edits is not None and record.edits > self._edits:
            return f"it is tested after {record.edits:,} edits, and the run has {self._edits:,}"
        if record.place > record.edits:
            return f"its edit has place {record.place:,} of {record.edits:,}"
        return ""


def _most_edits(manifest: RunManifest) -> int | None:
    """Return the largest number of edits that a VLM of the run holds; None if it is not known."""
    mode, cases = manifest.run.mode, manifest.cases or manifest.limit
    if mode["kind"] == "independent":
        return 1
    if mode["kind"] == "batch":
        return mode["k"]
    return cases


def _named(record: Record) -> str:
    order = f", order {record.order}" if record.order else ""
    test = "" if record.test == "edit" else f" ({record.test} after {record.edits:,} edits)"
    return f"{record.editor}, case {record.case_id!r}{order}{test}"
