"""Annotation files in MMEdit's keys to edit cases, in the file's order.

Images are paths until a VLM opens them, and every path must stay inside the image folders. A record
with an empty field is left out, as in the reference code. Prompts are verbatim inside the template.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mmedit.cases import Cases, EditCase, Example, Probe
from mmedit.datasets.annotated.annotations import Annotation, read_annotations
from mmedit.errors import DataError
from mmedit.progress import Progress
from mmedit.storage import inside

OnMissing = Literal["error", "skip"]
CaseMaker = Callable[["Source", int, Annotation], EditCase]

MMEDIT = "Question: {} Short answer:"
"""MMEdit's template of visual questions."""
PROBES = ("rephrase", "image_rephrase", "loc", "m_loc")
"""Keys of a record of the published benchmarks beside the request."""
ALLOW = "If the image may be there, name its folder too: --set 'dataset.images=[DIR1, DIR2]'."
SHOWN = 5
"""Number of rows that an error message names."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """One annotation file, and how its records are asked."""

    name: str
    """The beginning of each case's id."""
    file: Path
    images: Sequence[Path]
    """The image folders."""
    rephrase_images: Sequence[Path]
    """The folders of the other image of the same thing."""
    template: str
    """The prompt of a question about an image; {} is the question."""
    locality_template: str
    """The prompt of an image-locality question."""
    required: Sequence[str] = PROBES
    """Keys that each record must have beside src, alt and image."""
    without_file: str = ""
    """Advice if the file is missing."""
    without_image: str = ""
    """Advice if images are missing."""
    form: type[Annotation] = Annotation
    """The keys of a record."""
    case: CaseMaker | None = None
    """Makes a case of a record; None stands for `usual_case`."""
    binding: bool = False
    """Whether cases have the probes of binding."""

    def read(self) -> Sequence[Annotation]:
        """Return all records. Raises DataError."""
        return read_annotations(
            self.file, required=self.required, form=self.form, advice=self.without_file
        )

    def image(self, row: int, record: Annotation, key: str) -> Path:
        """Return the path of the image in a field of a record. Raises DataError."""
        roots = self.rephrase_images if key == "image_rephrase" else self.images
        where = f"{self.file}, row {row}, {record.written(key)}"
        return inside(roots, record.images[key] or "", where, ALLOW)


@dataclass(frozen=True)
class _Row:
    """Result of reading one record."""

    number: int
    case: EditCase | None
    """None if the record is left out."""
    empty: Sequence[str] = ()
    """The keys of its empty fields."""
    missing: Sequence[Path] = ()
    """Its images that are not there, are not files, or may not be read."""


def load(
    source: Source, *, on_missing_image: OnMissing, limit: int | None, progress: Progress
) -> Cases:
    """Return the first `limit` records that are used as cases, in the file's order. Raises
    DataError.
    """
    found, rows = source.read(), list[_Row]()
    records = [(row, record) for row, record in enumerate(found) if not record.unused][:limit]
    for number, record in records:
        rows.append(_row(source, number, record))
        progress("reading cases", len(rows), len(records), "")
    missing = [(path, row.number) for row in rows for path in row.missing]
    if missing and on_missing_image == "error":
        path, number = missing[0]
        found = ""
        if os.path.exists(path):
            found = f"which {'may not be read' if path.is_file() else 'is not a regular file'}; "
        raise DataError(
            f"{source.name}: {len(dict(missing)):,} images are missing, for instance {path} "
            f"({found}{source.file}, row {number}). {source.without_image} To leave out the "
            "records that lack an image: --set dataset.on_missing_image=skip."
        )
    cases = tuple(row.case for row in rows if row.case is not None)
    unused = Counter(record.unused for record in found if record.unused)
    if not cases and (rows or (unused and limit != 0)):
        raise DataError(_nothing_left(source, rows, unused))
    return Cases(cases, {**_left_out(rows), **unused})


def _row(source: Source, number: int, record: Annotation) -> _Row:
    if record.empty:
        return _Row(number, None, empty=record.empty)
    case = (source.case or usual_case)(source, number, record)
    missing = [p for p in _images(case) if not (p.is_file() and os.access(p, os.R_OK))]
    return _Row(number, None if missing else case, missing=missing)


