"""One JSON line per edit: everything measured, written to disk as soon as it is known.

Tables and reports are made from these records alone.
"""

from __future__ import annotations

import lzma
import os
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator
from pydantic_core import from_json, to_json

from mmedit.cases import Probe
from mmedit.errors import DataError, RunError

RECORDS = "records.jsonl"
PACKED = "records.jsonl.xz"
"""What a finished run may be kept as: a sequence of 1,000 edits is a thirtieth so."""
MAX_UNPACKED = 8 << 30
"""Bytes of records that are unpacked, at most."""
MANIFEST = "manifest.json"


class _Frozen(BaseModel):
    # "strings" keeps NaN and infinity in files that every JSON parser reads
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Scores(_Frozen):
    """Teacher-forced scores of one example against its target (docs/protocol.md)."""

    token_accuracy: float
    exact_match: float
    log_prob: float
    n_tokens: int


class Locality(_Frozen):
    """How far the edit moved the answer of one locality probe (docs/protocol.md)."""

    top1_answer: float
    exact_answer: float
    top1_all: float
    top10_ordered_all: float
    top10_set_answer: float
    kl: float


class Generation(_Frozen):
    """Scores of one greedy generation (docs/protocol.md).

    `unchanged` is there for locality probes after the edit, `fluency` and `repeated` for the
    request where a long continuation was wanted, `clip_score` and `judge` where they were.
    """

    contains: float
    exact: float
    rouge_l: float
    unchanged: float | None = None
    fluency: float | None = None
    repeated: float | None = None
    clip_score: float | None = None
    judge: float | None = None


class JudgeTranscript(_Frozen):
    """What a language model that judges an answer was asked, what it replied, and its verdict."""

    asked: str
    replied: str
    verdict: float


class ProbeRecord(_Frozen):
    """One example asked before and after the edit.

    `locality` and the generated answers are there only where they were measured.
    """

    prompt: str
    target: str
    image: str | None
    pre: Scores
    post: Scores
    locality: Locality | None = None
    generated_pre: str | None = None
    generated_post: str | None = None
    generation_pre: Generation | None = None
    generation_post: Generation | None = None
    judge_pre: JudgeTranscript | None = None
    judge_post: JudgeTranscript | None = None


Test = Literal["edit", "checkpoint", "gap", "ability"]
"""When a case was asked: right after its edit, or in a sequence after further ones (at a
checkpoint, where all edits so far are; a given number later), or of a case that stands for what the
VLM can do beside its edits.
"""


class Record(_Frozen):
    """One edit, tested once. `image` of the request (a path or content hash) is the cluster of the
    bootstrap.

    `peak_memory_bytes` is of this batch of edits on a GPU, of the whole process so far on a CPU;
    `extra_parameters` is what the edits that the VLM held add to the network.
    """

    case_id: str
    editor: str
    seconds: float
    batch: int
    peak_memory_bytes: int
    extra_parameters: int | None = None
    seed: int
    edits: int = 1
    """How many edits the VLM held when it was asked."""
    place: int = 1
    """Which of them this one was, from 1; 0 for a case that was not edited (`ability`)."""
    order: int = 0
    """Which of a run's sequences."""
    test: Test = "edit"
    probes: dict[Probe, tuple[ProbeRecord, ...]]

    @property
    def key(self) -> Key:
        """What no two records of a run share."""
        return Key(self.editor, self.order, self.test, self.edits, self.case_id)

    @property
    def cluster(self) -> str:
        """What the bootstrap resamples: the request's image, or the case where it has none."""
        requests = self.probes.get(Probe.RELIABILITY, ())
        return (requests[0].image if requests else None) or f"case {self.case_id}"


class Key(NamedTuple):
    """Which test of which edit a record tells of."""

    editor: str
    order: int
    test: Test
    edits: int
    case_id: str


