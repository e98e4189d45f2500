"""The columns of a method table: scores (`Measure`) and costs (`CostColumn`).

Each column says its name, its definition, how its value is computed from records, and how it is
written. A new column is one row in `COLUMN_SETS` or `COSTS`; all formats and footnotes read these
tables. docs/protocol.md defines the scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from types import MappingProxyType
from typing import Any

import numpy as np

from mmedit.cases import Probe
from mmedit.records.schema import ProbeRecord, Record
from mmedit.report.measures import SPECIFICITY_OURS, SPECIFICITY_PUBLISHED, Combined, Measure

Column = tuple[str, str]
"""The key of a column: the heading of its probe, or `COST`, and its own name."""
COST = "cost"
N = ("", "n")
"""The column that holds the number of records of each row."""


@dataclass(frozen=True)
class NotedCosts:
    """The costs of one row that the manifest of its run notes."""

    training_seconds: float | None = None
    alone: Sequence[float] = ()
    """Seconds of edits that were made one at a time."""


@dataclass(frozen=True, kw_only=True)
class CostColumn:
    """One cost column; less is better.

    `of` takes the records of a row, at least one, and what its run noted, and gives the value, None
    if it is not known. The table leaves the column out if no row has a value. `text` writes
    the value.
    """

    name: str
    definition: str
    of: Callable[[Sequence[Record], NotedCosts], float | None]
    text: Callable[[float], str]

    @property
    def column(self) -> Column:
        """The key of the column in a method table."""
        return (COST, self.name)


@dataclass(frozen=True)
class ColumnSet:
    """The columns that one value of `--columns` selects: `answers` for the probes that the edit
    must change, `locality` for those that it must not, `unwanted` for those whose target the edited
    model should no longer give, and `combined` of several probes.
    """

    answers: tuple[Measure, ...]
    locality: tuple[Measure, ...]
    combined: tuple[Combined, ...] = ()
    unwanted: tuple[Measure, ...] = ()

    def of(self, probe: Probe) -> tuple[Measure, ...]:
        """Return the columns of one probe."""
        if probe.is_unwanted:
            return self.unwanted
        measures = self.locality if probe.is_locality else self.answers
        return tuple(measure.limited_to(probe.among) for measure in measures)


def _locality(name: str) -> Callable[[ProbeRecord], float | None]:
    return lambda asked: None if asked.locality is None else getattr(asked.locality, name)


def _generation(name: str) -> Callable[[ProbeRecord], float | None]:
    def score(asked: ProbeRecord) -> float | None:
        after = asked.generation_post
        value = None if after is None else getattr(after, name)
        return None if value is None else float(value)

    return score


def _generated(name: str, metric: str, definition: str, **more: Any) -> Measure:
    of, metric = _generation(metric), f"generation/{metric}"
    return Measure(name=name, metric=metric, definition=definition, of=of, optional=True, **more)


TOKEN_ACCURACY = Measure(
    name="tok",
    metric="token_accuracy",
    definition="share of answer tokens predicted right",
    of=lambda asked: asked.post.token_accuracy,
)
EXACT_MATCH = Measure(
    name="EM",
    metric="exact_match",
    definition="share of answers with every token right",
    of=lambda asked: asked.post.exact_match,
    all_or_nothing=True,
)
TOP1_ANSWER = Measure(
    name="tok",
    metric="locality/top1_answer",
    definition="share of answer tokens predicted as the base model does",
    of=_locality("top1_answer"),
)
EXACT_ANSWER = Measure(
    name="EM",
    metric="locality/exact_answer",
    definition="share of answers with every token predicted as the base model does",
    of=_locality("exact_answer"),
    all_or_nothing=True,
)
_LOCALITY = (
    TOP1_ANSWER,
    EXACT_ANSWER,
    Measure(
        name="top-1 all",
        metric="locality/top1_all",
        definition="as tok, over all text tokens",
        of=_locality("top1_all"),
    ),
    Measure(
        name="top-10 ranks",
        metric="locality/top10_ordered_all",
        definition="the two top-10 lists compared rank by rank, over all text tokens",
        of=_locality("top10_ordered_all"),
    ),
    Measure(
        name="top-10 set",
        metric="locality/top10_set_answer",
        definition="overlap of the two top-10 sets, over answer tokens",
        of=_locality("top10_set_answer"),
    ),
    Measure(
        name="KL",
        metric="locality/kl",
        definition="KL(base ‖ edited) in nats, over answer tokens",
        of=_locality("kl"),
        percent=False,
        format=".2g",
        better="lower",
    ),
)
_CONTAINS = "share of answers that contain the words of an accepted one"
_EXACT = "share of answers with the words of an accepted one and no others"
_UNCHANGED = "share of answers that equal the base model's, character by character"
_FREE = (
    _generated("fluency", "fluency", "n-gram entropy in bits", percent=False, better="neither"),
    _generated("repeats", "repeated", "share of trigrams that occurred before", better="lower"),
    _generated("judge", "judge", "verdict of the LLM judge"),
)
_TO_TARGET = (
    _generated("contains", "contains", _CONTAINS, all_or_nothing=True),
    _generated("exact", "exact", _EXACT, all_or_nothing=True),
    _generated("ROUGE-L", "rouge_l", "longest common subsequence with the target, F1"),
    _generated("CLIP", "clip_score", "CLIPScore of image and answer", percent=False, format=".3f"),
)
_SAME = _generated("same", "unchanged", _UNCHANGED, all_or_nothing=True)
_LEAKED = "share of answers that contain the edit's target where the base model's does not"
_LEAK = _generated("leak", "leak", _LEAKED, all_or_nothing=True, better="lower")


def _lower(measures: Sequence[Measure]) -> tuple[Measure, ...]:
    """Return the measures for a target that the edited model should no longer give."""
    return tuple(replace(measure, better="lower") for measure in measures)


COLUMN_SETS: Mapping[str, ColumnSet] = MappingProxyType(
    {
        "default": ColumnSet(
            (TOKEN_ACCURACY, EXACT_MATCH),
            (TOP1_ANSWER, EXACT_ANSWER),
            (SPECIFICITY_OURS,),
            _lower((TOKEN_ACCURACY, EXACT_MATCH)),
        ),
        "generation": ColumnSet(
            (*_TO_TARGET, *_FREE), (_SAME, _LEAK, *_FREE), unwanted=_lower(_TO_TARGET[:2])
        ),
        "locality": ColumnSet((), _LOCALITY, SPECIFICITY_PUBLISHED),
    }
)


def _seconds(seconds: float) -> str:
    if seconds >= 100:
        return f"{seconds:.0f}"
    if seconds >= 1:
        return f"{seconds:.2f}"
    return f"{seconds:#.2g}" if seconds >= 1e-4 else "0"


def _parameters(number: float) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return str(int(number))


def _most_parameters(records: Sequence[Record]) -> int | None:
    found = [record.extra_parameters for record in records]
    return max((number for number in found if number is not None), default=None)


COSTS: tuple[CostColumn, ...] = (
    CostColumn(
        name="s/edit",
        definition="median wall time of applying one edit",
        of=lambda records, _: median(record.seconds for record in records),
        text=_seconds,
    ),
    CostColumn(
        name="p95 s",
        definition="95th percentile of that time",
        of=lambda records, _: float(np.quantile([record.seconds for record in records], 0.95)),
        text=_seconds,
    ),
    CostColumn(
        name="s alone",
        definition="median wall time of an edit that is made by itself, its image encoded before",
        of=lambda _, noted: median(noted.alone) if noted.alone else None,
        text=_seconds,
    ),
    CostColumn(
        name="p95 alone",
        definition="95th percentile of edits made by themselves",
        of=lambda _, noted: float(np.quantile(noted.alone, 0.95)) if noted.alone else None,
        text=_seconds,
    ),
    CostColumn(
        name="peak GB",
        definition="peak memory until then (on a GPU: of tensors; on a CPU: of the process)",
        of=lambda records, _: max(record.peak_memory_bytes for record in records) / 1e9,
        text="{:.2f}".format,
    ),
    CostColumn(
        name="params",
        definition="largest number of parameters that an edit adds",
        of=lambda records, _: _most_parameters(records),
        text=_parameters,
    ),
    CostColumn(
        name="train s",
        definition="seconds of training before the first edit",
        of=lambda _, noted: noted.training_seconds,
        text=_seconds,
    ),
)


def cost_of(column: Column) -> CostColumn | None:
    """Return the cost of a table's column, None for scores and n."""
    return next((cost for cost in COSTS if cost.column == column), None)


COMBINED = tuple(one for columns in COLUMN_SETS.values() for one in columns.combined)
"""All columns of several probes."""


def measure_of(heading: str, name: str) -> Measure | None:
    """Return the measure of a table's column, None for costs and n."""
    combined = (one.measure for one in COMBINED if one.heading == heading)
    probe = next((probe for probe in Probe if probe.heading == heading), None)
    if probe is None:
        return next((measure for measure in combined if measure.name == name), None)
    shown = (measure for columns in COLUMN_SETS.values() for measure in columns.of(probe))
    return next(measure for measure in shown if measure.name == name)
