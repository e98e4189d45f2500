"""What the columns of a table show: which score of an example, under which name, and which way is
better. docs/protocol.md defines the scores.

`Measure.metric` is the metric class. Two numbers can be compared where their classes are equal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from mmedit.cases import Probe
from mmedit.records.schema import ProbeRecord

HEADINGS = {
    Probe.RELIABILITY: "Rel",
    Probe.TEXT_RELIABILITY: "T-Rel",
    Probe.IMAGE_RELIABILITY: "I-Rel",
    Probe.TEXT_GENERALITY: "T-Gen",
    Probe.IMAGE_GENERALITY: "I-Gen",
    Probe.TEXT_LOCALITY: "T-Loc",
    Probe.IMAGE_LOCALITY: "I-Loc",
    Probe.PORTABILITY: "Port",
}


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One column of a split. `of` gives None where an example was not scored so."""

    name: str
    metric: str
    definition: str
    of: Callable[[ProbeRecord], float | None]
    percent: bool = True
    format: str = ".1f"
    better: Literal["higher", "lower", "neither"] = "higher"
    all_or_nothing: bool = False
    """Whether an example scores 0 or 1: then the interval is Wilson's."""
    optional: bool = False
    """Whether it may be missing from all records of a method: then its cell is empty."""


@dataclass(frozen=True)
class ColumnSet:
    """What `--columns` chooses: the columns of the splits that must change, and of locality."""

    answers: tuple[Measure, ...]
    locality: tuple[Measure, ...]

    def of(self, probe: Probe) -> tuple[Measure, ...]:
        """The columns of one split."""
        return self.locality if probe.is_locality else self.answers


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
    definition="share of answer tokens predicted as the unedited model does",
    of=_locality("top1_answer"),
)
EXACT_ANSWER = Measure(
    name="EM",
    metric="locality/exact_answer",
    definition="share of answers with every token predicted as the unedited model does",
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
        definition="KL(unedited ‖ edited) in nats, over answer tokens",
        of=_locality("kl"),
        percent=False,
        format=".2g",
        better="lower",
    ),
)
_CONTAINS = "share of answers that contain an accepted one"
_EXACT = "share of answers that equal the target, both normalised"
_UNCHANGED = "share of answers that are the unedited model's, token for token"
_FREE = (
    _generated("fluency", "fluency", "n-gram entropy in bits", percent=False, better="neither"),
    _generated("repeats", "repeated", "share of trigrams that were said before", better="lower"),
    _generated("judge", "judge", "verdict of the LLM judge"),
)
_SAID = (
    _generated("contains", "contains", _CONTAINS, all_or_nothing=True),
    _generated("exact", "exact", _EXACT, all_or_nothing=True),
    _generated("ROUGE-L", "rouge_l", "longest common subsequence with the target, F1"),
    _generated("CLIP", "clip_score", "CLIPScore of image and answer", percent=False, format=".3f"),
)
_KEPT = _generated("same", "unchanged", _UNCHANGED, all_or_nothing=True)

COLUMN_SETS: Mapping[str, ColumnSet] = MappingProxyType(
    {
        "default": ColumnSet((TOKEN_ACCURACY, EXACT_MATCH), (TOP1_ANSWER, EXACT_ANSWER)),
        "generation": ColumnSet((*_SAID, *_FREE), (_KEPT, *_FREE)),
        "locality": ColumnSet((), _LOCALITY),
    }
)


def measure_of(heading: str, name: str) -> Measure | None:
    """The measure of a table's column, None for its costs and n."""
    probe = next((probe for probe, known in HEADINGS.items() if known == heading), None)
    if probe is None:
        return None
    shown = (measure for columns in COLUMN_SETS.values() for measure in columns.of(probe))
    return next(measure for measure in shown if measure.name == name)
