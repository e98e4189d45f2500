"""The numbers of edits and probes that each task of grocery makes of each split, and how many of
their questions a base model answers right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from mmedit.cases import Cases, Example, Probe, Split
from mmedit.datasets.grocery.cases import REASONS, TASKS, Grocery
from mmedit.datasets.grocery.edits import known_by
from mmedit.datasets.grocery.files import folder_of
from mmedit.datasets.grocery.questions import QUESTIONS
from mmedit.datasets.grocery.shop import photograph_key
from mmedit.datasets.known import Known, text_key
from mmedit.errors import DataError
from mmedit.progress import Progress, named

ASKED = {phrasings.original[0]: asked for asked, phrasings in QUESTIONS.items()}
"""The keys of the questions, by their original wording."""
Counts = Counter[Probe]


@dataclass(frozen=True, kw_only=True)
class TaskCounts:
    """The edits and probes of one task and split, with the seed 0."""

    name: str
    """For instance "object, test"."""
    probes: Counts
    """Number of examples of each probe; reliability counts the edits."""
    asked: Counts
    """Number of those whose question the base model was asked, with its true answer."""
    right: Counts
    """Number of those that it answered right."""
    left: Counts
    """Number of examples of each probe with the known file."""
    left_out: Mapping[str, int]
    """Number of photographs that the known file leaves out, by reason."""


def count(root: Path, known_file: Path | None, progress: Progress) -> list[TaskCounts]:
    """Count the probes of every task and split; of captions only where there are descriptions.

    Raises DataError if the edits of an object cannot be made.
    """
    known = Known.read(known_file) if known_file else None
    found = []
    for task in TASKS:
        for split in get_args(Split):
            report = named(progress, f"making cases: {task}, {split}")
            try:
                cases = Grocery(root=root, task=task).load(split, progress=report)
            except DataError:
                if task != "caption":
                    raise
                continue
            left = _left(Grocery(root=root, task=task, known=known_file), split, report)
            answers = [(p, _answer(e, root, known)) for p, e in _examples(cases)] if known else []
            found.append(
                TaskCounts(
                    name=f"{task}, {split}",
                    probes=_counted(cases),
                    asked=Counter(probe for probe, answer in answers if answer is not None),
                    right=Counter(probe for probe, answer in answers if answer),
                    left=_counted(left),
                    left_out=left.left_out,
                )
            )
    return found


def markdown(counts: Sequence[TaskCounts], known_file: Path | None) -> list[str]:
    """Return a table of the probes; with a known file also of what it leaves, and of accuracies."""
    lines = ["", "Edits (reliability) and probes, with the seed 0:", ""]
    lines += _table(counts, lambda one, probe: _number(one.probes[probe]))
    if known_file is None:
        return lines
    lines += ["", f"The same with dataset.known={known_file}:", ""]
    lines += _table(counts, lambda one, probe: _number(one.left[probe]))
    for reason in REASONS:
        numbers = (f" {one.left_out.get(reason, 0):,} |" for one in counts)
        lines.append(f"| left out: {reason} |{''.join(numbers)}")
    lines += [
        "",
        "Share of the questions of the first table that the base model answers right, in percent. "
        "Of reliability, generality and portability it is the answer that the edit replaces; of "
        "captions it is the name of the product:",
        "",
    ]
    lines += _table(counts, _accuracy)
    return lines


def _left(dataset: Grocery, split: Split, progress: Progress) -> Cases:
    """Return the cases with the known file; none without a file, or if it knows none of them."""
    try:
        return dataset.load(split, progress=progress) if dataset.known else Cases(())
    except DataError:
        return Cases(())


def _examples(cases: Cases) -> Iterator[tuple[Probe, Example]]:
    return ((p, example) for case in cases for p, found in case.probes.items() for example in found)


def _counted(cases: Cases) -> Counts:
    return Counter(probe for probe, _ in _examples(cases))


def _answer(example: Example, root: Path, known: Known) -> bool | None:
    """Return whether the base model answers a question right; None if it was not asked."""
    if isinstance(example.image, Path) and (asked := ASKED.get(example.prompt)):
        key = photograph_key(folder_of(root), example.image, known_by(asked))
    else:
        key = text_key(example)
    return known.right.get(key)


def _table(counts: Sequence[TaskCounts], cell: Callable[[TaskCounts, Probe], str]) -> list[str]:
    probes = [probe for probe in Probe if any(one.probes[probe] for one in counts)]
    return [
        f"| | {' | '.join(one.name for one in counts)} |",
        f"|---|{'--:|' * len(counts)}",
        *(
            f"| {probe.title.lower()} | {' | '.join(cell(one, probe) for one in counts)} |"
            for probe in probes
        ),
    ]


def _number(value: int) -> str:
    return f"{value:,}" if value else "–"


def _accuracy(one: TaskCounts, probe: Probe) -> str:
    return f"{100 * one.right[probe] / one.asked[probe]:.1f}" if one.asked[probe] else "–"
