"""One self-contained HTML page about a run: the table, its trade-off, and edits to look at.

The page needs nothing from outside (images are embedded, there is no script), and every string of
the records is escaped: prompts and generated answers are data, never markup.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from math import isnan
from pathlib import Path

from PIL import Image, ImageOps

from mmedit.cases import Probe
from mmedit.errors import ImageError
from mmedit.records.schema import ProbeRecord, Record, RunManifest
from mmedit.report.intervals import Summary
from mmedit.report.render.html import TEMPLATES, html_parts
from mmedit.report.scores import BASE
from mmedit.report.table import method_table
from mmedit.storage import write_atomically

REPORT = "report.html"
THUMBNAIL_PIXELS = 128
_PLOTTED = (Probe.RELIABILITY, Probe.IMAGE_LOCALITY)  # what must change, and what must not
_PICTURED = {
    Probe.RELIABILITY: "request",
    Probe.IMAGE_GENERALITY: "image rephrase",
    Probe.IMAGE_LOCALITY: "image locality",
}

Images = Callable[[str], Path | None] | Mapping[str, Path]


@dataclass(frozen=True)
class Answer:
    """What one method made of one question.

    `right` is None where no answer was generated; `score` is the exact match that is there instead.
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
    wanted: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Picture:
    """One image of the gallery as a data URI; `uri` is None where the image was not to be had."""

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
    """One dot of the plot with its interval; all in percent of the axis."""

    lane: int
    split: str
    mean: float
    low: float
    width: float


def write_report(
    directory: Path,
    records: Sequence[Record],
    *,
    images: Images,
    title: str,
    intro: str,
    examples: int = 4,
    manifest: RunManifest | None = None,
) -> Path:
    """Write `report.html` into `directory` and return its path.

    `images` maps a record's image string to a file that Pillow opens, or to None where there is
    none to show. The gallery holds the first `examples` cases of the records. `manifest` adds the
    command, the versions and the training times. Raises DataError for records that make no table,
    ImageError for an image file that cannot be read, RunError where the page cannot be written.
    """
    table = method_table(
        records, training_seconds=(manifest.training_seconds or None) if manifest else None
    )
    plot = [(editor, _bars(table.loc[editor].to_dict())) for editor in table.index]
    thumbnail = cache(_thumbnails(images.get if isinstance(images, Mapping) else images))
    page = TEMPLATES.get_template("report.html.j2").render(
        title=title,
        intro=intro,
        manifest=manifest,
        **html_parts(table),
        plot=plot,
        legend=sorted({(bar.lane, bar.split) for _, bars in plot for bar in bars}),
        gallery=_gallery(records, examples, thumbnail),
    )
    write_atomically(directory / REPORT, page.encode())
    return directory / REPORT


def _bars(row: Mapping[tuple[str, str], object]) -> list[Bar]:
    found = [(probe, row.get((probe.heading, "EM"))) for probe in _PLOTTED]
    return [_bar(probe, cell) for probe, cell in found if isinstance(cell, Summary)]


def _bar(probe: Probe, cell: Summary) -> Bar:
    low, high = (cell.mean, cell.mean) if isnan(cell.low) else (cell.low, cell.high)
    return Bar(_PLOTTED.index(probe), probe.title, cell.mean, low, high - low)


def _gallery(
    records: Sequence[Record], examples: int, thumbnail: Callable[[str], str | None]
) -> list[GalleryCase]:
    by_case: dict[str, dict[str, Record]] = {}
    for record in records:
        by_case.setdefault(record.case_id, {}).setdefault(record.editor, record)
    return [_gallery_case(by_case[case], thumbnail) for case in list(by_case)[:examples]]


def _gallery_case(
    by_editor: Mapping[str, Record], thumbnail: Callable[[str], str | None]
) -> GalleryCase:
    methods = {name: record for name, record in by_editor.items() if name != BASE} or by_editor
    first = next(iter(methods.values()))
    request = first.probes[Probe.RELIABILITY][0]
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
    wanted = "the answer must not change" if probe.is_locality else f"target: {example.target}"
    answers = tuple(_answer(name, probe, record) for name, record in asked.items())
    return Question(probe.title, example.prompt, wanted, answers)


def _answer(editor: str, probe: Probe, asked: ProbeRecord) -> Answer:
    before, after = asked.generated_pre, asked.generated_post
    return Answer(editor, before, after, _is_right(probe, asked), _exact_match(asked))


def _is_right(probe: Probe, asked: ProbeRecord) -> bool | None:
    before, after = asked.generated_pre, asked.generated_post
    if after is None or (probe.is_locality and before is None):
        return None
    if probe.is_locality:
        return after == before
    return after.strip().casefold() == asked.target.strip().casefold()


def _exact_match(asked: ProbeRecord) -> str:
    if asked.locality is not None:
        return f"EM with the unedited model {asked.locality.exact_answer:g}"
    return f"EM {asked.pre.exact_match:g} → {asked.post.exact_match:g}"


def _thumbnails(find: Callable[[str], Path | None]) -> Callable[[str], str | None]:
    def thumbnail(name: str) -> str | None:
        path = find(name)
        return None if path is None else _data_uri(path)

    return thumbnail


def _data_uri(path: Path) -> str:
    """A PNG thumbnail, turned upright."""
    try:
        with Image.open(path) as image:
            small = ImageOps.exif_transpose(image).convert("RGBA")
        small.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    except (OSError, Image.DecompressionBombError) as error:
        raise ImageError(
            f"cannot show {path}: {error}; give a readable image, or None to leave it out"
        ) from error
    png = BytesIO()
    small.save(png, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
