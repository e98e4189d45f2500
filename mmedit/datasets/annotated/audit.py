"""Contents of annotation files: counts beside the published ones, and what may spoil a number."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmedit.datasets.annotated.annotations import Annotation, texts
from mmedit.datasets.annotated.cases import Source
from mmedit.datasets.annotated.files import RELEASES
from mmedit.datasets.annotated.releases import ReleaseSettings
from mmedit.errors import DataError, shortened
from mmedit.images import corrupt_images
from mmedit.progress import Progress
from mmedit.storage import sha256

LONG_ANSWER = 10
"""Answers of this many words or more are counted together."""
LONG_TEXT = 1000
"""Characters from which a text is reported as too long. Few VLMs read so much beside an image."""
SHOWN = 3
"""Number of examples of each fault."""


def _has_lines(text: str | None) -> bool:
    return text is not None and len(text.strip().splitlines()) > 1


def _repeats(text: str | None, question: str) -> bool:
    return text is not None and text.strip().lower() == question.strip().lower()


def _holds(text: str | None, answer: str) -> bool:
    """Tell whether the words of an answer stand in a text one after another."""
    words = _words(answer)
    return bool(words) and f" {words} " in f" {_words(text or '')} "


DOUBTS: dict[str, Callable[[Annotation], bool]] = {
    "rephrases of several lines": lambda r: _has_lines(r.rephrase),
    "rephrases that repeat the question": lambda r: _repeats(r.rephrase, r.src),
    "rephrases that hold the new answer": lambda r: _holds(r.rephrase, r.alt),
    "questions that hold the new answer": lambda r: _holds(r.src, r.alt),
    "other texts of several lines": lambda r: any(
        key != "rephrase" and _has_lines(text) for key, text in texts(r.model_dump())
    ),
    "rephrased image is the request's": lambda r: r.image_rephrase == r.image,
    "image locality is about the request's image": lambda r: r.m_loc == r.image,
    "portability repeats the question": lambda r: any(
        _repeats((hop.question_and_answer or ("",))[0], r.src) for hop in r.port_new
    ),
}
"""Texts that may spoil a number beside missing and empty things, by their row in the table. A
rephrase that repeats the question makes text generality repeat reliability; a text that holds the
new answer can be answered by copying.
"""


@dataclass(frozen=True, kw_only=True)
class Audit:
    """The counts and faults of one annotation file and its images."""

    name: str
    file: Path
    sha256: str
    records: int
    published: int | None
    """Number of records in the paper."""
    duplicates: int
    """Records whose question, answer and image another record has as well."""
    unchanged: int
    """Records whose new answer is the old one, so that nothing is edited."""
    contradicting: int
    """Records that set another answer for the question and image of an earlier record."""
    doubtful: Mapping[str, tuple[int, ...]]
    """Rows by the name of the doubt (`DOUBTS`)."""
    empty: Mapping[str, tuple[int, ...]]
    """Rows with an empty field, by key."""
    long: tuple[str, ...]
    """Texts of `LONG_TEXT` characters or more, each as "row 3, src (1,200 characters)"."""
    words: Counter[int]
    """Number of new answers, by their number of words."""
    hops: int
    """Number of portability questions."""
    request_images: int
    """Number of distinct images of the requests."""
    images: int
    """Number of distinct images."""
    missing: tuple[str, ...]
    """Paths that are not there."""
    outside: tuple[str, ...]
    """Errors about images outside of the image folders, or with names that cannot be read."""
    corrupt: tuple[str, ...] | None
    """Errors about images that cannot be opened; None if they were not opened."""


def audit(
    source: Source, *, decode: bool, progress: Progress, published: int | None = None
) -> Audit:
    """Read an annotation file and look for its images; open every image if `decode`.

    Raises DataError if the annotations cannot be read.
    """
    records = source.read()
    paths, outside = _images(source, records)
    there = [path for path in paths if path.is_file()]
    missing = set(paths) - set(there)
    duplicates = Counter((r.src, r.alt, r.image) for r in records)
    return Audit(
        name=source.name,
        file=source.file,
        sha256=sha256(source.file),
        records=len(records),
        published=published,
        duplicates=sum(number - 1 for number in duplicates.values()),
        unchanged=sum(r.pred is not None and _plain(r.pred) == _plain(r.alt) for r in records),
        contradicting=_contradicting(records),
        doubtful={
            title: tuple(row for row, record in enumerate(records) if doubts(record))
            for title, doubts in DOUBTS.items()
        },
        empty=_rows_by_key((row, key) for row, r in enumerate(records) for key in r.empty),
        long=_long_texts(records),
        words=Counter(len(record.alt.split()) for record in records),
        hops=sum(len(record.port_new) for record in records),
        request_images=len({record.image for record in records}),
        images=len(paths),
        missing=tuple(str(path) for path in paths if path in missing),
        outside=outside,
        corrupt=corrupt_images(source.name, there, progress) if decode else None,
    )


def audit_release(
    settings: ReleaseSettings, *, decode: bool, progress: Progress
) -> tuple[list[Audit], list[Path]]:
    """Audit every annotation file of a published dataset; return the files that are not there too.

    Raises DataError if no file is there, or one cannot be read.
    """
    files = RELEASES[settings.release].files
    sources = [(settings.source_of(kind), file) for kind, file in files.items()]
    there = [(source, file) for source, file in sources if source.file.is_file()]
    audits = [
        audit(source, decode=decode, progress=progress, published=file.published)
        for source, file in there or sources[:1]
    ]
    return audits, [source.file for source, _ in sources if not source.file.is_file()]


def markdown(audits: Sequence[Audit], command: str, absent: Sequence[Path] = ()) -> str:
    """Return a table with a column per file, and the details of its counts."""
    lines = [
        f"`{command}`",
        "",
        f"| | {' | '.join(f'{a.file.parent.name}/{a.file.name}' for a in audits)} |",
        f"|---|{'--:|' * len(audits)}",
        *(f"| {title} | {' | '.join(map(value, audits))} |" for title, value in _rows(audits)),
        "",
        *(f"- {a.file.name}: SHA-256 `{a.sha256}`" for a in audits),
        *(f"- {file} is not there" for file in absent),
        *(line for a in audits for line in _faults(a)),
    ]
    return "\n".join(lines) + "\n"


def _rows(audits: Sequence[Audit]) -> list[tuple[str, Callable[[Audit], str]]]:
    lengths = sorted({length for a in audits for length in _lengths(a.words)})
    return [
        ("records", lambda a: f"{a.records:,}"),
        ("published", lambda a: "–" if a.published is None else f"{a.published:,}"),
        ("duplicates (question, answer, image)", lambda a: f"{a.duplicates:,}"),
        ("new answer is the old one", lambda a: f"{a.unchanged:,}"),
        ("other answer to an earlier question and image", lambda a: f"{a.contradicting:,}"),
        *((title, lambda a, t=title: f"{len(a.doubtful[t]):,}") for title in DOUBTS),
        ("records with an empty field", lambda a: _counts(a.empty)),
        (f"texts of {LONG_TEXT:,} characters or more", lambda a: f"{len(a.long):,}"),
        ("portability questions", lambda a: f"{a.hops:,}"),
        ("images of requests", lambda a: f"{a.request_images:,}"),
        ("images in all", lambda a: f"{a.images:,}"),
        ("images missing", lambda a: f"{len(a.missing):,}"),
        ("images outside of the folders", lambda a: f"{len(a.outside):,}"),
        ("images corrupt", lambda a: "not opened" if a.corrupt is None else f"{len(a.corrupt):,}"),
        ("words of the new answer, mean", lambda a: f"{_mean(a.words):.2f}"),
        *((_answers_of(n), lambda a, n=n: f"{_lengths(a.words)[n]:,}") for n in lengths),
    ]


def _faults(found: Audit) -> list[str]:
    empty = [
        f"{key} in row {', '.join(map(str, rows[:SHOWN]))}" for key, rows in found.empty.items()
    ]
    kinds = (
        ("empty", empty),
        ("too long", found.long[:SHOWN]),
        ("missing", found.missing[:SHOWN]),
        ("corrupt", (found.corrupt or ())[:SHOWN]),
    )
    rows = [
        f"- {found.file.name}: {title}, for instance row {', '.join(map(str, rows[:SHOWN]))}"
        for title, rows in found.doubtful.items()
        if rows
    ]
    lines = [
        f"- {found.file.name}: {kind}, for instance {', '.join(shown)}"
        for kind, shown in kinds
        if shown
    ]
    return [*rows, *lines, *(f"- {error}" for error in found.outside[:SHOWN])]


def _images(source: Source, records: Sequence[Annotation]) -> tuple[list[Path], tuple[str, ...]]:
    """Return the distinct paths of all images, and the errors about those that have none."""
    paths: dict[Path, None] = {}
    errors: dict[str, str] = {}
    for row, record in enumerate(records):
        for key, name in record.images.items():
            if not name:
                continue
            try:
                paths[source.image(row, record, key)] = None
            except DataError as error:
                errors.setdefault(name, str(error))
    return list(paths), tuple(errors.values())


def _rows_by_key(found: Iterable[tuple[int, str]]) -> dict[str, tuple[int, ...]]:
    rows: dict[str, list[int]] = defaultdict(list)
    for row, key in found:
        rows[key].append(row)
    return {key: tuple(numbers) for key, numbers in sorted(rows.items())}


def _long_texts(records: Sequence[Annotation]) -> tuple[str, ...]:
    return tuple(
        f"row {row}, {key} ({len(text):,} characters: {shortened(text, 40)})"
        for row, record in enumerate(records)
        for key, text in texts(record.model_dump())
        if len(text) >= LONG_TEXT
    )


def _contradicting(records: Sequence[Annotation]) -> int:
    answers: dict[tuple[str, str], str] = {}
    return sum(
        answers.setdefault((r.src, r.image), r.alt.strip()) != r.alt.strip() for r in records
    )


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def _plain(answer: str) -> str:
    return " ".join(answer.lower().split())


def _counts(empty: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{key} {len(rows):,}" for key, rows in empty.items()) or "0"


def _lengths(words: Counter[int]) -> Counter[int]:
    """Return the counts with all lengths from `LONG_ANSWER` on as one."""
    together: Counter[int] = Counter()
    for length, number in words.items():
        together[min(length, LONG_ANSWER)] += number
    return together


def _answers_of(words: int) -> str:
    return f"of {words}{' and more' if words == LONG_ANSWER else ''}"


def _mean(counter: Counter[int]) -> float:
    return sum(n * number for n, number in counter.items()) / max(1, counter.total())
