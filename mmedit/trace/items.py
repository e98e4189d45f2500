"""The items of a trace: questions of a dataset that the base model answers right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from mmedit.bench.base_outputs import scores_of
from mmedit.cases import EditCase, Example, image_name
from mmedit.chunks import chunks
from mmedit.progress import Progress, silent
from mmedit.trace.settings import TraceSettings
from mmedit.vlm.interface import VLM

Questions = Literal["requests", "locality"]
AT_ONCE = 32
"""Number of candidates that the base model is asked together."""
LONGEST = 24
"""Length of the base model's own answer, in tokens, at most."""
NO_IMAGE = "no image"
WRONG = "the base model answers otherwise"
UNFINISHED = f"the base model's answer is empty, or longer than {LONGEST} tokens"
UNTOLD = "the dataset does not tell the true answer"

Truths = Mapping[tuple[str, str | None], str]
"""True answers by prompt and name of the image."""


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Examples of which those become items that the base model answers right."""

    examples: Mapping[str, Example]
    """The examples by id."""
    own_answers: bool = False
    """Whether the target is what the base model says by itself, in place of the example's."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Number of examples that were left out already, by reason."""
    dataset: str = ""
    questions: str = ""
    command: str = ""


def requests_of(cases: Iterable[EditCase], truths: Truths) -> Candidates:
    """Return the distinct requests of edit cases, whose own targets are counterfactual.

    The target becomes the true answer if the dataset tells any; otherwise what the base model says.
    """
    distinct = _distinct((case.id, case.request) for case in cases)
    if not truths:
        return Candidates(examples=distinct, own_answers=True, questions="requests")
    told = {
        name: replace(example, target=truths[key])
        for name, example in distinct.items()
        if (key := asked_of(example)) in truths
    }
    left_out = {UNTOLD: len(distinct) - len(told)} if len(told) < len(distinct) else {}
    return Candidates(examples=told, left_out=left_out, questions="requests")


def locality_of(cases: Iterable[EditCase]) -> Candidates:
    """Return the distinct locality probes of edit cases, with their true answers."""
    probes = (
        (f"{case.id} {probe} {number}", example)
        for case in cases
        for probe, examples in case.probes.items()
        if probe.is_locality
        for number, example in enumerate(examples)
    )
    return Candidates(examples=_distinct(probes), questions="locality")


def asked_of(example: Example) -> tuple[str, str | None]:
    """Return what tells questions apart: the prompt, and the name of the image."""
    return example.prompt, image_name(example)


def _distinct(named: Iterable[tuple[str, Example]]) -> dict[str, Example]:
    found: dict[tuple[str, str | None], tuple[str, Example]] = {}
    for name, example in named:
        found.setdefault(asked_of(example), (name, example))
    return dict(found.values())


def chosen_items(
    vlm: VLM,
    candidates: Candidates,
    settings: TraceSettings,
    *,
    limit: int | None,
    progress: Progress = silent,
) -> tuple[dict[str, Example], dict[str, int]]:
    """Return the first candidates that the base model answers right, and how many of those before
    were left out, by reason.

    An answer is right if every token of it is the likeliest. Costs a forward for each
    `AT_ONCE` candidates, and a generation for each if their answers are the base model's own.
    """
    left_out = Counter(candidates.left_out)
    fitting = {}
    for name, example in candidates.examples.items():
        if settings.needs_image and example.image is None:
            left_out[NO_IMAGE] += 1
        else:
            fitting[name] = example
    most = len(fitting) if limit is None else min(limit, len(fitting))
    items: dict[str, Example] = {}
    for batch in chunks(list(fitting.items()), AT_ONCE):
        progress("asking the base model", len(items), most, "")
        for name, example, reason in _asked(vlm, batch, own_answers=candidates.own_answers):
            if len(items) == most:
                break
            if reason:
                left_out[reason] += 1
            else:
                items[name] = example
        if len(items) == most:
            break
    progress("asking the base model", most, most, "")
    return items, dict(left_out)


@torch.no_grad()
def _asked(
    vlm: VLM, batch: Sequence[tuple[str, Example]], *, own_answers: bool
) -> list[tuple[str, Example, str]]:
    """Return the examples with their targets, and why each is left out ("" for an item)."""
    reasons: dict[str, str] = {}
    faults = vlm.frozen.faults([e for _, e in batch], new_tokens=LONGEST if own_answers else 0)
    reasons |= {name: fault for (name, _), fault in zip(batch, faults, strict=True) if fault}
    asked = {name: example for name, example in batch if name not in reasons}
    if own_answers and asked:
        answers = vlm.answer(list(asked.values()), max_new_tokens=LONGEST)
        for name, answer in zip(list(asked), answers, strict=True):
            if answer.is_cut_off or not answer.text:
                reasons[name] = UNFINISHED
                del asked[name]
            else:
                asked[name] = replace(asked[name], target=answer.text)
    if asked:
        examples = list(asked.values())
        scores = scores_of(vlm.predict(examples, answers_only=[True] * len(examples)))
        wrong = zip(asked, scores, strict=True)
        reasons |= {name: WRONG for name, score in wrong if score.exact_match < 1}
    return [(name, asked.get(name, example), reasons.get(name, "")) for name, example in batch]
