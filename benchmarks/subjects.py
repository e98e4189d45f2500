"""A VLM and the cases that it is edited with, as `floor.py` measures them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from bare import Rows
from learners import full_size, random_vlm
from measuring import SUPPORT, Clock, Work, in_turn

sys.path.insert(0, SUPPORT)

import shapes

from mmedit import EditCase, Example, load_cases
from mmedit.adapters import adapter_for
from mmedit.bench.batches import Question, question_batches
from mmedit.cases import Probe
from mmedit.vlm.network import NetworkVLM

VLMS = (*shapes.SHAPES, *full_size.RUNNABLE)
"""Names of VLMs that can be measured."""
SIZES = (4, 8, 16, 32, 64, 128)
"""Batch sizes that are tried for the floor."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A VLM, and the cases that it is edited with."""

    vlm: NetworkVLM
    clock: Clock
    cases: list[EditCase]
    training: list[EditCase]

    @property
    def requests(self) -> list[Example]:
        return [case.request for case in self.cases]

    @property
    def examples(self) -> list[Example]:
        return [question.example for question in self.all_questions]

    @cached_property
    def all_questions(self) -> list[Question]:
        """All probes of all cases."""
        return questions_of(self.cases)

    @cached_property
    def questions(self) -> list[Question]:
        """All probes but the requests themselves."""
        return [q for q in self.all_questions if q.probe is not Probe.RELIABILITY]

    def trained_on(self, editor: Any) -> list[Question]:
        """Return the probes of the training cases that the method's loss has."""
        weights = editor.config.probe_weights
        return [q for q in questions_of(self.training) if q.probe in weights]

    @cached_property
    def size(self) -> int:
        """The batch size at which the rows take the least time."""
        part = self.questions[: max(SIZES)]
        tried = {
            size: Work(self.rows_of(part, size=size).forward)
            for size in SIZES
            if size < len(part) or size == min(SIZES)
        }
        times = in_turn(tried, 2, self.clock)
        return min(tried, key=lambda size: min(times[size]))

    def rows_of(
        self, questions: Sequence[Question], *, layers: Sequence[int] = (), size: int = 0
    ) -> Rows:
        return Rows(
            self.vlm,
            [question.example for question in questions],
            size=size or self.size,
            layers=layers,
            all_text=[question.probe.is_locality for question in questions],
        )

    def rows(self, examples: Sequence[Example], *, layers: Sequence[int] = ()) -> Rows:
        return Rows(self.vlm, examples, size=self.size, layers=layers)


def questions_of(cases: Sequence[EditCase]) -> list[Question]:
    return [q for batch in question_batches(cases, max(1, 99 * len(cases))) for q in batch]


def subject_of(size: str, clock: Clock, number: int, dtype: torch.dtype) -> Subject:
    """Return the VLM of a size, with test and training cases."""
    if size in full_size.RUNNABLE:
        vlm = random_vlm(size, dtype, clock.device)
    else:
        network, processor = shapes.build(size)
        network.to(clock.device, dtype)
        name = size if size == "embedded" else ""
        vlm = NetworkVLM(adapter_for(network.config)(network, processor), name=name)
    tests, training = (load_cases("easyvqa", split, limit=number) for split in ("test", "train"))
    return Subject(vlm, clock, list(tests), list(training))
