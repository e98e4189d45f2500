"""Records and manifests on disk: one JSON line per edit, written as soon as it is known."""

from __future__ import annotations

import lzma
from io import FileIO
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout
from pydantic import ValidationError

from mmedit.errors import DataError, RunError
from mmedit.records.schema import Record, RunManifest
from mmedit.storage import write_atomically, write_durably

RECORDS = "records.jsonl"
PACKED = "records.jsonl.xz"
"""Packed records of a finished run; a sequence of 1,000 edits shrinks to a thirtieth."""
MAX_UNPACKED = 8 << 30
"""Maximum size of unpacked records, in bytes."""
MANIFEST = "manifest.json"


class RecordWriter:
    """Appends records to one `records.jsonl`; once `append` has returned, the record is on disk.

    Entering creates the run directory, refuses a second writer (RunError), and drops a last line
    that a killed run left incomplete. `earlier` then holds the records that were already there, so
    that a resumed run can skip them.

        with RecordWriter(run / RECORDS) as writer:
            done = {(record.editor, record.case_id) for record in writer.earlier}
            ...
            writer.append(record)
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.earlier: tuple[Record, ...] = ()
        self._lock = FileLock(f"{path}.lock", blocking=False, thread_local=False)
        self._file: FileIO | None = None
        self._end = 0

    def __enter__(self) -> RecordWriter:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except Timeout:
            raise RunError(
                f"{self.path.parent} is being written by another process; "
                "wait until it is done, or choose another run directory"
            ) from None
        except OSError as error:
            raise _unwritable(self.path, error) from error
        try:
            self._open()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()

    def append(self, record: Record) -> None:
        """Write one record to the disk. Raises RunError if that fails; earlier lines are kept."""
        if self._file is None:
            raise RunError(f"{self.path} is not open; append inside `with RecordWriter(...)`")
        line = record.model_dump_json().encode() + b"\n"
        try:
            self._file.truncate(self._end)  # a line that failed halfway, if there is one
            self._file.seek(self._end)
            write_durably(self._file, line)
        except OSError as error:
            raise _unwritable(self.path, error) from error
        self._end += len(line)

    def _open(self) -> None:
        try:
            # unbuffered: what a full disk refused is not tried once more on close
            self._file = self.path.open("r+b" if self.path.exists() else "x+b", buffering=0)
            content = _whole_lines(self._file.read())
            self._end = len(content)
            self._file.truncate(self._end)
        except OSError as error:
            raise _unwritable(self.path, error) from error
        self.earlier = tuple(_parse(content, self.path))

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        self._lock.release()


def read_records(path: Path) -> list[Record]:
    """Read the records of a run directory or of one `records.jsonl`, which may be packed (.xz). An
    incomplete last line is left out.

    Raises DataError if there is no such file or no record in it, and for a malformed line, with the
    number of its row.
    """
    file = path / RECORDS if path.is_dir() else path
    if path.is_dir() and not file.exists() and (path / PACKED).exists():
        file = path / PACKED
    try:
        content = _unpacked(file) if file.suffix == ".xz" else file.read_bytes()
    except OSError as error:
        raise DataError(
            f"cannot read {file}: {error.strerror}; "
            f"give a run directory that holds {RECORDS}, or that file"
        ) from error
    records = _parse(_whole_lines(content), file)
    if not records:
        raise DataError(f"{file} holds no record yet; run the benchmark into {file.parent} first")
    return records


def _unpacked(file: Path) -> bytes:
    with lzma.open(file) as opened:
        try:
            content = opened.read(MAX_UNPACKED + 1)
        except (lzma.LZMAError, EOFError) as error:
            raise DataError(f"{file} is not a complete xz file: {error}") from error
    if len(content) > MAX_UNPACKED:
        raise DataError(f"{file} unpacks to more than {MAX_UNPACKED:,} bytes")
    return content


def write_manifest(directory: Path, manifest: RunManifest) -> None:
    """Replace `manifest.json` in the run directory. Raises RunError if it cannot be written."""
    write_atomically(directory / MANIFEST, manifest.model_dump_json(indent=2).encode() + b"\n")


def read_manifest(directory: Path) -> RunManifest:
    """Read the manifest of a run directory. Raises DataError if it is missing or malformed."""
    file = directory / MANIFEST
    try:
        return RunManifest.model_validate_json(file.read_bytes())
    except OSError as error:
        raise DataError(
            f"cannot read {file}: {error.strerror}; give a directory that a benchmark run wrote"
        ) from error
    except ValidationError as error:
        raise DataError(f"{file}: {_first_problem(error)}") from error


def _whole_lines(content: bytes) -> bytes:
    return content[: content.rfind(b"\n") + 1]


def _parse(content: bytes, file: Path) -> list[Record]:
    records = []
    for row, line in enumerate(content.split(b"\n")[:-1], start=1):  # a string may hold U+2028
        try:
            records.append(Record.model_validate_json(line))
        except ValidationError as error:
            raise DataError(
                f"{file}, row {row}: {_first_problem(error)}; "
                "delete the row to measure that edit again"
            ) from error
    return records


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}" if where else first["msg"]


def _unwritable(path: Path, error: OSError) -> RunError:
    return RunError(
        f"cannot write {path}: {error.strerror}; the records written before are intact, "
        "so the same command resumes after them once there is room and permission"
    )
