"""Files of one JSON line per record, which a killed process leaves readable."""

from __future__ import annotations

import gc
import lzma
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO, FileIO
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Generic, Self, TypeVar

from filelock import FileLock, Timeout
from pydantic import BaseModel, ValidationError

from mmedit.errors import DataError, RunError, shortened
from mmedit.storage import write_durably

MAX_UNPACKED = 8 << 30
"""Maximum size of unpacked records, in bytes."""
Line = TypeVar("Line", bound=BaseModel)


class LineWriter(ABC, Generic[Line]):
    """Appends records to one file; once `append` has returned, the record is on disk.

    Entering creates the folder, refuses a second writer (RunError), and drops a last line that a
    killed process left incomplete. `earlier` then holds the records that were already there, so
    that they can be skipped. Raises DataError for a malformed record.
    """

    elsewhere: ClassVar[str]
    """Name of what to choose while another process writes here: "another run directory"."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.earlier: tuple[Line, ...] = ()
        self._lock = FileLock(f"{path}.lock", blocking=False, thread_local=False)
        self._file: FileIO | None = None
        self._end = 0

    @abstractmethod
    def parsed(self, content: bytes) -> list[Line]:
        """Return the records of whole lines. Raises DataError."""

    def require_usable(self) -> None:
        """Raise an error if the folder, which is locked now, holds something else. Nothing in it
        has been changed yet.
        """

    def __enter__(self) -> Self:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except Timeout:
            raise RunError(
                f"{self.path.parent} is being written by another process; "
                f"wait until it is done, or choose {self.elsewhere}"
            ) from None
        except OSError as error:
            raise unwritable(self.path, error) from error
        try:
            self.require_usable()
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

    def append(self, *records: Line) -> None:
        """Write records to the disk, all in one block: a disk needs as long for a block as for a
        line. Raises RunError if that fails; earlier lines are kept.
        """
        if self._file is None:
            name = type(self).__name__
            raise RunError(f"{self.path} is not open; append inside `with {name}(...)`")
        block = b"".join(record.model_dump_json().encode() + b"\n" for record in records)
        try:
            self._file.truncate(self._end)  # a block that failed halfway, if there is one
            self._file.seek(self._end)
            write_durably(self._file, block)
        except OSError as error:
            raise unwritable(self.path, error) from error
        self._end += len(block)

    def _open(self) -> None:
        try:
            # unbuffered: what a full disk refused is not tried once more on close
            self._file = self.path.open("r+b" if self.path.exists() else "x+b", buffering=0)
            content = whole_lines(self._file.read())
            self._end = len(content)
            self._file.truncate(self._end)
        except OSError as error:
            raise unwritable(self.path, error) from error
        self.earlier = tuple(self.parsed(content))

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        self._lock.release()


def read_content(file: Path, advice: str) -> bytes:
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


def whole_lines(content: bytes) -> bytes:
    """Return the content without an incomplete last line."""
    return content[: content.rfind(b"\n") + 1]


def parse_lines(content: bytes, file: Path, kind: type[Line], again: str) -> list[Line]:
    """Return the records of whole lines. Raises DataError, which says that to delete a malformed
    row is a way to `again`: "measure that edit again".
    """
    records = []
    with _no_garbage_collection():
        for row, line in enumerate(content.split(b"\n")[:-1], start=1):  # a string may hold U+2028
            try:
                records.append(kind.model_validate_json(line))
            except ValidationError as error:
                raise DataError(
                    f"{file}, row {row}: {first_problem(error)}; delete the row to {again}"
                ) from error
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


def first_problem(error: ValidationError) -> str:
    """Return the first problem of a record that is not valid, with its place."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}" if where else first["msg"]


def unwritable(path: Path, error: OSError) -> RunError:
    """Return the error for a file of records that cannot be written."""
    return RunError(
        f"cannot write {path}: {error.strerror}; the records written before are intact, "
        "so the same command resumes after them once there is room and permission"
    )