class RunManifest(_Frozen):
    """How the records of a run directory were made; `config` is kept as the JSON it becomes."""

    command: str
    versions: dict[str, str]
    vlm: str
    dataset: str
    limit: int | None
    seed: int
    editors: tuple[str, ...]
    config: dict[str, object]
    training_seconds: dict[str, float]
    commit: str | None = None
    """Of the source that mmedit was run from, where that is a git checkout."""
    hashes: dict[str, str] = {}
    """Of what was measured: "vlm" (its weights), "dataset" (what its cases say), and every editor
    that holds something learnt.
    """

    @field_validator("config")
    @classmethod
    def _as_json(cls, config: dict[str, object]) -> dict[str, object]:
        return from_json(to_json(config, inf_nan_mode="strings"))


RUN = "run"
"""In a manifest's config, beside the editors' settings: what else decides the records."""
LEFT_OUT = "left_out"
MODE = "mode"
"""There where the edits were not made each by itself."""


def notes_of(manifest: RunManifest) -> list[str]:
    """What a table of the run must say beside its figures."""
    run = manifest.config.get(RUN)
    settings: dict[str, Any] = run if isinstance(run, dict) else {}
    notes = []
    if left_out := settings.get(LEFT_OUT):
        reasons = ", ".join(f"{why}: {number:,}" for why, number in sorted(left_out.items()))
        notes.append(f"Left out of {manifest.dataset}: {reasons}.")
    mode = settings.get(MODE, {})
    if mode.get("kind") == "batch":
        notes.append(f"Edits were made {mode['k']} at a time, and tested together.")
    if mode.get("kind") == "sequential":
        orders = f", in each of {mode['orders']} orders" if mode["orders"] > 1 else ""
        notes.append(f"Edits were made one after another{orders}, and tested after the last one.")
    return notes


class RecordWriter:
    """Appends records to one `records.jsonl`; once `append` has returned, the record is on disk.

    Entering creates the run directory, refuses a second writer (RunError), and drops the last line
    where a killed run left it torn. `earlier` then holds the records that were already there, so
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
        """Write one line through to the disk; RunError if that fails: earlier lines are kept."""
        if self._file is None:
            raise RunError(f"{self.path} is not open; append inside `with RecordWriter(...)`")
        line = record.model_dump_json().encode() + b"\n"
        try:
            self._file.truncate(self._end)  # a line that failed halfway, if there is one
            self._file.seek(self._end)
            _write_durably(self._file, line)
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
    """Read the records of a run directory, or of one `records.jsonl`, which may be packed (.xz); a
    torn last line is left out.

    Raises DataError where there is no such file or no record in it, and for a malformed line, with
    the number of its row.
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
            raise DataError(f"{file} is no whole xz file: {error}") from error
    if len(content) > MAX_UNPACKED:
        raise DataError(f"{file} unpacks to more than {MAX_UNPACKED:,} bytes")
    return content


def write_manifest(directory: Path, manifest: RunManifest) -> None:
    """Write `manifest.json` into the run directory, whole or not at all."""
    write_atomically(directory / MANIFEST, manifest.model_dump_json(indent=2).encode() + b"\n")


def read_manifest(directory: Path) -> RunManifest:
    """Read the manifest of a run directory; DataError where it is missing or does not fit."""
    file = directory / MANIFEST
    try:
        return RunManifest.model_validate_json(file.read_bytes())
    except OSError as error:
        raise DataError(
            f"cannot read {file}: {error.strerror}; give a directory that a benchmark run wrote"
        ) from error
    except ValidationError as error:
        raise DataError(f"{file}: {_first_problem(error)}") from error


def make_folder(directory: Path) -> None:
    """Make a folder for results; RunError, before anything is computed, where that cannot be."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"cannot make the folder {directory}: {error.strerror}; choose another --out"
        ) from error


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by `content`, whole or not at all; RunError when it cannot be written."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb", buffering=0) as file:
            _write_durably(file, content)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise RunError(
            f"cannot write {path}: {error.strerror}; what was there before is unchanged"
        ) from error


def _write_durably(file: FileIO, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]
    os.fsync(file.fileno())


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
