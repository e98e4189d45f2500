"""Checks whether an edit follows the image: what it should leave, and how far it did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mmedit import EditCase, Example
from mmedit.bench.base_outputs import BaseOutputs
from mmedit.chunks import chunks
from mmedit.images import image_key
from mmedit.metrics.generation import exact, unchanged

NO_IMAGE, OTHER_IMAGE, OTHER_QUESTION = CHECKS = ("no image", "other image", "other question")
CANDIDATES = 4
"""Other images and other questions that the base model is asked about, for each edit."""


@dataclass(frozen=True)
class Check:
    """A question that the edit should leave, and the base model's greedy answer."""

    example: Example
    base: str


def judged(base: str, edited: str, request: Example) -> dict[str, float]:
    """Return whether the edit leaked into an answer, and whether the answer is the base model's.

    >>> judged("red", "blue", Example(prompt="what color is it?", target="blue"))
    {'leak': 1.0, 'unchanged': 0.0}
    """
    is_target = [exact(text, [request.target]) for text in (base, edited)]
    return {"leak": is_target[1] * (1 - is_target[0]), "unchanged": unchanged(base, edited)}


def checks_of(
    base: BaseOutputs,
    cases: Sequence[EditCase],
    pool: Sequence[EditCase],
    *,
    max_new_tokens: int,
) -> list[dict[str, Check]]:
    """Return the checks of each case. An edit without an image, or for which every candidate's base
    answer is the target, lacks a check. The base model answers each batch once.
    """

    def answered(asked: Sequence[Example]) -> list[Check]:
        said = base.answer(asked, max_new_tokens=max_new_tokens) if asked else []
        return [Check(one, answer.text.strip()) for one, answer in zip(asked, said, strict=True)]

    requests = [case.request for case in cases]
    own = [check.base for check in answered(requests)]
    found: list[dict[str, Check]] = [{} for _ in cases]
    for name in CHECKS:
        candidates = [
            candidates_of(request, pool) if request.image is not None else {}
            for request in requests
        ]
        asked = [(row, one) for row, by in enumerate(candidates) for one in by.get(name, [])]
        answers: list[Check] = []
        for part in chunks([one for _, one in asked], 4 * len(cases)):
            answers += answered(part)
        for row, request in enumerate(requests):
            mine = [check for (at, _), check in zip(asked, answers, strict=True) if at == row]
            chosen = first_apart(mine, request, own[row], must_differ=name == OTHER_QUESTION)
            if name == NO_IMAGE:
                chosen = mine[0] if mine else None
            if chosen is not None:
                found[row][name] = chosen
    return found


def candidates_of(request: Example, pool: Sequence[EditCase]) -> dict[str, list[Example]]:
    """Return the questions that may serve for each check, the best first: images of cases that ask
    the same, or begin alike; questions that begin otherwise.
    """
    key = image_key(request.image) if request.image is not None else ""
    others = [
        case.request
        for case in pool
        if case.request.image is not None and image_key(case.request.image) != key
    ]
    begin = beginning(request.prompt)
    alike = sorted(
        (other for other in others if beginning(other.prompt) == begin),
        key=lambda other: other.prompt != request.prompt,
    )
    prompts = dict.fromkeys(other.prompt for other in others if beginning(other.prompt) != begin)
    return {
        NO_IMAGE: [replace(request, image=None)],
        OTHER_IMAGE: [replace(request, image=other.image) for other in alike[:CANDIDATES]],
        OTHER_QUESTION: [
            replace(request, prompt=prompt, subject="") for prompt in list(prompts)[:CANDIDATES]
        ],
    }


def beginning(prompt: str) -> tuple[str, ...]:
    """Return the first two words, which tell what kind of question it is: "what color"."""
    return tuple(prompt.lower().split()[:2])


def first_apart(
    checks: Sequence[Check], request: Example, own: str, *, must_differ: bool
) -> Check | None:
    """Return the first check whose base answer is neither the target nor that to the request; if
    there is none, the first whose base answer is not the target, unless it must differ.
    """
    possible = [check for check in checks if not exact(check.base, [request.target])]
    apart = [check for check in possible if check.base != own]
    return next(iter(apart or ([] if must_differ else possible)), None)
