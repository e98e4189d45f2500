"""Probes that another edit of the same run contradicts.

A probe asks something, with an image or without, and expects an answer. If the request of another
case asks exactly this and sets another answer, no VLM can hold both edits and give both answers: a
perfect editor would lose points. Locality expects the base model's own answer, so a request that
asks the same contradicts it whatever it sets. Two requests that ask the same and set different
answers exclude each other too. Runs in which edits are held together refuse such cases, or leave
them out.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

from PIL import Image

from mmedit.bench.modes import Independent, Mode
from mmedit.cases import EditCase, Example, Probe
from mmedit.errors import DataError, UnknownNameError, shortened
from mmedit.images import image_key, open_image

OnContradiction = Literal["error", "skip"]
ON_CONTRADICTION: tuple[OnContradiction, ...] = ("error", "skip")
REQUEST = "request"
"""The count of requests that exclude an earlier one; the other counts are by probe."""


class _Wording(NamedTuple):
    """The text before an answer."""

    context: str
    prompt: str


class _Question(NamedTuple):
    """A wording, and a hash of the image that it is about; None without an image."""

    wording: _Wording
    image: str | None


class _Requested(NamedTuple):
    """A request and its case."""

    request: Example
    case: EditCase


@dataclass(frozen=True)
class Contradictions:
    """The cases without the contradicted probes, and how many of these there are."""

    cases: tuple[EditCase, ...]
    """The first of requests that exclude each other stays."""
    counts: Mapping[str, int]
    """Number of contradicted probes by name, and of left-out cases as `REQUEST`."""
    example: str = ""
    """A sentence about the first of them."""
    on_contradiction: OnContradiction = "skip"
    """Whether `cases` lack them; "error": they are only counted."""


def settle(
    cases: Sequence[EditCase], mode: Mode, on_contradiction: OnContradiction
) -> Contradictions:
    """Return the cases as a run in this mode measures them, and count the contradictions.

    "skip" leaves out the contradicted probes and the later ones of contradicting requests. "error"
    keeps them, and raises DataError if the mode holds several edits at once. UnknownNameError for
    any other word.
    """
    if on_contradiction not in ON_CONTRADICTION:
        raise UnknownNameError("way with contradictions", str(on_contradiction), ON_CONTRADICTION)
    found = find_contradictions(cases)
    if on_contradiction == "skip":
        return found
    if isinstance(mode, Independent) or not found.counts:
        return replace(found, cases=tuple(cases), on_contradiction="error")
    raise DataError(
        f"edits of this run contradict each other's probes ({described(found.counts)}), so no "
        f"editor can get them all right. For instance, {found.example}. Leave these out with "
        "--on-contradiction skip, or take other cases"
    )


def described(counts: Mapping[str, int]) -> str:
    """Return the counts in words: "image locality 208, request 3"."""
    return ", ".join(f"{name.replace('_', ' ')} {counts[name]:,}" for name in counts)


def find_contradictions(cases: Sequence[EditCase]) -> Contradictions:
    """Return the cases without contradicted probes.

    An image counts by its content. Only images whose wording is also a request's, with another
    target or in locality, are read: their files, or their pixels where some of them are made in
    memory. Raises ImageError if one cannot be read.
    """
    asked = _Asked.of(cases)
    requests: dict[_Question, _Requested] = {}
    counts, examples, kept = Counter[str](), list[str](), list[EditCase]()
    for case in cases:
        own = {asked.question(request): _Requested(request, case) for request in case.requests}
        new = {question: one for question, one in own.items() if question is not None}
        against = [(one, requests.get(question, one)) for question, one in new.items()]
        opposed = [pair for pair in against if _target(pair[0].request) != _target(pair[1].request)]
        if not opposed:
            kept.append(case)
            requests = new | requests
        else:
            counts[REQUEST] += 1
            examples.append(_example(REQUEST, case, opposed[0][0].request, opposed[0][1]))
    for place, case in enumerate(kept):
        probes: dict[Probe, tuple[Example, ...]] = {}
        for probe, example in _probed(case):
            question = asked.question(example)
            other = requests.get(question) if question else None
            agrees = other is not None and _target(other.request) == _target(example)
            sound = other is None or (agrees and not probe.is_locality)
            probes[probe] = (*probes.get(probe, ()), *([example] if sound else []))
            if other is not None and not sound:
                counts[probe.value] += 1
                examples.append(_example(probe, case, example, other))
        if probes != case.probes:
            kept[place] = replace(case, probes=probes)
    ordered = {str(name): counts[name] for name in (REQUEST, *Probe) if counts[name]}
    return Contradictions(tuple(kept), ordered, examples[0] if examples else "")


@dataclass(frozen=True)
class _Asked:
    """Wordings of the cases in which they could contradict each other."""

    contested: frozenset[_Wording]
    """Wordings of requests that occur with several targets, or in locality."""
    drawn: frozenset[_Wording]
    """Wordings that are asked about an image in memory: images count by their pixels there."""

    @classmethod
    def of(cls, cases: Sequence[EditCase]) -> _Asked:
        targets: dict[_Wording, set[str]] = defaultdict(set)
        drawn, local = set[_Wording](), set[_Wording]()
        for case in cases:
            requested = [(Probe.RELIABILITY, request) for request in case.requests]
            for probe, example in (*requested, *_probed(case)):
                wording = _wording(example)
                targets[wording].add(_target(example))
                if probe.is_locality:
                    local.add(wording)
                if isinstance(example.image, Image.Image):
                    drawn.add(wording)
        wordings = {_wording(request) for case in cases for request in case.requests}
        contested = {w for w in wordings if len(targets[w]) > 1 or w in local}
        return cls(frozenset(contested), frozenset(drawn))

    def question(self, example: Example) -> _Question | None:
        """Return what an example asks; None if nothing can contradict it."""
        wording, image = _wording(example), example.image
        if wording not in self.contested:
            return None
        if image is None:
            return _Question(wording, None)
        if wording not in self.drawn or not isinstance(image, Path):
            return _Question(wording, image_key(image))
        return _Question(wording, _pixels(image, image_key(image)))


@lru_cache(maxsize=10_000)
def _pixels(path: Path, content: str) -> str:
    """Return the hash that an image in memory with the pixels of this file has. `content` is the
    file's own hash, so that a changed file is read again.
    """
    return image_key(open_image(path))


def _probed(case: EditCase) -> Iterator[tuple[Probe, Example]]:
    return ((probe, example) for probe, asked in case.probes.items() for example in asked)


def _wording(example: Example) -> _Wording:
    return _Wording(example.context, example.prompt)


def _target(example: Example) -> str:
    return example.target.strip()


def _example(kind: str, case: EditCase, example: Example, other: _Requested) -> str:
    return (
        f"{kind.replace('_', ' ')} of {case.id!r} expects {shortened(example.target)} for "
        f"{shortened(example.prompt)}, where the request of {other.case.id!r} sets "
        f"{shortened(other.request.target)}"
    )
