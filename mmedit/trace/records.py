"""Records of causal tracing, one JSON line per item, and the manifest of their run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, final

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from mmedit.errors import DataError, RunError, shortened
from mmedit.records.lines import LineWriter, first_problem, parse_lines, read_content, whole_lines
from mmedit.storage import make_folder, write_atomically
from mmedit.trace.settings import Component, TraceSettings

RECORDS = "trace.jsonl"
MANIFEST = "manifest.json"
ADVICE = "give a folder that mmedit trace wrote"
FREE = ("command", "versions", "commit", "parts", "vlm", "sigma", "left_out")
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

    grid: tuple[int, int] | None
    """Rows and columns; None for parts of image tokens whose places in the image are not known."""
    tokens: tuple[int, ...]
    """Number of positions of each cell, in reading order."""
    layers: tuple[int, ...]
    """The layers in which they were put back."""
    restored: Restored
    """As [cell][place in `layers`]."""

    @field_validator("grid", mode="before")
    @classmethod
    def _as_sides(cls, grid: Any) -> Any:
        """Read the number of cells along each side, which earlier versions wrote."""
        return ((grid, grid) if grid else None) if isinstance(grid, int) else grid


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

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        """Raise ValueError unless each group and cell has a probability in every layer."""
        found = {_shape(v) for one in self.restored.values() for v in (one.first, one.answer)}
        if len(found) != 1 or (shape := found.pop()) is None or shape[0] != len(self.groups):
            raise ValueError("expected a probability of every group in every layer")
        if cells := self.cells:
            found = {_shape(cells.restored.first), _shape(cells.restored.answer)}
            if found != {(len(cells.tokens), len(cells.layers))}:
                raise ValueError("cells: expected a probability of every cell in their layers")
        for run in (self.clean, self.corrupt):
            if not len(run.first) == len(run.answer) > 0:
                raise ValueError("expected as many draws of the first token as of the answer")
        return self

    @property
    def layers(self) -> int:
        """Number of layers in which groups were put back."""
        return len(next(iter(self.restored.values())).answer[0])


def _shape(rows: Sequence[Sequence[float]]) -> tuple[int, int] | None:
    """Return how many rows and columns there are; None if rows differ, or there are none."""
    columns = set(map(len, rows))
    return (len(rows), columns.pop()) if len(columns) == 1 else None


class TracePart(_Frozen):
    """A command that traced items into a folder, and what it ran with."""

    command: str
    first_record: int
    """Number of records that were there before it."""
    versions: dict[str, str]
    commit: str | None


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
    parts: tuple[TracePart, ...] = ()
    """The commands that traced the items, where code or libraries differ between them."""

    def traced(self, records: int) -> tuple[TracePart, ...]:
        """Return the parts that so many records come from: not a command that found all traced."""
        parts = self.parts or (_part(self, 0),)
        return tuple(part for part in parts if part.first_record < records)

    def after(self, earlier: TraceManifest | None, records: int) -> TraceManifest:
        """Return this manifest for a folder that holds `records` records of an earlier one."""
        begun = earlier.traced(records) if earlier else ()
        part = _part(self, records)
        if begun and (begun[-1].versions, begun[-1].commit) == (part.versions, part.commit):
            return self.model_copy(update={"parts": begun})
        return self.model_copy(update={"parts": (*begun, part)})


def _part(manifest: TraceManifest, first_record: int) -> TracePart:
    return TracePart(
        command=manifest.command,
        first_record=first_record,
        versions=manifest.versions,
        commit=manifest.commit,
    )


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
        self.manifest = manifest
        """The content of the folder's manifest."""
        self._before: TraceManifest | None = None

    def __enter__(self) -> Self:
        super().__enter__()
        try:
            self.note(self.manifest.after(self._before, len(self.earlier)))
        except BaseException:
            self._close()
            raise
        return self

    def parsed(self, content: bytes) -> list[TraceRecord]:
        return _parse(content, self.path, self.manifest)

    def require_usable(self) -> None:
        self._before = earlier_manifest(self.folder)
        if self._before is not None:
            _require_same(self.folder, self._before, self.manifest.model_dump(exclude={*FREE}))

    def note(self, manifest: TraceManifest) -> None:
        """Write the manifest. Raises RunError."""
        self.manifest = manifest
        file = self.folder / MANIFEST
        write_atomically(file, manifest.model_dump_json(indent=2).encode() + b"\n")


def read_files(folder: Path) -> tuple[list[TraceRecord], TraceManifest]:
    """Read records and manifest of a folder. An incomplete last line is left out. Raises DataError:
    they are missing or malformed, or do not belong together.
    """
    file, manifest = folder / RECORDS, _manifest(folder)
    records = _parse(whole_lines(read_content(file, ADVICE)), file, manifest)
    if not records:
        raise DataError(f"{file} holds no record yet; let mmedit trace go on")
    return records, manifest


def require_room(folder: Path, **known: Any) -> None:
    """Make the folder of a trace of which so much is known: fields of its manifest. Raises RunError
    if it cannot be written or holds something else, DataError if its records are damaged.
    """
    make_folder(folder)
    if (earlier := earlier_manifest(folder)) is None:
        return
    _require_same(folder, earlier, known)
    if (file := folder / RECORDS).exists():
        _parse(whole_lines(read_content(file, ADVICE)), file, earlier)


def earlier_manifest(folder: Path) -> TraceManifest | None:
    """Return the manifest of a folder; None for one without records. Raises RunError if it holds
    anything but a trace, DataError.
    """
    if (folder / MANIFEST).exists():
        return _manifest(folder)
    # A trace that was stopped at once left an empty file of records.
    if any(file.suffix != ".lock" and not _is_unwritten(file) for file in folder.iterdir()):
        raise RunError(f"{folder} is not empty, and holds no trace; choose another --out")
    return None


def _is_unwritten(file: Path) -> bool:
    return file.name == RECORDS and file.stat().st_size == 0


def _parse(content: bytes, file: Path, manifest: TraceManifest) -> list[TraceRecord]:
    """Return the records of whole lines, each of another item of the manifest. Raises DataError."""
    again, left = "trace that item again", set(manifest.items)
    records = parse_lines(content, file, TraceRecord, again)
    expected = manifest.layers, {*manifest.settings.components}
    for row, record in enumerate(records, start=1):
        fits = (record.layers, {*record.restored}) == expected
        if record.id not in left or not fits:
            raise DataError(
                f"{file}, row {row}: {shortened(record.id)} is not an item of {MANIFEST} with its "
                f"layers and components, or comes twice; delete the row to {again}"
            )
        left.remove(record.id)
    return records


def _require_same(folder: Path, earlier: TraceManifest, now: Mapping[str, Any]) -> None:
    """Raise RunError unless these fields are those of an earlier manifest; rows may differ."""
    before, after = earlier.model_dump(), dict(now)
    chosen = after.pop("settings", {})
    differs = [key for key in after if before[key] != after[key]]
    before = before["settings"] | {"rows": chosen.get("rows")}
    differs += [f"setting {key}" for key in chosen if before[key] != chosen[key]]
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
