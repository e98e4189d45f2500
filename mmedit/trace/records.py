"""Records of causal tracing, one JSON line per item, and the manifest of their run."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, final

from pydantic import BaseModel, ConfigDict, ValidationError

from mmedit.errors import DataError, RunError
from mmedit.records.lines import LineWriter, first_problem, parse_lines, read_content, whole_lines
from mmedit.storage import write_atomically
from mmedit.trace.settings import Component, TraceSettings

RECORDS = "trace.jsonl"
MANIFEST = "manifest.json"
ADVICE = "give a folder that mmedit trace wrote"
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


@final
class TraceWriter(LineWriter[TraceRecord]):
    """Appends records to the folder of a trace, which is new or holds an earlier part of the same
    run. Entering also raises RunError if it holds another run, and writes the manifest.
    """

    elsewhere: ClassVar[str] = "another --out"

    def __init__(self, folder: Path, manifest: TraceManifest) -> None:
        super().__init__(folder / RECORDS)
        self.folder = folder
        self._manifest = manifest

    def __enter__(self) -> Self:
        super().__enter__()
        try:
            self.note(self._manifest)
        except BaseException:
            self._close()
            raise
        return self

    def parsed(self, content: bytes) -> list[TraceRecord]:
        return _parse(content, self.path)

    def require_usable(self) -> None:
        _require_same(self.folder, self._manifest)

    def note(self, manifest: TraceManifest) -> None:
        """Write the manifest. Raises RunError."""
        file = self.folder / MANIFEST
        write_atomically(file, manifest.model_dump_json(indent=2).encode() + b"\n")


def read_files(folder: Path) -> tuple[list[TraceRecord], TraceManifest]:
    """Read records and manifest of a folder. An incomplete last line is left out. Raises DataError:
    they are missing or malformed.
    """
    file = folder / RECORDS
    records = _parse(whole_lines(read_content(file, ADVICE)), file)
    if not records:
        raise DataError(f"{file} holds no record yet; let mmedit trace go on")
    return records, _manifest(folder)


def _parse(content: bytes, file: Path) -> list[TraceRecord]:
    return parse_lines(content, file, TraceRecord, "trace that item again")


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


def _manifest(folder: Path) -> TraceManifest:
    file = folder / MANIFEST
    try:
        return TraceManifest.model_validate_json(read_content(file, ADVICE))
    except ValidationError as error:
        raise DataError(f"{file} is not the manifest of a trace: {first_problem(error)}") from error
