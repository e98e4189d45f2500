"""Sequences of edits: scores by number of edits, how soon an edit is forgotten, and after how many
edits the VLM breaks down. All of it is read from records.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, nan
from statistics import fmean

from mmedit.cases import Probe
from mmedit.records.schema import ProbeRecord, Record
from mmedit.report.columns import Measure
from mmedit.report.intervals import Summary
from mmedit.report.scores import all_by_editor, edit_scores, is_base

COLLAPSED = 0.5
"""A VLM has collapsed if its ability is less than this share of the base model's."""


@dataclass(frozen=True)
class Ability:
    """The ability of a VLM apart from its edits, by number of edits: token accuracy on the true
    answers to a fixed set of locality probes, from 0 to 1. It is over the probes with finite
    outputs, and NaN if there are none.
    """

    unedited: float
    after: dict[int, float]

    @property
    def collapsed(self) -> int | None:
        """Number of edits after which less than half of the ability is left, or the outputs are NaN
        or infinite, up to the end.
        """
        floor, found = COLLAPSED * self.unedited, None
        for edits, left in self.after.items():
            if left >= floor:
                found = None
            elif found is None:
                found = edits
        return found


def is_sequence(records: Sequence[Record]) -> bool:
    """Return whether the records are of edits that were made one after another."""
    return any(record.test == "checkpoint" for record in records)


def curve(records: Sequence[Record], probe: Probe, measure: Measure) -> list[tuple[int, Summary]]:
    """Return, for each checkpoint, the number of edits and the score over all of them."""
    found = []
    for edits in sorted({r.edits for r in records if r.test == "checkpoint"}):
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
    asked = [r for r in records if r.test == "ability"]
    found = {}
    for order in sorted({r.order for r in asked}):
        here = [r for r in asked if r.order == order]
        by_edits: dict[int, list[float]] = {}
        for record in here:
            right = [one.post.token_accuracy for one in _all(record) if one.is_finite]
            by_edits.setdefault(record.edits, []).extend(right)
        after = {edits: _mean(right) for edits, right in sorted(by_edits.items())}
        unedited = _mean([x for r in here for one in _all(r) if isfinite(x := _before(one))])
        found[order] = Ability(unedited, after)
    return found


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else nan


def _before(asked: ProbeRecord) -> float:
    return asked.pre.token_accuracy if isfinite(asked.pre.log_prob) else nan


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
