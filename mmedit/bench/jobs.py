"""The jobs of a run: each knows the keys of its records, and computes them when it is run.

A run skips the jobs whose records are all there and shares the others among its processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mmedit.bench.costs import forget_peak_memory, timed
from mmedit.bench.protocol import EditState, Meter
from mmedit.bench.snapshots import Snapshot
from mmedit.cases import EditCase
from mmedit.chunks import chunks
from mmedit.editors.base import Editor
from mmedit.records.schema import Key, Record


@dataclass(frozen=True)
class Job:
    """Some records, and the function that computes them."""

    keys: tuple[Key, ...]
    run: Callable[[], list[Record]]


@dataclass(frozen=True)
class Past:
    """The results of earlier parts of the run."""

    records: Mapping[Key, Record]
    restore: Callable[[int], Snapshot | None] = lambda order: None
    """Returns the last snapshot of an order."""


def separate_jobs(meter: Meter, editor: Editor, cases: Sequence[EditCase]) -> Iterator[Job]:
    """Yield the jobs of separate edits: one per batch of cases."""
    for batch in chunks(cases, meter.batch_size):
        keys = tuple(Key(meter.name, 0, "edit", 1, case.id) for case in batch)
        yield Job(keys, lambda batch=batch: meter.separate_edits(editor, batch))


def joint_jobs(meter: Meter, editor: Editor, cases: Sequence[EditCase], k: int) -> Iterator[Job]:
    """Yield the jobs of edits that are made `k` at once: one per `k` cases."""
    for group in chunks(cases, k):
        keys = tuple(Key(meter.name, 0, "edit", len(group), case.id) for case in group)
        yield Job(keys, lambda group=group: _joint_edits(meter, editor, group))


def _joint_edits(meter: Meter, editor: Editor, cases: Sequence[EditCase]) -> list[Record]:
    """Return the records of edits that were made at once and tested on the VLM that holds all."""
    vlm, edits = meter.vlm, len(cases)
    forget_peak_memory(vlm.devices)
    requests = [request for case in cases for request in case.requests]
    edited, seconds = timed(lambda: editor.apply(vlm, requests), vlm.devices)
    records: list[Record] = []
    for places in chunks(range(1, edits + 1), meter.batch_size):
        state = EditState(
            vlm=edited,
            seconds=[seconds / edits] * len(places),
            places=places,
            edits=edits,
            batch=edits,
        )
        records += meter.records(state, [cases[place - 1] for place in places])
    return records
