"""Kinds of score columns: one of a single probe (`Measure`), and one of two probes together.

    specificity = (agreement on FG-Loc + accuracy on FG-Gen) / 2

Specificity is of FGVEdit (Zeng et al., "Visual-Oriented Fine-Grained Knowledge Editing for
Multimodal Large Language Models", ICCV 2025); its halves are the columns of the two probes.
docs/protocol.md has worked examples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from mmedit.cases import Probe
from mmedit.records.schema import ProbeRecord

Score = Callable[[ProbeRecord], float | None]
"""Reads the score of one example, None if it was not measured."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One score column. `of` reads the score of one example, None if it was not measured.

    `metric` is the metric class: two numbers may be compared if their classes are equal.
    """

    name: str
    metric: str
    definition: str
    of: Score
    percent: bool = True
    format: str = ".1f"
    better: Literal["higher", "lower", "neither"] = "higher"
    all_or_nothing: bool = False
    """True if an example scores 0 or 1. The interval is then Wilson's."""
    optional: bool = False
    """True if all records of a method may lack it. Its cell is then empty."""
    among: Literal["right", "wrong"] | None = None
    """Answer of the base model (exact match) for which an example counts; None: all count."""

    def counts(self, asked: ProbeRecord) -> bool:
        """Tell whether an example counts."""
        return self.among is None or asked.pre.exact_match == float(self.among == "right")

    def limited_to(self, among: Literal["right", "wrong"] | None) -> Measure:
        """Return the measure over the examples that the base model answered so.

        It is of another metric class: a share of some questions says nothing about all.
        """
        if among is None:
            return self
        return replace(self, among=among, metric=f"{self.metric}/base_{among}")


@dataclass(frozen=True, kw_only=True)
class Combined:
    """One score column of several probes: the mean of one score of each, edit by edit."""

    heading: str
    title: str
    measure: Measure
    """How the column is called, defined and shown; no single example has the score."""
    parts: tuple[tuple[Probe, Score], ...]


SPECIFICITY = "specificity"
"""Name of FGVEdit's column in tables of published values, where others have the name of a probe."""


def _specificity(name: str, metric: str, definition: str, local: Score, general: Score) -> Combined:
    return Combined(
        heading="Spec",
        title=SPECIFICITY,
        measure=Measure(
            name=name,
            metric=f"{SPECIFICITY}/{metric}",
            definition=f"half the sum of {definition}",
            of=lambda asked: None,
        ),
        parts=((Probe.FINE_LOCALITY, local), (Probe.FINE_GENERALITY, general)),
    )


def _ranks(asked: ProbeRecord) -> float | None:
    return asked.locality and asked.locality.top10_ordered_all


SPECIFICITY_OURS = _specificity(
    "top-1+EM",
    "top1_answer+exact_match",
    "FG-Loc tok and FG-Gen EM",
    lambda asked: asked.locality and asked.locality.top1_answer,
    lambda asked: asked.post.exact_match,
)
SPECIFICITY_PUBLISHED = (
    _specificity(
        "ranks+tok",
        "top10_ordered_all+token_accuracy",
        "FG-Loc top-10 ranks and FG-Gen tok",
        _ranks,
        lambda asked: asked.post.token_accuracy,
    ),
    _specificity(
        "ranks+EM",
        "top10_ordered_all+exact_match",
        "FG-Loc top-10 ranks and FG-Gen EM",
        _ranks,
        lambda asked: asked.post.exact_match,
    ),
)
"""Specificity in the two classes that FGVEdit's code can give, by its setting `exact_match`."""
