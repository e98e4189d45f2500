"""Sequential editing: one edit after another, with every edit tested again at checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from mmedit.bench.base_outputs import Probed
from mmedit.bench.jobs import Job, Past
from mmedit.bench.modes import Sequential
from mmedit.bench.protocol import Applies, Held, Meter, NoEdit, forget_peak_memory, timed
from mmedit.bench.snapshots import Snapshot
from mmedit.cases import EditCase, Example, Probe
from mmedit.records.schema import Key, Record, Test
from mmedit.vlm.interface import VLM


def sequences(
    mode: Sequential, meter: Meter, editor: Applies, cases: Sequence[EditCase], past: Past
) -> Iterator[Job | Snapshot]:
    """The jobs of every order of a sequence."""
    if isinstance(editor, NoEdit):  # the VLM it leaves is the same after every edit
        last = SequenceOfEdits(mode, meter, cases, 0, [0.0] * len(cases))
        yield from last.tests_at(len(cases), meter.vlm, only="checkpoint")
        return
    for order in range(mode.orders):
        sequence = SequenceOfEdits(mode, meter, ordered(cases, order, meter.seed), order, [])
        yield from sequence.jobs(editor, past)


def ordered(cases: Sequence[EditCase], order: int, seed: int) -> list[EditCase]:
    """The cases as a sequence: order 0 as they are, any other drawn by (seed, order)."""
    if order == 0:
        return list(cases)
    drawn = np.random.default_rng([seed, 3, order]).permutation(len(cases))
    return [cases[place] for place in drawn]


class _Test(NamedTuple):
    """A kind of test, and the places (from 0) of the cases that it asks together."""

    test: Test
    places: tuple[int, ...]


@dataclass(frozen=True)
class SequenceOfEdits:
    """One fold of an editor over cases."""

    mode: Sequential
    meter: Meter
    cases: Sequence[EditCase]
    order: int
    seconds: list[float]
    """Of every edit that was made so far."""

    def jobs(self, editor: Applies, past: Past) -> Iterator[Job | Snapshot]:
        missing = self._first_missing(past.records)
        if missing is None:
            return
        edited, done = self._resumed(past, missing)
        device = edited.device
        for edits in range(done + 1, len(self.cases) + 1):
            request = self.cases[edits - 1].request
            forget_peak_memory(device)
            vlm = edited
            edited, seconds = timed(lambda vlm=vlm, r=request: editor.apply(vlm, [r]), device)
            self.seconds.append(self._seconds_before(past, edits) or seconds)
            yield from self.tests_at(edits, edited)
            if edits % self.mode.snapshot_every == 0 and edits < len(self.cases):
                yield Snapshot(self.order, edits, edited)

    def tests_at(self, edits: int, edited: VLM, only: Test | None = None) -> Iterator[Job]:
        """The jobs after so many edits."""
        for test in self._tests(edits):
            if only in (None, test.test):
                yield Job(
                    tuple(self._keys(edits, test)), lambda t=test: self._run(edits, edited, t)
                )

    def _run(self, edits: int, edited: VLM, test: _Test) -> list[Record]:
        ability = test.test == "ability"
        held = Held(
            seconds=[self.seconds[edits - 1 if ability else place] for place in test.places],
            edits=edits,
            places=[0 if ability else place + 1 for place in test.places],
            order=self.order,
            test=test.test,
        )
        # What is said freely is kept where edits are shown and tables made, not for curves.
        silent = test.test in ("gap", "ability")
        meter = replace(self.meter, max_new_tokens=0) if silent else self.meter
        return meter.records(edited, self._asked(test), held, separate=False)

    def _asked(self, test: _Test) -> list[Probed]:
        cases = self._ability if test.test == "ability" else self.cases
        return [cases[place] for place in test.places]

    def _tests(self, edits: int) -> list[_Test]:
        rows, mode = self.meter.rows, self.mode
        tests = [_Test("edit", (edits - 1,))]
        tests += [_Test("gap", (edits - 1 - gap,)) for gap in mode.gaps if edits > gap]
        if mode.ability_every and edits % mode.ability_every == 0:
            tests += _chunks("ability", len(self._ability), rows)
        if edits in self._stops:
            tests += _chunks("checkpoint", edits, rows)
        return tests

    @cached_property
    def _stops(self) -> set[int]:
        return self.mode.stops(len(self.cases))

    @cached_property
    def _ability(self) -> list[Probed]:
        """The same in every order."""
        known = sorted(self.cases, key=lambda case: case.id)
        local = [case for case in known if any(probe.is_locality for probe in case.probes)]
        number = min(self.mode.ability_cases, len(local))
        return [_Local.of(local[place * len(local) // number]) for place in range(number)]

    def _keys(self, edits: int, test: _Test) -> Iterator[Key]:
        for case in self._asked(test):
            yield Key(self.meter.name, self.order, test.test, edits, case.id)

    @property
    def tests(self) -> int:
        """How many there are, of all edits."""
        after = range(1, len(self.cases) + 1)
        return sum(len(test.places) for edits in after for test in self._tests(edits))

    def _first_missing(self, known: Mapping[Key, Record]) -> int | None:
        """The first number of edits of which a record is missing."""
        for edits in range(1, len(self.cases) + 1):
            for test in self._tests(edits):
                if any(key not in known for key in self._keys(edits, test)):
                    return edits
        return None

    def _resumed(self, past: Past, missing: int) -> tuple[VLM, int]:
        """The VLM from which to go on, and how many edits it holds: fewer than are missing."""
        found = past.restore(self.order)
        if found is None or found.edits >= missing:
            return self.meter.vlm, 0
        for edits in range(1, found.edits + 1):
            self.seconds.append(self._seconds_before(past, edits) or 0.0)
        return found.vlm, found.edits

    def _seconds_before(self, past: Past, edits: int) -> float | None:
        """How long the edit took when an earlier part of the run made it."""
        [key] = self._keys(edits, _Test("edit", (edits - 1,)))
        record = past.records.get(key)
        return record.seconds if record else None


def _chunks(test: Test, number: int, rows: int) -> list[_Test]:
    starts = range(0, number, rows)
    return [_Test(test, tuple(range(s, min(s + rows, number)))) for s in starts]


@dataclass(frozen=True)
class _Local:
    """A case that is not edited: its locality probes alone."""

    id: str
    probes: Mapping[Probe, tuple[Example, ...]]

    @staticmethod
    def of(case: EditCase) -> _Local:
        local = {probe: asked for probe, asked in case.probes.items() if probe.is_locality}
        return _Local(case.id, local)
