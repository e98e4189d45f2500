"""Sequences of edits: scores by number of edits, how soon an edit is forgotten, and after how many
edits the VLM breaks down. All of it is read from records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import nan
from statistics import fmean

from mmedit.cases import Probe
from mmedit.records.schema import ProbeRecord, Record
from mmedit.report.checkpoints import complete_checkpoints
from mmedit.report.columns import Measure
from mmedit.report.intervals import Summary
from mmedit.report.scores import all_by_editor, edit_scores, is_base

COLLAPSED = 0.5
"""A VLM has collapsed if its ability is less than this share of the base model's."""


@dataclass(frozen=True)
class Ability:
    """The ability of a VLM apart from its edits, by number of edits: token accuracy on the true
    answers to a fixed set of locality probes, from 0 to 1.

    `after` is over the probes with finite outputs, NaN if there are none; `finite` is their share,
    1 where it is not given.
    """

    unedited: float
    after: dict[int, float]
    finite: Mapping[int, float] = field(default_factory=dict)

    @property
    def collapsed(self) -> int | None:
        """Number of edits after which less than half of the ability is left, up to the end. A probe
        with NaN or infinite output counts as lost.
        """
        floor, found = COLLAPSED * self.unedited, None
        for edits, right in self.after.items():
            left = right * self.finite.get(edits, 1.0)
            if left >= floor:
                found = None
            elif found is None:
                found = edits
        return found


def is_sequence(records: Sequence[Record]) -> bool:
    """Return whether the records are of edits that were made one after another."""
    return any(record.test == "checkpoint" for record in records)


def curve(records: Sequence[Record], probe: Probe, measure: Measure) -> list[tuple[int, Summary]]:
    """Return, for each finished checkpoint, the number of edits and the score over all of them."""
    found, orders = [], 1 + max((r.order for r in records), default=0)
    for edits in sorted(complete_checkpoints(records, orders)):
        tested = [r for r in records if r.test == "checkpoint" and r.edits == edits]
        scores = edit_scores(tested, probe, measure)
        if scores is not None:
            found.append((edits, scores.summary()))
    return found


def forgetting(
    records: Sequence[Record], probe: Probe, measure: Measure
) -> list[tuple[int, Summary]]:
    """Return, for each number of further edits (0: none), the score of an edit after them."""
    later = [r for r in records if r.test in ("edit", "gap")]
    gaps = sorted({r.edits - r.place for r in later})
    if gaps == [0]:
        return []
    found = []
    for gap in gaps:
        scores = edit_scores([r for r in later if r.edits - r.place == gap], probe, measure)
        if scores is not None:
            found.append((gap, scores.summary()))
    return found


def abilities(records: Sequence[Record]) -> dict[int, Ability]:
    """Return the ability by order of the edits; empty if it was not tested."""
    by_order: dict[int, dict[int, list[ProbeRecord]]] = {}
    for record in records:
        if record.test == "ability":
            by_edits = by_order.setdefault(record.order, {})
            by_edits.setdefault(record.edits, []).extend(_all(record))
    return {order: _ability(dict(sorted(by_order[order].items()))) for order in sorted(by_order)}


def _ability(asked: Mapping[int, Sequence[ProbeRecord]]) -> Ability:
    """Return the ability in one order, from its probes by number of edits."""
    known = {edits: [one for one in found if one.is_finite] for edits, found in asked.items()}
    before = (one.pre for found in asked.values() for one in found)
    return Ability(
        _mean([pre.token_accuracy for pre in before if pre.is_finite]),
        {edits: _mean([one.post.token_accuracy for one in known[edits]]) for edits in asked},
        {edits: len(known[edits]) / len(found) for edits, found in asked.items() if found},
    )


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else nan


def _all(record: Record) -> list[ProbeRecord]:
    return [one for asked in record.probes.values() for one in asked]


def not_finite(records: Sequence[Record]) -> int:
    """Count the edits right after which the VLM gave NaN or infinity on some probe."""
    return sum(r.test == "edit" and not r.is_finite for r in records)


def sequence_notes(records: Sequence[Record]) -> list[str]:
    """Write the notes of a table about its sequences: NaN, and collapse."""
    notes = []
    for editor, found in all_by_editor(records).items():
        if is_base(editor) or not is_sequence(found):
            continue
        known = abilities(found)
        collapsed = [one.collapsed for one in known.values() if one.collapsed is not None]
        failed, edits = not_finite(found), sum(record.test == "edit" for record in found)
        faults = (
            [f"NaN or infinite output right after {failed:,} of {edits:,} edits"] if failed else []
        )
        if collapsed:
            orders = f" ({len(collapsed)} of {len(known)} orders)" if len(known) > 1 else ""
            faults.append(f"collapsed from edit {min(collapsed):,} on{orders}")
        if faults:
            notes.append(f"{editor}: {', '.join(faults)}.")
    if any("collapsed" in note for note in notes):
        notes.append("Collapsed: less than half of the true answers to the fixed probes are left.")
    return notes
