"""Title and notes of a trace."""

from __future__ import annotations

from mmedit.trace.records import TracePart
from mmedit.trace.summary import FEWEST, NOTICED, Trace, effect_of


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
    if len(trace.records) >= FEWEST:
        notes.append(
            "So the table also has the layer that is best in every other item (the first, the "
            "third, ...), and its recovery rate in the remaining items, which had no part in the "
            "choice."
        )
    hardly = sum(effect_of(record, "answer") < NOTICED for record in trace.records)
    if hardly:
        notes.append(
            f"In {hardly} of the {len(trace.records)} items the corruption takes away less than "
            f"{NOTICED} of the answer's probability, so there is little that could come back."
        )
    if len(trace.records) < 100:
        notes.append("With fewer than 100 items, differences of some hundredths mean little.")
    if any(record.cells and not record.cells.grid for record in trace.records):
        notes.append(
            "The image tokens of this VLM stand for no places in the image, or for places that are "
            "not known: they are cut into parts of tokens that follow each other, and no cells of "
            "the image are shaded."
        )
    traced = manifest.traced(len(trace.records))
    if len(traced) > 1:
        parts = ", ".join(
            f"from item {part.first_record + 1} on {_versions(part)}" for part in traced
        )
        notes.append(f"The items were not all traced by the same code and libraries: {parts}.")
    notes += [f"Left out, {reason}: {count}." for reason, count in manifest.left_out.items()]
    return notes


def _versions(part: TracePart) -> str:
    named = [f"{name} {version}" for name, version in part.versions.items()]
    return " ".join([*named, *([f"(commit {part.commit})"] if part.commit else [])])


def _mean(trace: Trace, run: str) -> float:
    found = [getattr(record, run).mean("answer") for record in trace.records]
    return sum(found) / len(found)
