"""A causal tracing run: its items, its folder, and what is made of its records.

    trace = run_trace(vlm, {"a": Example(...), "b": Example(...)}, "runs/trace")
    trace.recovery("block").rate            the recovery rate of each group in each layer

runs/trace/trace.jsonl        one line per item; a run that was stopped goes on after the last one
runs/trace/manifest.json      VLM, items, settings, versions
runs/trace/images/            small copies of the images, for the page
runs/trace/trace.csv, trace.md, trace.html, and the plots: made from these files alone
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from io import BytesIO
from pathlib import Path

from mmedit.bench.plan import commit
from mmedit.cases import Example, image_name
from mmedit.errors import DataError, ModelError
from mmedit.images import image_key, open_image
from mmedit.progress import Progress, by_itself, counted
from mmedit.storage import require_path, write_atomically
from mmedit.trace.corruption import NO_SWAP, corrupted, sigma_of
from mmedit.trace.item import trace_item
from mmedit.trace.item_runs import modules_of
from mmedit.trace.items import Candidates, chosen_items
from mmedit.trace.outputs import image_file, write_outputs
from mmedit.trace.records import (
    RECORDS,
    TraceManifest,
    TraceWriter,
    content_hash,
    require_room,
)
from mmedit.trace.settings import TraceSettings
from mmedit.trace.summary import Trace, read_trace
from mmedit.vlm.interface import VLM
from mmedit.vlm.network import NetworkVLM

PIXELS = 224
"""Longer side of an image's small copy, in pixels."""


def run_trace(
    vlm: VLM,
    candidates: Candidates | Mapping[str, Example],
    folder: str | Path,
    *,
    settings: TraceSettings | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
) -> Trace:
    """Trace the candidates that the base model answers right, at most `limit`, into a folder.

    Examples by id are candidates with the answers that they have. Costs: `trace_item` for each
    item. Raises ModelError for an edited VLM or one that cannot be traced, DataError if no
    candidate is answered right, RunError for a folder of another run.
    """
    settings, progress, path = settings or TraceSettings(), progress or by_itself(), Path(folder)
    require_path(path)
    network = _traceable(vlm, settings)
    if not isinstance(candidates, Candidates):
        candidates = Candidates(examples=candidates)
    known = {"dataset": candidates.dataset, "questions": candidates.questions}
    require_room(path, settings=settings.model_dump(), **known)
    items, left_out = chosen_items(network, candidates, settings, limit=limit, progress=progress)
    if not items:
        reasons = "; ".join(f"{reason}: {count:,}" for reason, count in left_out.items())
        raise DataError(
            f"no item is left to trace ({reasons or 'no example was given'}); give questions that "
            "the base model answers right, and for a corruption of the image, with images"
        )
    sigma = sigma_of(network, items, settings)
    manifest = _manifest(network, candidates, items, settings, left_out)
    manifest = manifest.model_copy(update={"sigma": sigma})
    with TraceWriter(path, manifest) as into:
        _trace_all(network, items, manifest, into, progress)
    if not (path / RECORDS).stat().st_size:
        raise DataError(
            f"none of {len(items):,} items could be corrupted by {settings.corruption}: no other "
            "item has an image of as many tokens with which the answer changes; use more items "
            "(--limit), or --corruption image_noise"
        )
    trace = read_trace(path)
    write_outputs(trace, path)
    return trace


def _trace_all(
    vlm: NetworkVLM,
    items: Mapping[str, Example],
    manifest: TraceManifest,
    into: TraceWriter,
    progress: Progress,
) -> None:
    """Trace the items that have no record yet."""
    settings, done = manifest.settings, {record.id for record in into.earlier}
    for number, name in enumerate(counted(items, "tracing", len(items), progress)):
        if name in done:
            continue
        runs, item = corrupted(vlm, name, items, (settings, manifest.sigma or 0.0))
        if item is None:
            continue
        record = trace_item(runs, item, settings)
        _keep_image(items[name], into.folder / image_file(number))
        into.append(record)
        done.add(name)
    if len(done) < len(items):
        left_out = {**manifest.left_out, NO_SWAP: len(items) - len(done)}
        into.note(into.manifest.model_copy(update={"left_out": left_out}))


def _traceable(vlm: VLM, settings: TraceSettings) -> NetworkVLM:
    """Return the network of a base model, if its components can be told. Raises ModelError,
    SiteError.
    """
    if vlm.edits or not isinstance(vlm, NetworkVLM):
        raise ModelError("this VLM holds edits; causal tracing is of a base model: give vlm.base")
    for component in ("block", *settings.components):
        modules_of(vlm, component)
    return vlm


def _manifest(
    vlm: NetworkVLM,
    candidates: Candidates,
    items: Mapping[str, Example],
    settings: TraceSettings,
    left_out: Mapping[str, int],
) -> TraceManifest:
    layers = len(vlm.adapter.layers)
    packages = ("mmedit", "torch", "transformers")
    return TraceManifest(
        vlm=vlm.name,
        identity=vlm.identity._asdict(),
        layers=layers,
        window=settings.window_of(layers),
        settings=settings,
        sigma=None,
        items=tuple(items),
        content=content_hash([_content(example) for example in items.values()]),
        left_out=dict(left_out),
        dataset=candidates.dataset,
        questions=candidates.questions,
        command=candidates.command,
        versions={"python": platform.python_version(), **{one: version(one) for one in packages}},
        commit=commit(),
    )


def _content(example: Example) -> tuple[object, ...]:
    key = None if example.image is None else image_key(example.image)
    return (example.prompt, example.target, example.subject, image_name(example), key)


def _keep_image(example: Example, file: Path) -> None:
    if example.image is None:
        return
    small, written = open_image(example.image).convert("RGB"), BytesIO()
    small.thumbnail((PIXELS, PIXELS))
    small.save(written, "WEBP", quality=80)
    write_atomically(file, written.getvalue())
