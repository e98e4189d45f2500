"""Records and manifests on disk: one JSON line per edit, written as soon as its batch is known."""

from __future__ import annotations

import gc
import lzma
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO, FileIO
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout
from pydantic import ValidationError

from mmedit.errors import DataError, RunError, shortened
from mmedit.records.checks import require_each_once, require_of_run
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
    that a resumed run can skip them. Raises DataError for a malformed record or one that is there
    twice.

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

    def append(self, *records: Record) -> None:
        """Write records to the disk, all in one block: a disk needs as long for a block as for a
        line. Raises RunError if that fails; earlier lines are kept.
        """
        if self._file is None:
            raise RunError(f"{self.path} is not open; append inside `with RecordWriter(...)`")
        block = b"".join(record.model_dump_json().encode() + b"\n" for record in records)
        try:
            self._file.truncate(self._end)  # a block that failed halfway, if there is one
            self._file.seek(self._end)
            write_durably(self._file, block)
        except OSError as error:
            raise _unwritable(self.path, error) from error
        self._end += len(block)

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
    content = _content(file, advice)
    records = _parse(_whole_lines(content), file)
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


def _content(file: Path, advice: str) -> bytes:
    """Read a regular file, unpacked; DataError with the advice if it cannot be read."""
    if "\0" in str(file):
        raise DataError(f"cannot read {_shown(file)}: the name holds a NUL character; {advice}")
    try:
        if not stat.S_ISREG(os.stat(file).st_mode):
            raise DataError(f"cannot read {_shown(file)}: it is not a regular file; {advice}")
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {_shown(file)}: {error.strerror}; {advice}") from error
    return _unpacked(content, file) if file.suffix == ".xz" else content


def _shown(file: Path) -> str:
    """Return the path as text; as a short repr if it is long or has characters that do not show."""
    text = str(file)
    return text if len(text) <= 200 and text.isprintable() else shortened(text, 200)


def _unpacked(packed: bytes, file: Path) -> bytes:
    with lzma.open(BytesIO(packed)) as opened:
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
    content = _content(file, "give a directory that a benchmark run wrote")
    try:
        return RunManifest.model_validate_json(content)
    except ValidationError as error:
        raise DataError(f"{file}: {_first_problem(error)}") from error


def _whole_lines(content: bytes) -> bytes:
    return content[: content.rfind(b"\n") + 1]


def _parse(content: bytes, file: Path) -> list[Record]:
    records = []
    with _no_garbage_collection():
        for row, line in enumerate(content.split(b"\n")[:-1], start=1):  # a string may hold U+2028
            try:
                records.append(Record.model_validate_json(line))
            except ValidationError as error:
                raise DataError(
                    f"{file}, row {row}: {_first_problem(error)}; "
                    "delete the row to measure that edit again"
                ) from error
    require_each_once(records, file)
    return records


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Pause the search for objects that refer to each other in a circle, while the context lasts.

    Records are never among them, and the search would walk through all records again each time
    that some hundred more are read: four fifths of the time to read 10,000.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}" if where else first["msg"]


def _unwritable(path: Path, error: OSError) -> RunError:
    return RunError(
        f"cannot write {path}: {error.strerror}; the records written before are intact, "
        "so the same command resumes after them once there is room and permission"
    )
