"""Annotation files in MMEdit's keys to edit cases, in the file's order.

Images are paths until a VLM wants them; every path must stay under the image root. A record with an
empty field is left out, as in the reference code. Prompts are verbatim but for the template.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mmedit.cases import EditCase, Example, Probe
from mmedit.datasets.annotated.annotations import Annotation, read_annotations
from mmedit.errors import DataError, UnknownNameError
from mmedit.progress import Progress, silent
from mmedit.storage import under

OnMissing = Literal["error", "skip"]
CaseMaker = Callable[["Source", int, Annotation], EditCase]

PROBES = ("rephrase", "image_rephrase", "loc", "m_loc")
"""What a record of the published benchmarks has beside the request."""


class Cases(list[EditCase]):
    """Edit cases, and how many records were left out for which reason."""

    left_out: Counter[str]

    def __init__(self, cases: Sequence[EditCase], left_out: Counter[str]) -> None:
        super().__init__(cases)
        self.left_out = left_out


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the records of a split are, and how they are asked."""

    name: str
    file: Path
    images: Path
    rephrase_images: Path
    template: str
    """Of questions about an image; {} is the question."""
    locality_template: str
    """Of image locality's."""
    required: Sequence[str] = PROBES
    fetch: str = ""
    """What to do where files are missing."""
    form: type[Annotation] = Annotation
    """What a record holds."""
    case: CaseMaker | None = None
    """Of a record, where it is not the usual one."""


def load(
    source: Source,
    *,
    on_missing_image: OnMissing = "error",
    limit: int | None = None,
    progress: Progress = silent,
) -> Cases:
    """The first `limit` records as cases, in the file's order.

    Raises DataError.
    """
    if on_missing_image not in ("error", "skip"):
        raise UnknownNameError("way with missing images", str(on_missing_image), ("error", "skip"))
    for template in (source.template, source.locality_template):
        if not isinstance(template, str) or template.count("{}") != 1:
            raise DataError(
                f"the template {template!r} must be a text that holds {{}} once, for the question; "
                "YAML wants quotes around a colon: --set 'dataset.template=\"Q: {} A:\"'"
            )
    if not source.file.is_file():
        raise DataError(f"{source.name}: there is no file {source.file}. {source.fetch}")
    annotations = read_annotations(source.file, required=source.required, form=source.form)[:limit]
    make = source.case or usual_case
    left_out: Counter[str] = Counter()
    cases, missing = [], []
    for row, annotation in enumerate(annotations):
        if annotation.empty:
            left_out["an empty field"] += 1
            continue
        case = make(source, row, annotation)
        lost = [path for path in _images(case) if not path.is_file()]
        missing += lost
        if lost:
            left_out["an image is missing"] += 1
        else:
            cases.append(case)
        progress("reading cases", row + 1, len(annotations), "")
    if missing and on_missing_image == "error":
        raise DataError(
            f"{source.name}: {len(set(missing)):,} images are missing, for instance {missing[0]}. "
            f"{source.fetch} Or leave out what lacks one: --set dataset.on_missing_image=skip."
        )
    if not cases:
        reasons = ", ".join(f"{reason}: {number:,}" for reason, number in left_out.items())
        raise DataError(f"{source.name}: no record is left ({reasons}). {source.fetch}")
    return Cases(cases, left_out)


def usual_case(source: Source, row: int, record: Annotation) -> EditCase:
    """The case of a record in MMEdit's keys."""
    image = under(source.images, record.image, source.file, row)
    prompt = source.template.replace("{}", record.src)

    def asked(prompt: str, image: Path | None = image) -> tuple[Example, ...]:
        return (
            Example(prompt=prompt, target=record.alt.strip(), image=image, answers=record.answers),
        )

    probes: dict[Probe, tuple[Example, ...]] = {}
    if record.rephrase is not None:
        probes[Probe.TEXT_GENERALITY] = asked(source.template.replace("{}", record.rephrase))
    if record.image_rephrase is not None:
        other = under(source.rephrase_images, record.image_rephrase, source.file, row)
        probes[Probe.IMAGE_GENERALITY] = asked(prompt, other)
    if record.loc is not None and record.loc_ans is not None:
        probes[Probe.TEXT_LOCALITY] = (Example(prompt=record.loc, target=record.loc_ans.strip()),)
    if record.m_loc is not None and record.m_loc_q is not None and record.m_loc_a is not None:
        probes[Probe.IMAGE_LOCALITY] = (
            Example(
                prompt=source.locality_template.replace("{}", record.m_loc_q),
                target=record.m_loc_a.strip(),
                image=under(source.images, record.m_loc, source.file, row),
            ),
        )
    hops = [hop.question_and_answer for hop in record.port_new]
    if hops:
        probes[Probe.PORTABILITY] = tuple(
            Example(prompt=source.template.replace("{}", qa[0]), target=qa[1].strip(), image=image)
            for qa in hops
            if qa is not None
        )
    return EditCase(id=f"{source.name}-{row}", request=asked(prompt)[0], probes=probes)


def _images(case: EditCase) -> list[Path]:
    examples = [example for asked in case.probes.values() for example in asked]
    return list(dict.fromkeys(e.image for e in examples if isinstance(e.image, Path)))
