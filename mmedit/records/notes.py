"""The sentences about a run that belong under its table, from its manifest."""

from __future__ import annotations

from mmedit.records.schema import RunManifest


def notes_of(manifest: RunManifest, *, tested: str = "the last one") -> list[str]:
    """Return the sentences that a table of the run must show.

    `tested` names the edit of a sequence after which the scores of the table were measured.
    """
    settings, mode = manifest.run, manifest.run.mode
    notes = []
    if settings.split == "validation":
        notes.append(
            "Measured on validation cases: they are not test cases, and no editor was trained on "
            "them in this run."
        )
    if settings.left_out:
        reasons = ", ".join(
            f"{why}: {number:,}" for why, number in sorted(settings.left_out.items())
        )
        notes.append(f"Left out of {manifest.dataset}: {reasons}.")
    if settings.contradictions and settings.on_contradiction == "skip":
        counts = ", ".join(
            f"{k.replace('_', ' ')} {n:,}" for k, n in settings.contradictions.items()
        )
        notes.append(f"Left out, because another edit of the run contradicts them: {counts}.")
    if mode["kind"] == "batch":
        last = (manifest.cases or 0) % mode["k"]
        fewer = f" The last batch has {last:,} {'edit' if last == 1 else 'edits'}." if last else ""
        notes.append(f"Edits were made {mode['k']} at a time, and tested together.{fewer}")
    if mode["kind"] == "sequential":
        orders = f", in each of {mode['orders']} orders" if mode["orders"] > 1 else ""
        notes.append(f"Edits were made one after another{orders}, and tested after {tested}.")
    return notes
