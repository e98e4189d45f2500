"""Compares what was exported with the edited VLM: logits and answers, question by question."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mmedit.adapters.generation import Answer
from mmedit.bench.generation import length_for
from mmedit.cases import EditCase, Example, Probe
from mmedit.errors import DataError, EditError, ModelError
from mmedit.images import image_key
from mmedit.metrics.generation import exact
from mmedit.vlm.interface import VLM

BATCH = 8
"""Questions in one batch. Both sides are asked in the same batches, so that these explain no
difference.
"""
LOCALITY = (Probe.TEXT_LOCALITY, Probe.IMAGE_LOCALITY)


@dataclass(frozen=True, kw_only=True)
class Questions:
    """The questions that are asked before and after the export."""

    requests: tuple[Example, ...]
    """The requests of the edits."""
    locality: tuple[Example, ...] = ()
    """Unrelated questions."""

    @property
    def all(self) -> tuple[Example, ...]:
        """The requests, then the unrelated questions."""
        return (*self.requests, *self.locality)


@dataclass(frozen=True, eq=False, kw_only=True)
class Outputs:
    """The outputs of one VLM on all questions."""

    logits: tuple[Float[Tensor, "_tokens vocab"], ...]
    """Teacher-forced logits at the tokens of each answer, in float32, on the CPU."""
    answers: tuple[Answer, ...]
    right: tuple[bool, ...]
    """Whether each answer is the target, or begins with it: VLMs often go on after a short one."""

    @property
    def are_finite(self) -> bool:
        """Whether no logit is NaN or infinite."""
        return all(bool(row.isfinite().all()) for row in self.logits)


@dataclass(frozen=True, kw_only=True)
class Changed:
    """One question that the exported VLM answers differently."""

    prompt: str
    target: str
    expected: str
    """The answer of the edited VLM in mmedit."""
    found: str
    """The answer of the exported VLM."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """Answers of the exported VLM, compared with those of the edited VLM."""

    opened_in: str
    """The dtype it was opened in."""
    largest_logit_difference: float
    """Largest difference of a logit at an answer token; NaN if logits are not finite."""
    requests: int
    """Number of requests that were asked."""
    unrelated: int
    """Number of unrelated questions that were asked."""
    lost: tuple[Changed, ...]
    """Requests whose answer is another than the edited VLM's, unless both are right."""
    changed: tuple[Changed, ...]
    """All other answers that changed, by rounding."""

    @property
    def is_kept(self) -> bool:
        """Whether every request is answered as the edited VLM answers it."""
        return not self.lost and math.isfinite(self.largest_logit_difference)

    def as_json(self) -> dict[str, Any]:
        """Return the check as plain JSON; a difference that is not finite is null."""
        difference = self.largest_logit_difference
        finite = difference if math.isfinite(difference) else None
        return {**asdict(self), "largest_logit_difference": finite, "is_kept": self.is_kept}


def locality_questions(cases: Iterable[EditCase], number: int) -> tuple[Example, ...]:
    """Return `number` different unrelated questions of a dataset, with and without image in turn.

    They are fewer if the cases have no more.
    """
    found: dict[tuple[str, object], Example] = {}
    for case in cases:
        for probe in LOCALITY:
            for example in case.probes.get(probe, ())[:1]:
                found.setdefault((example.prompt, _key(example)), example)
    return tuple(found.values())[:number]


def _key(example: Example) -> object:
    """Return what tells the image of an example from others; a file is not read for it."""
    image = example.image
    return image if image is None or isinstance(image, Path) else image_key(image)


def questions_for(edited: VLM, locality: Sequence[Example]) -> Questions:
    """Return the requests of all edits of a VLM, with these unrelated questions.

    Raises EditError if there is nothing to ask.
    """
    requests = tuple(request for edit in edited.edits for request in edit.requests)
    if not requests and not locality:
        raise EditError(
            "the edits of this VLM name no request, so that the export could not be checked; give "
            "unrelated questions (locality)"
        )
    return Questions(requests=requests, locality=tuple(locality))


def answer_tokens(vlm: VLM, questions: Questions) -> int:
    """Return how many tokens an answer may have. Raises DataError if a question does not fit."""
    length = length_for(vlm, questions.all)
    for fault in vlm.frozen.faults(questions.all, new_tokens=length):
        if fault is not None:
            raise DataError(fault)
    return length


@torch.no_grad()
def ask(vlm: VLM, questions: Questions, *, max_new_tokens: int) -> Outputs:
    """Ask a VLM all questions. One forward and one generation for each batch of 8."""
    logits: list[Tensor] = []
    answers: list[Answer] = []
    begins: list[bool] = []
    for at in range(0, len(questions.all), BATCH):
        batch = questions.all[at : at + BATCH]
        predictions = vlm.predict(batch)
        logits += [
            row[mask].float().cpu()
            for row, mask in zip(predictions.logits, predictions.is_answer, strict=True)
        ]
        is_target = predictions.logits.argmax(-1) == predictions.target
        begins += (is_target | ~predictions.is_answer).all(1).tolist()
        answers += vlm.answer(batch, max_new_tokens=max_new_tokens)
    right = [
        starts or bool(exact(answer.text, example.accepted))
        for starts, answer, example in zip(begins, answers, questions.all, strict=True)
    ]
    return Outputs(logits=tuple(logits), answers=tuple(answers), right=tuple(right))


def compare(questions: Questions, expected: Outputs, found: Outputs, *, opened_in: str) -> Check:
    """Compare the exported VLM (`found`) with the edited one (`expected`).

    Raises ModelError if the exported VLM splits an answer into other tokens.
    """
    lost, changed = [], []
    for number, example in enumerate(questions.all):
        old, new = expected.answers[number].text, found.answers[number].text
        if old == new:
            continue
        difference = Changed(prompt=example.prompt, target=example.target, expected=old, found=new)
        is_request = number < len(questions.requests)
        both_right = expected.right[number] and found.right[number]
        (lost if is_request and not both_right else changed).append(difference)
    return Check(
        opened_in=opened_in,
        largest_logit_difference=_largest_difference(expected, found),
        requests=len(questions.requests),
        unrelated=len(questions.locality),
        lost=tuple(lost),
        changed=tuple(changed),
    )


def _largest_difference(expected: Outputs, found: Outputs) -> float:
    largest = 0.0
    for old, new in zip(expected.logits, found.logits, strict=True):
        if old.shape != new.shape:
            raise ModelError(
                f"the exported VLM has logits of shape {tuple(new.shape)} for an answer, the "
                f"edited one {tuple(old.shape)}; expected the same tokenizer and vocabulary"
            )
        difference = float((old - new).abs().max())
        if not math.isfinite(difference):
            return math.nan
        largest = max(largest, difference)
    return largest
