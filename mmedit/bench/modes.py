"""In what order edits are made and tested: each by itself, some together, or one after another.

A mode is a list of jobs. A job tells the keys of the records that it makes, so that finished ones
are skipped and the others are shared out among processes; it computes when it is run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from mmedit.bench.protocol import (
    Applies,
    Held,
    Meter,
    NoEdit,
    Probed,
    forget_peak_memory,
    timed,
)
from mmedit.bench.records import Key, Record, Test
from mmedit.cases import EditCase, Example, Probe
from mmedit.errors import ConfigError
from mmedit.vlm import VLM


class _Mode(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Independent(_Mode):
    """Every edit from the unedited VLM."""

    kind: Literal["independent"] = "independent"


class Batch(_Mode):
    """`k` edits at once, and all of them tested on the VLM that holds them."""

    kind: Literal["batch"] = "batch"
    k: int = Field(default=10, ge=1)


class Sequential(_Mode):
    """One edit after another. At the checkpoints all edits so far are tested again."""

    kind: Literal["sequential"] = "sequential"
    checkpoints: tuple[int, ...] = ()
    """Numbers of edits; none: 1, 10, 50, 100, 200, 500, 1000, 2000, 5000, ... The last edit is
    always one.
    """
    gaps: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Edit t is tested again after t + gap edits (VLKEB, Huang et al. 2024)."""
    orders: int = Field(default=1, ge=1)
    """The first is the cases' own, others are drawn by the seed."""
    ability_every: int = Field(default=10, ge=0)
    """After so many edits what the VLM can do beside them is tested; 0: never."""
    ability_cases: int = Field(default=32, ge=1)
    """Of so many cases, evenly spread, the locality probes are that test."""
    snapshot_every: int = Field(default=50, ge=1)
    """After so many edits the deltas are written, for a run that is stopped to go on from."""

    def stops(self, edits: int) -> set[int]:
        """The checkpoints of a sequence of so many edits."""
        wanted = self.checkpoints or _usual_checkpoints(edits)
        return {stop for stop in wanted if 1 <= stop < edits} | {edits}


Mode = Independent | Batch | Sequential
MODES: dict[str, type[Independent] | type[Batch] | type[Sequential]] = {
    "independent": Independent,
    "batch": Batch,
    "sequential": Sequential,
}
READ_MODE: TypeAdapter[Mode] = TypeAdapter(Annotated[Mode, Field(discriminator="kind")])


def _usual_checkpoints(edits: int) -> list[int]:
    return [1, 10, 50, *(step * 10**p for p in range(2, len(str(edits))) for step in (1, 2, 5))]


@dataclass(frozen=True)
class Job:
    """Some records, and what makes them."""

    keys: tuple[Key, ...]
    run: Callable[[], list[Record]]


class Snapshot(NamedTuple):
    """Where a sequence has come to: all jobs before it are about fewer edits, or as many."""

    order: int
    edits: int
    vlm: VLM


@dataclass(frozen=True)
class Past:
    """What an earlier part of the run has left."""

    records: Mapping[Key, Record]
    restore: Callable[[int], Snapshot | None] = lambda order: None
    """The last snapshot of an order."""


def jobs(
    mode: Mode, meter: Meter, editor: Applies, cases: Sequence[EditCase], past: Past
) -> Iterator[Job | Snapshot]:
    """All jobs of one editor. A sequence's edits are made while its jobs are drawn, from the last
    snapshot on, and not at all where nothing is missing.
    """
    if isinstance(mode, Sequential):
        yield from _sequences(mode, meter, editor, cases, past)
    elif isinstance(mode, Batch):
        for start in range(0, len(cases), mode.k):
            yield _together(meter, editor, cases[start : start + mode.k])
    else:
        for start in range(0, len(cases), meter.rows):
            chunk = cases[start : start + meter.rows]
            keys = tuple(Key(meter.name, 0, "edit", 1, case.id) for case in chunk)
            yield Job(keys, lambda chunk=chunk: meter.independent(editor, chunk))


def records_in(mode: Mode, meter: Meter, editor: Applies, cases: Sequence[EditCase]) -> int:
    """How many records the jobs make."""
    if not isinstance(mode, Sequential) or isinstance(editor, NoEdit):
        return len(cases)
    sequence = _Sequence(mode, meter, cases, 0, [])
    return mode.orders * sequence.tests


def _together(meter: Meter, editor: Applies, cases: Sequence[EditCase]) -> Job:
    edits = len(cases)

    def run() -> list[Record]:
        vlm = meter.vlm
        forget_peak_memory(vlm.device)
        requests = [case.request for case in cases]
        edited, seconds = timed(lambda: editor.apply(vlm, requests), vlm.device)
        made: list[Record] = []
        for start in range(0, edits, meter.rows):
            chunk = cases[start : start + meter.rows]
            places = range(start + 1, start + 1 + len(chunk))
            held = Held(seconds=[seconds / edits] * len(chunk), edits=edits, places=places)
            made += meter.records(edited, chunk, held, separate=False, batch=edits)
        return made

    return Job(tuple(Key(meter.name, 0, "edit", edits, case.id) for case in cases), run)


def _sequences(
    mode: Sequential, meter: Meter, editor: Applies, cases: Sequence[EditCase], past: Past
) -> Iterator[Job | Snapshot]:
    if isinstance(editor, NoEdit):  # the VLM it leaves is the same after every edit
        last = _Sequence(mode, meter, cases, 0, [0.0] * len(cases))
        yield from last.tests_at(len(cases), meter.vlm, only="checkpoint")
        return
    for order in range(mode.orders):
        sequence = _Sequence(mode, meter, ordered(cases, order, meter.seed), order, [])
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
class _Sequence:
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


def require_sound(mode: Mode, edits: int) -> None:
    """Raise ConfigError where a mode asks for more edits than there are."""
    if isinstance(mode, Sequential):
        # One that comes too late among others is left out: a table may be run in small.
        for name, wanted in (("checkpoints", mode.checkpoints), ("gaps", mode.gaps)):
            if wanted and min(wanted) >= edits + (name == "checkpoints"):
                raise ConfigError(
                    f"there are {edits} edits, and sequential.{name} wants {min(wanted)} at least; "
                    "choose fewer, or a larger --limit"
                )
    if isinstance(mode, Batch) and mode.k > edits:
        raise ConfigError(f"there are {edits} edits, and batch.k is {mode.k}; choose fewer")
