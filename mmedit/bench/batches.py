"""Batches of examples that go through a VLM together.

Results agree whatever the batches are, except in their last digits. A run therefore forms the same
batches again each time it is continued.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from mmedit.cases import Example, Probe
from mmedit.chunks import chunks


class ProbedCase(Protocol):
    """A case as far as it is tested: its id, its probes, and the answer that its edit sets, "" for
    a case that is not edited.
    """

    @property
    def id(self) -> str: ...

    @property
    def edit_target(self) -> str: ...

    @property
    def probes(self) -> Mapping[Probe, tuple[Example, ...]]: ...


class Question(NamedTuple):
    """One example of a case's probes."""

    case: int
    """Index of the case in its batch of cases."""
    probe: Probe
    example: Example


def question_batches(cases: Sequence[ProbedCase], batch_size: int) -> Iterator[Sequence[Question]]:
    """Yield the questions of all probes, probe by probe, at most `batch_size` together.

    Examples without an image are batched separately: they need no padding to the length of one.
    """
    longest = {p: max(len(case.probes.get(p, ())) for case in cases) for p in Probe}
    questions = [
        Question(index, probe, case.probes[probe][number])
        for probe in Probe
        for number in range(longest[probe])
        for index, case in enumerate(cases)
        if len(case.probes.get(probe, ())) > number
    ]
    for has_image in (True, False):
        group = [q for q in questions if (q.example.image is not None) == has_image]
        yield from chunks(group, batch_size)