def _left_out(rows: Sequence[_Row]) -> dict[str, int]:
    counts = {
        "an image is missing": sum(bool(row.missing) for row in rows),
        "an empty field": sum(bool(row.empty) for row in rows),
    }
    return {reason: number for reason, number in counts.items() if number}


def usual_case(source: Source, row: int, record: Annotation) -> EditCase:
    """Return the case of a record in MMEdit's keys."""
    image = source.image(row, record, "image")
    prompt = source.template.replace("{}", record.src)

    def asked(prompt: str, image: Path | None = image) -> tuple[Example, ...]:
        return (
            Example(
                prompt=prompt,
                target=record.alt.strip(),
                image=image,
                answers=record.answers,
                subject=record.subject_in(prompt),
            ),
        )

    probes: dict[Probe, tuple[Example, ...]] = {}
    if record.rephrase is not None:
        probes[Probe.TEXT_GENERALITY] = asked(source.template.replace("{}", record.rephrase))
    if record.image_rephrase is not None:
        probes[Probe.IMAGE_GENERALITY] = asked(prompt, source.image(row, record, "image_rephrase"))
    probes |= _locality(source, row, record)
    hops = [hop.question_and_answer for hop in record.port_new]
    if hops:
        probes[Probe.PORTABILITY] = tuple(
            Example(prompt=source.template.replace("{}", qa[0]), target=qa[1].strip(), image=image)
            for qa in hops
            if qa is not None
        )
        if source.binding:
            probes[Probe.NEW_BINDING] = probes[Probe.PORTABILITY]
            probes[Probe.OLD_ENTITY] = _about_old_entity(record)
    return EditCase(id=f"{source.name}-{row}", request=asked(prompt)[0], probes=probes)


def _about_old_entity(record: Annotation) -> tuple[Example, ...]:
    """Return the questions about the new entity by its name, with the name of the old one in place
    of it: their answers must not become those about the new one. The old entity's own answers are
    not in the records.
    """
    old, new = (record.pred or "").replace("_", " ").strip(), re.escape(record.alt.strip())
    if not old:
        return ()
    asked = [(hop.port_edit_q, hop.port_a) for hop in record.port_new]
    changed = [
        (re.sub(new, lambda _: old, question, flags=re.IGNORECASE), question, answer)
        for question, answer in asked
        if question is not None and answer is not None
    ]
    return tuple(
        Example(prompt=prompt, target=answer.strip())
        for prompt, question, answer in changed
        if prompt != question
    )


def _locality(source: Source, row: int, record: Annotation) -> Mapping[Probe, tuple[Example, ...]]:
    probes: dict[Probe, tuple[Example, ...]] = {}
    if record.loc is not None and record.loc_ans is not None:
        probes[Probe.TEXT_LOCALITY] = (Example(prompt=record.loc, target=record.loc_ans.strip()),)
    if record.m_loc is not None and record.m_loc_q is not None and record.m_loc_a is not None:
        probes[Probe.IMAGE_LOCALITY] = (
            Example(
                prompt=source.locality_template.replace("{}", record.m_loc_q),
                target=record.m_loc_a.strip(),
                image=source.image(row, record, "m_loc"),
            ),
        )
    return probes


def _images(case: EditCase) -> list[Path]:
    examples = [*case.requests, *(example for asked in case.probes.values() for example in asked)]
    return list(dict.fromkeys(e.image for e in examples if isinstance(e.image, Path)))


def _nothing_left(source: Source, rows: Sequence[_Row], unused: Mapping[str, int]) -> str:
    counts = {**_left_out(rows), **unused}
    reasons = ", ".join(f"{why}: {number:,}" for why, number in counts.items())
    said = [f"{source.name}: no record is left ({reasons})."]
    empty = [f"row {row.number}: {', '.join(row.empty)}" for row in rows if row.empty]
    if empty:
        more = f"; and {len(empty) - SHOWN:,} more" if len(empty) > SHOWN else ""
        said.append(
            f"Empty in {source.file}: {'; '.join(empty[:SHOWN])}{more}. Fill these fields in, or "
            "remove the optional keys."
        )
    if any(row.missing for row in rows):
        said.append(source.without_image)
    return " ".join(said)
