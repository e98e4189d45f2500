"""Records and manifests on disk: one JSON line per edit, written as soon as its batch is known."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, final

from pydantic import ValidationError

from mmedit.errors import DataError
from mmedit.records.checks import require_each_once, require_of_run
from mmedit.records.lines import (
    LineWriter,
    first_problem,
    parse_lines,
    read_content,
    whole_lines,
)
from mmedit.records.schema import Record, RunManifest
from mmedit.storage import write_atomically

RECORDS = "records.jsonl"
PACKED = "records.jsonl.xz"
"""Packed records of a finished run; a sequence of 1,000 edits shrinks to a thirtieth."""
MANIFEST = "manifest.json"


@final
class RecordWriter(LineWriter[Record]):
    """Appends records to one `records.jsonl`. Also raises DataError for a record that is there
    twice.

        with RecordWriter(run / RECORDS) as writer:
            done = {(record.editor, record.case_id) for record in writer.earlier}
            ...
            writer.append(record)
    """

    elsewhere: ClassVar[str] = "another run directory"

    def parsed(self, content: bytes) -> list[Record]:
        return _parse(content, self.path)


def read_run(directory: Path) -> tuple[list[Record], RunManifest]:
    """Read the records and the manifest of a run directory.

    Raises DataError, also for a record of another run, with the number of its row.
    """
    manifest, records = read_manifest(directory), read_records(directory)
    require_of_run(records, manifest, directory / RECORDS)
    return records, manifest


def read_records(path: Path) -> list[Record]:
    """Read the records of a run directory or of one `records.jsonl`, which may be packed (.xz). An
    incomplete last line is left out.

    Raises DataError if there is no such file or no record in it, and for a line that is malformed
    or repeats another record, with the number of its row.
    """
    file = path / RECORDS if _is_directory(path) else path
    if file != path and not _exists(file) and _exists(path / PACKED):
        file = path / PACKED
    advice = f"give a run directory that holds {RECORDS}, or that file"
    content = read_content(file, advice)
    records = _parse(whole_lines(content), file)
    if not records:
        raise DataError(f"{file} holds no record yet; run the benchmark into {file.parent} first")
    return records


def _is_directory(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # no permission, or too long a name: reading it says so
        return False


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


def write_manifest(directory: Path, manifest: RunManifest) -> None:
    """Replace `manifest.json` in the run directory. Raises RunError if it cannot be written."""
    write_atomically(directory / MANIFEST, manifest.model_dump_json(indent=2).encode() + b"\n")


def read_manifest(directory: Path) -> RunManifest:
    """Read the manifest of a run directory. Raises DataError if it is missing or malformed."""
    file = directory / MANIFEST
    content = read_content(file, "give a directory that a benchmark run wrote")
    try:
        return RunManifest.model_validate_json(content)
    except ValidationError as error:
        raise DataError(f"{file}: {first_problem(error)}") from error


def _parse(content: bytes, file: Path) -> list[Record]:
    records = parse_lines(content, file, Record, "measure that edit again")
    require_each_once(records, file)
    return records
