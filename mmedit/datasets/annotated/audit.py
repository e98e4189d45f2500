"""What is in a benchmark's files: counts beside the published ones, and what may spoil a number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmedit.cases import Split
from mmedit.datasets.annotated.annotations import Annotation, read_annotations
from mmedit.datasets.annotated.cases import Source
from mmedit.datasets.annotated.mmke import KNOWLEDGE
from mmedit.datasets.annotated.releases import PORTABILITY, SOURCES
from mmedit.errors import DataError, UnknownNameError
from mmedit.images import corrupt_images
from mmedit.progress import Progress
from mmedit.storage import sha256, under

PUBLISHED = {
    "evqa-train": 6346,
    "evqa-test": 2093,
    "eic-train": 2849,
    "eic-test": 1000,
    "vlkeb-train": 5000,
    "vlkeb-test": 3174,
}
"""Records, by the papers (Cheng et al. 2023; Huang et al. 2024)."""

LONG = 10
"""Answers of so many words and more are counted together."""
SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Of one annotation file and the images it names."""

    name: str
    file: Path
    sha256: str
    records: int
    published: int | None
    duplicates: int
    """Records whose question, answer and image another one has as well."""
    unchanged: int
    """Records whose new answer is the old one: nothing to edit."""
    empty: Counter[str]
    """Records with an empty field, by key."""
    words: Counter[int]
    """Words of the new answers."""
    hops: int
    """Portability questions."""
    request_images: int
    """Distinct images of the requests."""
    images: int
    """Distinct images in all."""
    missing: tuple[str, ...]
    corrupt: tuple[str, ...] | None
    """None: the images were not opened."""


def audit(source: Source, *, decode: bool, progress: Progress) -> Audit:
    """Read a source's annotations and look for its images; with `decode` open every one of them.

    Raises DataError where the annotations cannot be read.
    """
    if not source.file.is_file():
        raise DataError(f"{source.name}: there is no file {source.file}. {source.fetch}")
    records = read_annotations(source.file, required=source.required, form=source.form)
    names = dict.fromkeys(image for n, r in enumerate(records) for image in _named(source, r, n))
    missing = [path for path in names if not path.is_file()]
    return Audit(
        name=source.name,
        file=source.file,
        sha256=sha256(source.file),
        records=len(records),
        published=PUBLISHED.get(source.name) if source.file.name not in _PORTABILITY else None,
        duplicates=sum(
            number - 1 for number in Counter((r.src, r.alt, r.image) for r in records).values()
        ),
        unchanged=sum(r.pred is not None and _plain(r.pred) == _plain(r.alt) for r in records),
        empty=Counter(key for record in records for key in record.empty),
        words=Counter(len(record.alt.split()) for record in records),
        hops=sum(len(record.port_new) for record in records),
        request_images=len({record.image for record in records}),
        images=len(names),
        missing=tuple(map(str, missing)),
        corrupt=(
            corrupt_images(source.name, [n for n in names if n not in set(missing)], progress)
            if decode
            else None
        ),
    )


_PORTABILITY = {file for kind, file in PORTABILITY.items() if kind != "none"}


def sources_of(name: str, root: str, **settings: str) -> list[Source]:
    """Every annotation file of a benchmark that is there. Raises UnknownNameError, DataError."""
    published = [known for known in SOURCES if known != "json"]
    if name not in published:
        raise UnknownNameError("benchmark to check", name, published)
    make = SOURCES[name]
    splits: tuple[Split, ...] = ("train", "test")
    if name == "mmke":
        every = [
            make(split, root=root, knowledge=knowledge, **settings)
            for knowledge in KNOWLEDGE
            for split in splits
        ]
        return [source for source in every if source.file.is_file()] or every[:1]
    found = [make(split, root=root, **settings) for split in splits]
    if name == "vlkeb":
        further = [kind for kind in PORTABILITY if kind != "none"]
        more = [make("test", root=root, portability=kind, **settings) for kind in further]
        found += [source for source in more if source.file.is_file()]
    return found


def markdown(audits: Sequence[Audit], command: str) -> str:
    """A table, a column per file, and what is behind its figures."""
    rows: list[tuple[str, Callable[[Audit], str]]] = [
        ("records", lambda a: f"{a.records:,}"),
        ("published", lambda a: "–" if a.published is None else f"{a.published:,}"),
        ("duplicates (question, answer, image)", lambda a: f"{a.duplicates:,}"),
        ("new answer is the old one", lambda a: f"{a.unchanged:,}"),
        ("records with an empty field", lambda a: _counts(a.empty)),
        ("portability questions", lambda a: f"{a.hops:,}"),
        ("images of requests", lambda a: f"{a.request_images:,}"),
        ("images in all", lambda a: f"{a.images:,}"),
        ("images missing", lambda a: f"{len(a.missing):,}"),
        ("images corrupt", lambda a: "not opened" if a.corrupt is None else f"{len(a.corrupt):,}"),
        ("words of the new answer", lambda a: f"{_mean(a.words):.2f}"),
        *(
            (f"of {n}{' and more' if n == LONG else ''}", lambda a, n=n: f"{_long(a.words)[n]:,}")
            for n in sorted({n for a in audits for n in _long(a.words)})
        ),
    ]
    lines = [
        f"`{command}`",
        "",
        f"| | {' | '.join(f'{a.file.parent.name}/{a.file.name}' for a in audits)} |",
        f"|---|{'--:|' * len(audits)}",
        *(f"| {title} | {' | '.join(value(a) for a in audits)} |" for title, value in rows),
        "",
        *(f"- {a.file.name}: SHA-256 `{a.sha256}`" for a in audits),
    ]
    for a in audits:
        for what, paths in (("missing", a.missing), ("corrupt", a.corrupt or ())):
            if paths:
                lines.append(f"- {a.file.name}: {what}, for instance {', '.join(paths[:SHOWN])}")
    return "\n".join(lines) + "\n"


def _named(source: Source, record: Annotation, row: int) -> list[Path]:
    roots = {"image_rephrase": source.rephrase_images}
    return [
        under(roots.get(key, source.images), name, source.file, row)
        for key, name in record.images.items()
        if name
    ]


def _plain(answer: str) -> str:
    return " ".join(answer.lower().split())


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{key} {number:,}" for key, number in sorted(counter.items())) or "0"


def _long(words: Counter[int]) -> Counter[int]:
    """With all lengths from `LONG` on as one."""
    together: Counter[int] = Counter()
    for length, number in words.items():
        together[min(length, LONG)] += number
    return together


def _mean(counter: Counter[int]) -> float:
    return sum(n * number for n, number in counter.items()) / max(1, counter.total())
