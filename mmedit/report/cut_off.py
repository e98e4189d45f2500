"""The number of generations that were cut off before their end, for the note under a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmedit.records.schema import Record


def cut_off_notes(rows: Mapping[str, Sequence[Record]]) -> list[str]:
    """Return a sentence that counts the generations that were cut off, by row; none without any.

    A record of an earlier version does not say whether it was.
    """
    counts = {editor: _cut_off(records) for editor, records in rows.items()}
    named = [f"{cut:,} of {all_:,} ({editor})" for editor, (cut, all_) in counts.items() if cut]
    if not named:
        return []
    return [f"Generations cut off at the run's largest length: {', '.join(named)}."]


def _cut_off(records: Sequence[Record]) -> tuple[int, int]:
    """Return how many generations after the edit were cut off, and how many tell."""
    known = [
        asked.cut_off_post
        for record in records
        for examples in record.probes.values()
        for asked in examples
        if asked.cut_off_post is not None
    ]
    return sum(known), len(known)
