"""The checkpoint of sequences that a table shows: the last one that all of its rows have reached.

While a run goes on its methods have come to different checkpoints, and a score after 1,000 edits
says nothing beside one after 500.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmedit.records.schema import Record
from mmedit.report.scores import is_base

Rows = Mapping[str, Sequence[Record]]
"""Records by the label of their row."""


@dataclass(frozen=True)
class Checkpoint:
    """The rows of a sequence as they were after the same number of edits."""

    rows: Mapping[str, list[Record]]
    edits: int


def complete_checkpoints(records: Sequence[Record], orders: int) -> set[int]:
    """Return the checkpoints of one method at which all its edits were tested, in all orders."""
    tested = Counter((r.edits, r.order) for r in records if r.test == "checkpoint")
    return {
        edits
        for edits in {edits for edits, _ in tested}
        if all(tested[edits, order] == edits for order in range(orders))
    }


def last_shared(rows: Rows, orders: int) -> Checkpoint | None:
    """Cut rows to the last checkpoint that all methods have; None if no method has one."""
    reached = {
        label: complete_checkpoints(records, orders)
        for label, records in rows.items()
        if not is_base(label)
    }
    ready = {label: edits for label, edits in reached.items() if edits}
    shared = set.intersection(*ready.values()) if ready else set()
    return after(rows, max(shared), orders) if shared else None


def after(rows: Rows, edits: int, orders: int) -> Checkpoint:
    """Cut rows to a checkpoint: the base model to the cases that were edited by then.

    A method that has not reached it is left out.
    """
    methods = {label: found for label, found in rows.items() if not is_base(label)}
    ready = {
        label: [record for record in found if record.edits <= edits]
        for label, found in methods.items()
        if edits in complete_checkpoints(found, orders)
    }
    edited = {
        record.case_id
        for found in ready.values()
        for record in found
        if record.test == "checkpoint" and record.edits == edits
    }
    base = {
        label: [record for record in found if record.case_id in edited]
        for label, found in rows.items()
        if is_base(label)
    }
    kept = base | ready
    return Checkpoint({label: kept[label] for label in rows if label in kept}, edits)
