"""Names of mmedit that differ between checkouts, for `against_worker.py`, which does the same work
under an older mmedit and under this one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from typing import Any

from mmedit.adapters import adapter_for
from mmedit.bench import protocol
from mmedit.bench.base_outputs import BaseOutputs
from mmedit.cases import EditCase
from mmedit.vlm.network import NetworkVLM

HASHES = ("fingerprint", "config_hash", "processing_hash")
"""Cached properties of an adapter that make up the identity of its network."""


def editors() -> dict[str, Any]:
    """Return the table of methods."""
    home = "mmedit.methods" if find_spec("mmedit.methods") else "mmedit.editors"
    return import_module(home).EDITORS


def fitted(editor: Any, vlm: NetworkVLM, cases: Sequence[EditCase]) -> Any:
    """Fit an editor, quietly."""
    if find_spec("mmedit.editors.fitting") is None:
        editor.fit(vlm, cases)
        return editor
    given = import_module("mmedit.editors.fitting")
    return editor.fit(vlm, given.Fitting(cases, progress=lambda *_: None))


def meter(vlm: NetworkVLM, batch: int) -> Any:
    """Return a meter that knows no outputs of the base model yet."""
    size = "batch_size" if "batch_size" in signature(protocol.Meter).parameters else "rows"
    base = BaseOutputs.of(vlm) if hasattr(BaseOutputs, "of") else BaseOutputs(vlm)
    return protocol.Meter(base, name="", **{size: batch})


def records(measuring: Any, editor: Any, cases: Sequence[EditCase]) -> list[Any]:
    """Evaluate separate edits of all cases, made and tested together."""
    name = "separate_edits" if hasattr(measuring, "separate_edits") else "independent"
    return list(getattr(measuring, name)(editor, cases))


def merged(vlm: Any) -> Any:
    """Return an edited VLM as a sequence keeps it."""
    return vlm.merged() if hasattr(vlm, "merged") else vlm


@contextmanager
def prepared(vlm: NetworkVLM, editor: Any, cases: Sequence[EditCase]) -> Iterator[None]:
    """Keep what a training keeps of these cases over its steps, if this mmedit keeps anything."""
    if hasattr(vlm.frozen, "prepared"):
        with vlm.frozen.prepared(editor.asked(vlm, cases)):
            yield
    else:
        yield


def new_vlm(network: Any, processor: Any) -> NetworkVLM:
    """Return a VLM that knows nothing yet."""
    return NetworkVLM(adapter_for(network.config)(network, processor))


def fresh(vlm: NetworkVLM, *, features: bool = True) -> NetworkVLM:
    """Return the VLM with nothing known, or nothing but its image features.

    Its adapter is new, so it has kept no tokens either. The hashes that tell whether an editor was
    fitted on this network take seconds, and are handed on.
    """
    known = vlm.adapter
    adapter = type(known)(known.network, known.processor)
    adapter.token = known.token  # names the network's image features
    for name in HASHES:
        if hasattr(type(known), name):
            vars(adapter)[name] = getattr(known, name)
    named = {"name": vlm.name} if hasattr(vlm, "name") else {}
    return NetworkVLM(adapter, **named, **({"features": vlm.features} if features else {}))
