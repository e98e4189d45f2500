"""Records of causal tracing, one JSON line per item, and the manifest of their run."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from mmedit.errors import DataError, RunError
from mmedit.storage import make_folder, write_atomically, write_durably
from mmedit.trace.settings import Component, TraceSettings

RECORDS = "trace.jsonl"
MANIFEST = "manifest.json"
FREE = ("command", "versions", "commit", "vlm", "sigma", "left_out")
"""Parts of the manifest that a command which continues a run need not repeat."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Group(_Frozen):
    """Positions of one item that are restored together."""

    name: str
    tokens: int
    """Number of positions."""


class Scores(_Frozen):
    """Probabilities of one run, or of each of several noise draws."""

    first: tuple[float, ...]
    """Probability of the first answer token, for each draw."""
    answer: tuple[float, ...]
    """Probability of the whole answer, for each draw."""

    def mean(self, score: str) -> float:
        """Return the mean over the draws of "first" or "answer"."""
        values = getattr(self, score)
        return sum(values) / len(values)


class Restored(_Frozen):
    """Probabilities with one component put back, means over the draws, as [group][layer]."""

    first: tuple[tuple[float, ...], ...]
    answer: tuple[tuple[float, ...], ...]


class Cells(_Frozen):
    """The cells of an image, whose block outputs were put back one cell at a time."""

    grid: int
    """Cells along each side of the image; 0 for parts of an image whose tokens are no square."""
    tokens: tuple[int, ...]
    """Number of positions of each cell, in reading order."""
    layers: tuple[int, ...]
    """The layers in which they were put back."""
    restored: Restored
    """As [cell][place in `layers`]."""


class TraceRecord(_Frozen):
    """One traced item."""

    id: str
    prompt: str
    answer: str
    subject: str = ""
    image: str | None = None
    """The image's name (`mmedit.cases.image_name`); None without one."""
    other: str | None = None
    """Name of the image that took the place of the item's own, in a swap."""
    groups: tuple[Group, ...]
    clean: Scores
    corrupt: Scores
    restored: dict[Component, Restored]
    cells: Cells | None = None
    """None without an image, or if no cells were asked for."""


class TraceManifest(_Frozen):
    """Settings, model and items that the records of a folder come from."""

    vlm: str
    identity: dict[str, str]
    """The parts of the VLM's identity (`mmedit.vlm.identity.Identity`)."""
    layers: int
    """Number of decoder layers."""
    window: int
    """Number of layers in a window of MLP or attention outputs."""
    settings: TraceSettings
    sigma: float | None
    """Standard deviation of what the noise is added to, over all items; None for a swap."""
    items: tuple[str, ...]
    """Ids of the items, in order."""
    content: str
    """A hash of what the items say and show."""
    left_out: dict[str, int]
    """Number of candidates that are not items, by reason."""
    dataset: str = ""
    questions: str = ""
    """The items: the requests of a dataset, or its locality probes."""
    command: str = ""
    versions: dict[str, str] = {}
    commit: str | None = None


def content_hash(parts: Sequence[object]) -> str:
    """Return a hash of what items say and show."""
    return hashlib.blake2b(repr(list(parts)).encode(), digest_size=16).hexdigest()


class TraceFolder:
    """An open folder: the records that were there, and a file that takes more of them."""

    def __init__(self, path: Path, earlier: Sequence[TraceRecord], file: FileIO) -> None:
        self.path = path
        self.earlier = {record.id: record for record in earlier}
        self._file = file

    def append(self, record: TraceRecord) -> None:
        """Write a record; once this returns, it is on disk. Raises RunError."""
        try:
            write_durably(self._file, record.model_dump_json().encode() + b"\n")
        except OSError as error:
            raise _unwritable(self.path / RECORDS, error) from error

    def note(self, manifest: TraceManifest) -> None:
        """Write the manifest. Raises RunError."""
        write_atomically(self.path / MANIFEST, manifest.model_dump_json(indent=2).encode() + b"\n")


@contextmanager
def opened(folder: Path, manifest: TraceManifest) -> Iterator[TraceFolder]:
    """Open a folder that is new or holds an earlier part of the same run.

    Raises RunError if it holds another run, or if another process writes it.
    """
    make_folder(folder)
    lock = FileLock(folder / f"{RECORDS}.lock", blocking=False, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise RunError(
            f"{folder} is being written by another process; wait until it is done, or choose "
            "another --out"
        ) from None
    try:
        _require_same(folder, manifest)
        with _appending(folder / RECORDS) as (earlier, file):
            into = TraceFolder(folder, earlier, file)
            into.note(manifest)
            yield into
    finally:
        lock.release()


def read_files(folder: Path) -> tuple[list[TraceRecord], TraceManifest]:
    """Read records and manifest of a folder. An incomplete last line is left out. Raises DataError:
    they are missing or malformed.
    """
    records = _parsed(_read(folder / RECORDS), folder / RECORDS)
    if not records:
        raise DataError(f"{folder / RECORDS} holds no record yet; let mmedit trace go on")
    return records, _manifest(folder)


def _require_same(folder: Path, now: TraceManifest) -> None:
    if not (folder / MANIFEST).exists():
        if any(file.suffix != ".lock" for file in folder.iterdir()):
            raise RunError(f"{folder} is not empty, and holds no trace; choose another --out")
        return
    earlier = _manifest(folder)
    free: Any = {*FREE, "settings"}
    before, after = (one.model_dump(exclude=free) for one in (earlier, now))
    differs = [key for key in before if before[key] != after[key]]
    before, after = (one.settings.model_dump(exclude={"rows"}) for one in (earlier, now))
    differs += [f"setting {key}" for key in before if before[key] != after[key]]
    if differs:
        raise RunError(
            f"{folder} holds another trace: {', '.join(differs)} differ; choose another --out, or "
            "give the same command"
        )


@contextmanager
def _appending(path: Path) -> Iterator[tuple[list[TraceRecord], FileIO]]:
    try:
        file = path.open("r+b" if path.exists() else "x+b", buffering=0)
    except OSError as error:
        raise _unwritable(path, error) from error
    with file:
        content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        file.truncate(len(whole))
        file.seek(0, os.SEEK_END)
        yield _parsed(whole, path), file


def _manifest(folder: Path) -> TraceManifest:
    file = folder / MANIFEST
    try:
        return TraceManifest.model_validate_json(_read(file))
    except ValidationError as error:
        raise DataError(f"{file} is not the manifest of a trace: {_first(error)}") from error


def _parsed(content: bytes, path: Path) -> list[TraceRecord]:
    records = []
    for row, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            records.append(TraceRecord.model_validate_json(line))
        except ValidationError as error:
            raise DataError(
                f"{path}, row {row}: {_first(error)}; delete the row to trace that item again"
            ) from error
    return records


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(
            f"cannot read {file}: {error.strerror}; give a folder that mmedit trace wrote"
        ) from error


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def _unwritable(path: Path, error: OSError) -> RunError:
    return RunError(
        f"cannot write {path}: {error.strerror}; the records written before are intact, and the "
        "same command continues after them"
    )
