"""Checks of the arguments of every VLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmedit.adapters.base import STAGES
from mmedit.adapters.generation import Decoding
from mmedit.arguments import Doors, as_count, as_examples, as_rows, as_site, as_sites, one_of
from mmedit.deltas import Delta
from mmedit.errors import ConfigError, EditError, SiteError, shortened
from mmedit.vlm.edit import Edit, stack


def as_deltas(given: Any) -> Mapping[str, Delta]:
    """Return deltas by site. Raises SiteError."""
    if isinstance(given, Mapping) and all(isinstance(d, Delta) for d in given.values()):
        return given
    raise SiteError(
        f"the deltas are of type {type(given).__name__}; expected a dictionary of LowRank or Dense "
        "deltas by site"
    )


def as_edit(given: Any) -> Edit:
    """Return an edit; a list of edits is a stack. Raises EditError."""
    if isinstance(given, Edit):
        return given
    if isinstance(given, Sequence) and given and all(isinstance(edit, Edit) for edit in given):
        return given[0] if len(given) == 1 else stack("stack", given)
    raise EditError(
        f"{shortened(given)} was given where an edit is expected; load one with mmedit.load_edit, "
        "or make one with editor.edit(vlm, requests)"
    )


def as_decoding(given: Any) -> Decoding | None:
    """Return a decoding, or None for greedy answers. Raises ConfigError."""
    if given is None or isinstance(given, Decoding):
        return given
    raise ConfigError(
        f"decoding is {shortened(given)}; expected RowsDecoding([RowDecoding(temperature=0.7), "
        "...]), with a row for each example"
    )


ROWS = {"examples": as_examples}
DOORS: Doors = {
    "predict": ROWS,
    "answer": ROWS | {"max_new_tokens": as_count("max_new_tokens"), "decoding": as_decoding},
    "generate": ROWS | {"max_new_tokens": as_count("max_new_tokens")},
    "prompt_tokens": ROWS,
    "capture": ROWS | {"sites": as_sites},
    "observe": ROWS,
    "places": ROWS,
    "represent": ROWS,
    "sites": {"where": one_of("part of a VLM", STAGES)},
    "shape": {"site": as_site},
    "weight": {"site": as_site},
    "with_deltas": {"deltas": as_deltas},
    "with_edit": {"edit": as_edit},
    "ask": {"max_new_tokens": as_count("max_new_tokens")},
    "select": {"rows": as_rows},
}
"""Checks of the arguments of a VLM, by method."""
