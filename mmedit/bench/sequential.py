"""Sequential editing: one edit after another, with every edit tested again at checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np

from mmedit.bench.batches import ProbedCase
from mmedit.bench.costs import forget_peak_memory, timed
from mmedit.bench.jobs import Job, Past
from mmedit.bench.modes import Sequential
from mmedit.bench.protocol import EditState, Meter, NoEdit
from mmedit.bench.snapshots import Snapshot
from mmedit.cases import EditCase, Example, Probe
from mmedit.chunks import chunks
from mmedit.editors.base import Editor
from mmedit.records.schema import Key, Record, Test
from mmedit.vlm.interface import VLM


def sequential_jobs(
    mode: Sequential, meter: Meter, editor: Editor, cases: Sequence[EditCase], past: Past
) -> Iterator[Job | Snapshot]:
    """Yield the jobs of every order, and a snapshot now and then.

    The edits are made while the jobs are drawn, from the last snapshot on, and not at all where no
    record is missing. The base model is the same after every edit, so it is tested once.
    """
    if isinstance(editor, NoEdit):
        schedule = Schedule(mode, cases, meter.batch_size)
        for test in schedule.tests_after(len(cases)):
            if test.kind == "checkpoint":
                run = partial(_measure, meter, test, meter.vlm, 0, [0.0] * len(test.places))
                yield Job(test.keys(meter.name, 0), run)
        return
    for order in range(mode.orders):
        schedule = Schedule(mode, ordered(cases, order, meter.seed), meter.batch_size)
        yield from SequenceOfEdits(schedule, meter, order).jobs(editor, past)


def ordered(cases: Sequence[EditCase], order: int, seed: int) -> list[EditCase]:
    """Return the cases as a sequence: order 0 as they are, any other drawn by (seed, order)."""
    if order == 0:
        return list(cases)
    drawn = np.random.default_rng([seed, 3, order]).permutation(len(cases))
    return [cases[place] for place in drawn]


@dataclass(frozen=True)
class ScheduledTest:
    """Cases that are tested together after a number of edits."""

    kind: Test
    edits: int
    """Number of edits that the VLM then holds."""
    cases: Sequence[ProbedCase]
    places: Sequence[int]
    """Place of each case's edit in the sequence, from 1; 0 for cases that are not edited."""

    def keys(self, editor: str, order: int) -> tuple[Key, ...]:
        """Return the keys of the records that it gives."""
        return tuple(Key(editor, order, self.kind, self.edits, case.id) for case in self.cases)


