"""Title and notes of a trace."""

from __future__ import annotations

from mmedit.trace.summary import NOTICED, Trace, effect_of


def title_of(trace: Trace) -> str:
    """Return what was traced, on one line."""
    manifest = trace.manifest
    what = ", ".join(part for part in (manifest.dataset, manifest.questions) if part)
    name = f"{manifest.vlm or 'VLM'} on {what}" if what else manifest.vlm or "VLM"
    corruption = manifest.settings.corruption.replace("_", " ")
    return f"{name}: {corruption}, n = {len(trace.records)}"


def notes_of(trace: Trace) -> list[str]:
    """Return what a reader must know to read the rates."""
    manifest, settings = trace.manifest, trace.manifest.settings
    draws = "" if settings.corruption == "image_swap" else f", {settings.draws} noise draws each"
    others = sorted(set(trace.components) - {"block"}, reverse=True)
    layers = "1 layer" if manifest.window == 1 else f"{manifest.window} layers"
    window = f" {' and '.join(others)}: windows of {layers}." if others else ""
    notes = [
        f"{len(trace.records)} items that the base model answers right{draws}. Mean p(answer): "
        f"clean {_mean(trace, 'clean'):.3f}, corrupted {_mean(trace, 'corrupt'):.3f}.",
        "Recovery rate: mean indirect effect / mean total effect on the probability of the whole "
        "answer; 1 brings all of it back, 0 nothing, below 0 takes more away. 95 % interval: "
        "bootstrap over items.",
        f"Layers count from 0. block: the output of one layer.{window}",
        "The best of many layers looks better than it is: compare the intervals of its neighbours.",
    ]
    hardly = sum(effect_of(record, "answer") < NOTICED for record in trace.records)
    if hardly:
        notes.append(
            f"In {hardly} of the {len(trace.records)} items the corruption takes away less than "
            f"{NOTICED} of the answer's probability, so there is little that could come back."
        )
    if len(trace.records) < 100:
        notes.append("With fewer than 100 items, differences of some hundredths mean little.")
    grids = {record.cells.grid for record in trace.records if record.cells}
    if 0 in grids:
        notes.append(
            "Image tokens whose number is not a square are cut into parts of tokens that follow "
            "each other; such parts need not be places in the image."
        )
    notes += [f"Left out, {reason}: {count}." for reason, count in manifest.left_out.items()]
    return notes


def _mean(trace: Trace, run: str) -> float:
    found = [getattr(record, run).mean("answer") for record in trace.records]
    return sum(found) / len(found)
