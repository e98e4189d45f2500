"""The answers to every probe before and after, with both metrics, as rows of a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

from PIL import Image

from mmedit.bench.base_outputs import BaseOutputs
from mmedit.bench.generation import length_for
from mmedit.bench.scoring import measure
from mmedit.cases import EditCase, Example, Probe
from mmedit.errors import DataError
from mmedit.images import open_image
from mmedit.records.schema import ProbeRecord
from mmedit.vlm.interface import VLM

TITLES = {
    Probe.RELIABILITY: "The edit itself",
    Probe.TEXT_GENERALITY: "In other words",
    Probe.IMAGE_GENERALITY: "Another picture of it",
    Probe.ICONIC_GENERALITY: "The product's own picture",
    Probe.TEXT_LOCALITY: "Unrelated question",
    Probe.OBJECT_LOCALITY: "Another photograph of it",
    Probe.NEAR_LOCALITY: "A similar product",
    Probe.IMAGE_LOCALITY: "Unrelated picture",
    Probe.PORTABILITY: "What follows from it",
}
"""The probes in words for a first reader."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """The answer of one model to one question, and its teacher-forced scores."""

    answer: str
    is_cut_off: bool
    token_accuracy: float | None
    """From 0 to 1; None if the outputs were not finite."""
    exact_match: float | None


@dataclass(frozen=True, kw_only=True)
class Change:
    """One probe, answered by the base model and by the edited one."""

    probe: Probe
    prompt: str
    image: Image.Image | None
    expected: str
    """The new answer; "" for a locality probe, whose answer should stay as it was."""
    before: Side
    after: Side
    is_good: bool
    """Whether the generated answer is as expected: the new one, or unchanged."""
    is_finite: bool

    @property
    def title(self) -> str:
        """The probe in words."""
        return TITLES.get(self.probe, self.probe.title)

    @property
    def verdict(self) -> str:
        """The outcome in words."""
        if not self.is_finite:
            return "NaN or infinite outputs"
        if self.probe.is_locality:
            return "unchanged" if self.is_good else "changed"
        if self.probe.is_unwanted:
            return "old answer is gone" if self.is_good else "old answer"
        return "new answer" if self.is_good else "not the new answer"


def require_askable(vlm: VLM, examples: Sequence[Example], *, new_tokens: int) -> None:
    """Raise DataError if the VLM cannot be asked one of the examples."""
    for fault in vlm.frozen.faults(examples, new_tokens=new_tokens):
        if fault is not None:
            raise DataError(fault)


def changes(outputs: BaseOutputs, edited: VLM, case: EditCase) -> tuple[Change, ...]:
    """Return every probe of a case before and after. Two forwards and two generations, of the base
    model only where its outputs are not kept.

    Raises DataError if the VLM cannot be asked a probe.
    """
    asked = [(probe, example) for probe, examples in case.probes.items() for example in examples]
    examples = [example for _, example in asked]
    length = length_for(outputs.vlm, examples)
    require_askable(outputs.vlm, examples, new_tokens=length)
    records = measure(outputs, edited, asked, max_new_tokens=length)
    return tuple(
        _change(probe, example, record)
        for (probe, example), record in zip(asked, records, strict=True)
    )


def summary(found: Sequence[Change]) -> str:
    """Return how many answers are as they should be, as one sentence."""
    about = [p.is_good for p in found if not (p.probe.is_locality or p.probe.is_unwanted)]
    unrelated = [one.is_good for one in found if one.probe.is_locality]
    parts = [f"{sum(about)} of {len(about)} questions about the edit get the new answer"]
    if unrelated:
        parts.append(f"{sum(unrelated)} of {len(unrelated)} unrelated answers are unchanged")
    return "; ".join(parts) + "."


def _change(probe: Probe, example: Example, record: ProbeRecord) -> Change:
    locality, generation = record.locality, record.generation_post
    before = (1.0, 1.0) if locality else (record.pre.token_accuracy, record.pre.exact_match)
    after = (record.post.token_accuracy, record.post.exact_match)
    if locality:
        after = (locality.top1_answer, locality.exact_answer)
    good = generation and (generation.unchanged if locality else generation.exact)
    good = not good if probe.is_unwanted else good
    return Change(
        probe=probe,
        prompt=example.prompt,
        image=None if example.image is None else open_image(example.image),
        expected="" if locality else example.target,
        before=_side(record.generated_pre, record.cut_off_pre, *before),
        after=_side(record.generated_post, record.cut_off_post, *after),
        is_good=bool(record.is_finite and good),
        is_finite=record.is_finite,
    )


def _side(
    answer: str | None, is_cut_off: bool | None, token_accuracy: float, exact_match: float
) -> Side:
    return Side(
        answer=answer or "",
        is_cut_off=bool(is_cut_off),
        token_accuracy=token_accuracy if isfinite(token_accuracy) else None,
        exact_match=exact_match if isfinite(exact_match) else None,
    )