@dataclass(frozen=True)
class Schedule:
    """The tests of a sequence of edits."""

    mode: Sequential
    cases: Sequence[EditCase]
    """In the order of their edits."""
    batch_size: int
    """Maximum number of cases that are tested together."""

    @property
    def size(self) -> int:
        """Number of records that all tests give."""
        after = range(1, len(self.cases) + 1)
        return sum(len(test.cases) for edits in after for test in self.tests_after(edits))

    def tests_after(self, edits: int) -> list[ScheduledTest]:
        """Return the tests after this number of edits."""
        tests = [self._test("edit", edits, [edits])]
        tests += [self._test("gap", edits, [edits - gap]) for gap in self.mode.gaps if edits > gap]
        if self.mode.ability_every and edits % self.mode.ability_every == 0:
            tests += [
                ScheduledTest("ability", edits, cases, [0] * len(cases))
                for cases in chunks(self._ability_cases, self.batch_size)
            ]
        if edits in self._checkpoints:
            tests += [
                self._test("checkpoint", edits, places)
                for places in chunks(range(1, edits + 1), self.batch_size)
            ]
        return tests

    def _test(self, kind: Test, edits: int, places: Sequence[int]) -> ScheduledTest:
        return ScheduledTest(kind, edits, [self.cases[place - 1] for place in places], places)

    @cached_property
    def _checkpoints(self) -> set[int]:
        return self.mode.stops(len(self.cases))

    @cached_property
    def _ability_cases(self) -> list[ProbedCase]:
        """Cases whose locality probes are the ability test: the same ones in every order."""
        by_id = sorted(self.cases, key=lambda case: case.id)
        local = [case for case in by_id if any(probe.is_locality for probe in case.probes)]
        number = min(self.mode.ability_cases, len(local))
        return [LocalityCase.of(local[place * len(local) // number]) for place in range(number)]


@dataclass(frozen=True)
class LocalityCase:
    """The locality probes of a case that is not edited."""

    id: str
    probes: Mapping[Probe, tuple[Example, ...]]
    edit_target: str = ""

    @staticmethod
    def of(case: EditCase) -> LocalityCase:
        """Return the case without its other probes."""
        local = {probe: examples for probe, examples in case.probes.items() if probe.is_locality}
        return LocalityCase(case.id, local)


@dataclass(frozen=True)
class SequenceOfEdits:
    """The edits of one order, made by one editor one after another."""

    schedule: Schedule
    meter: Meter
    order: int

    def jobs(self, editor: Editor, past: Past) -> Iterator[Job | Snapshot]:
        """Make the edits, and yield the jobs after each of them."""
        first_missing = self._first_missing(past.records)
        if first_missing is None:
            return
        start = self._start(past, first_missing)
        edited, number = start.vlm, len(self.schedule.cases)
        seconds = [self._known_seconds(past, edits) or 0.0 for edits in range(1, start.edits + 1)]
        for edits in range(start.edits + 1, number + 1):
            edited, taken = self._edit(editor, edited, edits)
            seconds.append(self._known_seconds(past, edits) or taken)
            yield from self._jobs_after(edits, edited, seconds)
            if edits % self.schedule.mode.snapshot_every == 0 and edits < number:
                yield Snapshot(self.order, edits, edited)

    def _jobs_after(self, edits: int, edited: VLM, seconds: Sequence[float]) -> Iterator[Job]:
        for test in self.schedule.tests_after(edits):
            # A case that is not edited (place 0) is noted with the seconds of the last edit.
            taken = [seconds[(place or edits) - 1] for place in test.places]
            run = partial(_measure, self.meter, test, edited, self.order, taken)
            yield Job(test.keys(self.meter.name, self.order), run)

    def _edit(self, editor: Editor, vlm: VLM, edits: int) -> tuple[VLM, float]:
        """Make the edit of this number; return the edited VLM and the seconds that it took."""
        forget_peak_memory(vlm.devices)
        requests = self.schedule.cases[edits - 1].requests
        edited, seconds = timed(lambda: editor.apply(vlm, requests), vlm.devices)
        return edited.merged(), seconds  # the weights of each edit would fill the memory

    def _first_missing(self, known: Mapping[Key, Record]) -> int | None:
        """Return the first number of edits after which a record is missing."""
        for edits in range(1, len(self.schedule.cases) + 1):
            for test in self.schedule.tests_after(edits):
                if any(key not in known for key in test.keys(self.meter.name, self.order)):
                    return edits
        return None

    def _start(self, past: Past, first_missing: int) -> Snapshot:
        """Return the last snapshot before the first missing record, or the base model."""
        found = past.restore(self.order)
        if found is None or found.edits >= first_missing:
            return Snapshot(self.order, 0, self.meter.vlm)
        return found

    def _known_seconds(self, past: Past, edits: int) -> float | None:
        """Return the seconds that an edit took when an earlier part of the run made it."""
        case = self.schedule.cases[edits - 1]
        record = past.records.get(Key(self.meter.name, self.order, "edit", edits, case.id))
        return record.seconds if record else None


def _measure(
    meter: Meter, test: ScheduledTest, edited: VLM, order: int, seconds: Sequence[float]
) -> list[Record]:
    """Return the records of a test. Generations belong to the edits in a table, not to curves."""
    state = EditState(
        vlm=edited,
        seconds=seconds,
        places=test.places,
        edits=test.edits,
        order=order,
        test=test.kind,
    )
    without_generations = test.kind in ("gap", "ability")
    used = replace(meter, max_new_tokens=0) if without_generations else meter
    return used.records(state, test.cases)
