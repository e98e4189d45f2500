"""What a sequence of edits does: scores by number of edits, how soon an edit is forgotten, and
where the VLM breaks down. From records alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import fmean

from mmedit.cases import Probe
from mmedit.records.schema import ProbeRecord, Record
from mmedit.report.columns import Measure
from mmedit.report.intervals import Summary
from mmedit.report.scores import all_by_editor, edit_scores, is_base

COLLAPSED = 0.5
"""A VLM has collapsed where it answers less than this share of what it answered unedited."""


@dataclass(frozen=True)
class Ability:
    """What the VLM can do beside its edits, by number of edits: token accuracy on the truthful
    answers to a fixed set of locality probes, from 0 to 1.
    """

    unedited: float
    after: dict[int, float]

    @property
    def collapsed(self) -> int | None:
        """The number of edits from which on less than half of it is left, to the end."""
        floor, found = COLLAPSED * self.unedited, None
        for edits, left in self.after.items():
            if left >= floor:
                found = None
            elif found is None:
                found = edits
        return found


def is_sequence(records: Sequence[Record]) -> bool:
    """Whether these are of edits that were made one after another."""
    return any(record.test == "checkpoint" for record in records)


def curve(records: Sequence[Record], probe: Probe, measure: Measure) -> list[tuple[int, Summary]]:
    """At every checkpoint the number of edits, and the score of all of them."""
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
    """After how many further edits (0: none) an edit is tested again, and its score then."""
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
    """By order; empty where ability was not tested."""
    asked = [r for r in records if r.test == "ability"]
    found = {}
    for order in sorted({r.order for r in asked}):
        here = [r for r in asked if r.order == order]
        by_edits: dict[int, list[float]] = {}
        for record in here:
            right = [one.post.token_accuracy for one in _all(record)]
            by_edits.setdefault(record.edits, []).extend(right)
        after = {edits: fmean(right) for edits, right in sorted(by_edits.items())}
        unedited = fmean(one.pre.token_accuracy for r in here for one in _all(r))
        found[order] = Ability(unedited, after)
    return found


def _all(record: Record) -> list[ProbeRecord]:
    return [one for asked in record.probes.values() for one in asked]


def not_finite(records: Sequence[Record]) -> int:
    """On how many edits the VLM gave NaN or infinity right after them."""
    edits = [r for r in records if r.test == "edit"]
    return sum(not isfinite(r.probes[Probe.RELIABILITY][0].post.log_prob) for r in edits)


def sequence_notes(records: Sequence[Record]) -> list[str]:
    """What a table must say of the sequences in it: NaN, and collapse."""
    notes = []
    for editor, found in all_by_editor(records).items():
        if is_base(editor) or not is_sequence(found):
            continue
        known = abilities(found)
        collapsed = [one.collapsed for one in known.values() if one.collapsed is not None]
        nan, edits = not_finite(found), sum(record.test == "edit" for record in found)
        faults = [f"NaN on {nan:,} of {edits:,} edits"] if nan else []
        if collapsed:
            orders = f" ({len(collapsed)} of {len(known)} orders)" if len(known) > 1 else ""
            faults.append(f"collapsed from edit {min(collapsed):,} on{orders}")
        if faults:
            notes.append(f"{editor}: {', '.join(faults)}.")
    if any("collapsed" in note for note in notes):
        notes.append(
            "Collapsed: less than half of the truthful answers to the fixed probes are left."
        )
    return notes
