"""A job: some records of a run, and the function that computes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mmedit.bench.protocol import Applies, Held, Meter, forget_peak_memory, timed
from mmedit.bench.snapshots import Snapshot
from mmedit.cases import EditCase
from mmedit.records.schema import Key, Record


@dataclass(frozen=True)
class Job:
    """Some records, and what makes them."""

    keys: tuple[Key, ...]
    run: Callable[[], list[Record]]


@dataclass(frozen=True)
class Past:
    """What an earlier part of the run has left."""

    records: Mapping[Key, Record]
    restore: Callable[[int], Snapshot | None] = lambda order: None
    """The last snapshot of an order."""


def together(meter: Meter, editor: Applies, cases: Sequence[EditCase]) -> Job:
    """The job of making some edits at once and testing them all."""
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
