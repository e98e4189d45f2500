"""One HTML page about a run: the table, its trade-off, plots of sequences, and edits to look at.

The page loads nothing from outside (images are embedded, there is no script), and every string of
the records is escaped: prompts and generated answers are data, never markup.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from math import isfinite, isnan
from pathlib import Path
from types import MappingProxyType

import pandas
from PIL import Image, ImageOps

from mmedit.cases import Probe
from mmedit.errors import ImageError
from mmedit.records.schema import ProbeRecord, Record, RunManifest
from mmedit.report.columns import Column
from mmedit.report.intervals import Summary
from mmedit.report.render.html import TEMPLATES, html_parts
from mmedit.report.render.sequence_plots import sequence_figures, svg_of
from mmedit.report.run_tables import run_table
from mmedit.report.runs import INDEPENDENT, Measured, measured_run, mode_of
from mmedit.report.scores import by_editor, is_base
from mmedit.storage import write_atomically

REPORT = "report.html"
EXAMPLES = 8
"""Number of edits shown with pictures and answers."""
THUMBNAIL_PIXELS = 128
_PICTURED = {
    Probe.RELIABILITY: "request",
    Probe.IMAGE_GENERALITY: "image rephrase",
    Probe.IMAGE_LOCALITY: "image locality",
}

Images = Callable[[str], Path | None] | Mapping[str, Path]


@dataclass(frozen=True)
class Answer:
    """The answers to one question before and after one method's edit.

    `right` is None if no answer was generated; `score` is the exact match shown in its place.
    """

    editor: str
    before: str | None
    after: str | None
    right: bool | None
    score: str


@dataclass(frozen=True)
class Question:
    """One example of the gallery with the answers of all methods."""

    heading: str
    prompt: str
    expected: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Picture:
    """One image of the gallery as a data URI; `uri` is None if there is no file of the image."""

    caption: str
    uri: str | None


@dataclass(frozen=True)
class GalleryCase:
    """One edit of the gallery."""

    id: str
    prompt: str
    target: str
    pictures: tuple[Picture, ...]
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class Bar:
    """One dot of the plot with its interval, all in percent of the axis."""

    lane: int
    probe: str
    mean: float
    low: float
    width: float


def write_report(
    folder: Path,
    records: Sequence[Record],
    *,
    manifest: RunManifest | None = None,
    images: Images = MappingProxyType({}),
    title: str = "",
    examples: int = EXAMPLES,
) -> Path:
    """Write `report.html` into the folder of a run and return its path.

    `manifest` adds command, versions, notes and training times. `images` gives the file of an image
    by its name in the records; an image without a file has no thumbnail. `title` replaces the
    heading, which otherwise names the VLM and the dataset. `examples` is the number of edits shown.
    Raises DataError for records that make no table, ImageError for a file that is not an image,
    RunError if the page cannot be written.
    """
    shown = _shown(records, manifest)
    table = run_table(shown)
    lanes = _lanes(table)
    plot = [(editor, _bars(table.loc[editor].to_dict(), lanes)) for editor in table.index]
    thumbnail = cache(_thumbnails(images.get if isinstance(images, Mapping) else images))
    title = title or (f"{manifest.vlm} on {manifest.dataset}" if manifest else folder.name)
    page = TEMPLATES.get_template("report.html.j2").render(
        title=title or "Edits",
        intro=_intro(table, shown.records, manifest),
        manifest=manifest,
        **html_parts(table),
        plot=plot,
        legend=sorted({(bar.lane, bar.probe) for _, bars in plot for bar in bars}),
        figures=[
            (name, _uri(svg_of(figure), "svg+xml"))
            for name, figure in sequence_figures(records, title=title).items()
        ],
        gallery=_gallery(shown.records, examples, thumbnail),
    )
    write_atomically(folder / REPORT, page.encode())
    return folder / REPORT


def _shown(records: Sequence[Record], manifest: RunManifest | None) -> Measured:
    """Return the records that the table shows, with their notes."""
    return measured_run(records, manifest) if manifest else Measured(list(records), {}, {})


def _intro(table: pandas.DataFrame, records: Sequence[Record], manifest: RunManifest | None) -> str:
    methods = [str(editor) for editor in table.index if not is_base(str(editor))]
    edits = len({record.case_id for record in records if record.test != "ability"})
    alone = manifest is not None and mode_of(manifest) == INDEPENDENT
    how = ", each made by itself from the base model" if alone else ""
    return f"{edits:,} edits{how}. Methods: {', '.join(methods) or 'none'}."


def _lanes(table: pandas.DataFrame) -> list[Probe]:
    """Choose the probes of the plot: one that the edit must change, one that it must not."""
    known = [probe for probe in Probe if (probe.heading, "EM") in table.columns]
    changed = [probe for probe in known if not probe.is_locality]
    kept = [probe for probe in reversed(known) if probe.is_locality]
    return [*changed[:1], *kept[:1]]


def _bars(row: Mapping[Column, object], lanes: Sequence[Probe]) -> list[Bar]:
    found = [(probe, row.get((probe.heading, "EM"))) for probe in lanes]
    return [
        _bar(lanes.index(probe), probe.title, cell)
        for probe, cell in found
        if isinstance(cell, Summary) and cell.n and isfinite(cell.mean)
    ]


def _bar(lane: int, probe: str, cell: Summary) -> Bar:
    low, high = (cell.mean, cell.mean) if isnan(cell.low) else (cell.low, cell.high)
    return Bar(lane, probe, cell.mean, low, high - low)


def _gallery(
    records: Sequence[Record], examples: int, thumbnail: Callable[[str], str | None]
) -> list[GalleryCase]:
    by_case: dict[str, dict[str, Record]] = {}
    for editor, found in by_editor(records).items():
        for record in found:
            if any(record.probes.values()):
                by_case.setdefault(record.case_id, {}).setdefault(editor, record)
    return [_gallery_case(by_case[case], thumbnail) for case in list(by_case)[:examples]]


def _gallery_case(
    by_editor: Mapping[str, Record], thumbnail: Callable[[str], str | None]
) -> GalleryCase:
    methods = {n: record for n, record in by_editor.items() if not is_base(n)} or by_editor
    first = next(iter(methods.values()))
    request = next(asked[0] for asked in first.probes.values() if asked)
    return GalleryCase(
        id=first.case_id,
        prompt=request.prompt,
        target=request.target,
        pictures=_pictures(first, thumbnail),
        questions=tuple(
            _question(probe, number, methods)
            for probe in Probe
            for number in range(len(first.probes.get(probe, ())))
        ),
    )


def _pictures(record: Record, thumbnail: Callable[[str], str | None]) -> tuple[Picture, ...]:
    asked = [(caption, record.probes.get(probe, ())) for probe, caption in _PICTURED.items()]
    return tuple(
        Picture(caption, thumbnail(examples[0].image))
        for caption, examples in asked
        if examples and examples[0].image is not None
    )


def _question(probe: Probe, number: int, methods: Mapping[str, Record]) -> Question:
    asked = {
        name: record.probes[probe][number]
        for name, record in methods.items()
        if len(record.probes.get(probe, ())) > number
    }
    example = next(iter(asked.values()))
    expected = "the answer must not change" if probe.is_locality else f"target: {example.target}"
    answers = tuple(_answer(name, probe, record) for name, record in asked.items())
    return Question(probe.title, example.prompt, expected, answers)


def _answer(editor: str, probe: Probe, asked: ProbeRecord) -> Answer:
    before = _text(asked.generated_pre, asked.cut_off_pre)
    after = _text(asked.generated_post, asked.cut_off_post)
    if not asked.is_finite:
        return Answer(editor, before, "NaN or infinite output", False, _exact_match(asked))
    return Answer(editor, before, after, _is_right(probe, asked), _exact_match(asked))


def _text(generated: str | None, is_cut_off: bool | None) -> str | None:
    """Return a generation as it is shown: with an ellipsis if it was cut off."""
    return f"{generated} …" if generated is not None and is_cut_off else generated


def _is_right(probe: Probe, asked: ProbeRecord) -> bool | None:
    before, after = asked.generated_pre, asked.generated_post
    if after is None or (probe.is_locality and before is None):
        return None
    if probe.is_locality:
        return after == before
    if asked.generation_post is not None:
        return asked.generation_post.exact == 1
    return after.strip().casefold() == asked.target.strip().casefold()


def _exact_match(asked: ProbeRecord) -> str:
    if asked.locality is not None:
        return f"EM with the base model {asked.locality.exact_answer:g}"
    return f"EM {asked.pre.exact_match:g} → {asked.post.exact_match:g}"


def _thumbnails(find: Callable[[str], Path | None]) -> Callable[[str], str | None]:
    def thumbnail(name: str) -> str | None:
        path = find(name)
        return _thumbnail(path) if path is not None and path.exists() else None

    return thumbnail


def _thumbnail(path: Path) -> str:
    """Make a PNG thumbnail, turned upright, as a data URI."""
    try:
        with Image.open(path) as image:
            small = ImageOps.exif_transpose(image).convert("RGBA")
        small.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    except (OSError, Image.DecompressionBombError) as error:
        raise ImageError(
            f"cannot show {path}: {error}; give a readable image, or no file to leave it out"
        ) from error
    png = BytesIO()
    small.save(png, "PNG", optimize=True)
    return _uri(png.getvalue(), "png")


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
