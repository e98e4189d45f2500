"""Many edits in one batch: each row is answered under edits of its own.

    routed(vlm, [[blue], [blue, circle], []]).answer(examples, max_new_tokens=16)

The edits must be changes of weights. Edits that wrap a VLM (IKE, SERAC) answer in batches of their
own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from weakref import WeakKeyDictionary

import torch

from mmedit.deltas import Delta, Dense, LowRank, compose_all
from mmedit.edits.routed_deltas import route
from mmedit.errors import EditError
from mmedit.vlm.edit import Edit, moved
from mmedit.vlm.interface import VLM

_READY: WeakKeyDictionary[Edit, tuple[torch.device, Mapping[str, Delta]]] = WeakKeyDictionary()
"""The deltas of edits as they were last routed: composed, and on the device. They live as long as
their edit, so a server composes and moves an edit once.
"""


def is_routable(edits: Sequence[Edit]) -> bool:
    """Return whether all edits can share a batch with others: they are changes of weights."""
    return all(_is_routable(part) for edit in edits for part in edit.parts)


def routed(base: VLM, stacks: Sequence[Sequence[Edit]]) -> VLM:
    """Return the VLM that answers row i of a batch under the edits stacks[i]; under none as `base`.

    It answers each row as `base.with_edit(...)` does, up to rounding, and takes as many rows as
    there are stacks; rows under one edit share it. Its `edits` do not name the edits. Costs no
    forward. A long stack costs less as one edit (`mmedit.vlm.edit.stack`) than as a list. Raises
    EditError if an edit is not a change of weights, or belongs to another VLM.
    """
    for edit in {id(edit): edit for edits in stacks for edit in edits}.values():
        _require_routable(edit, base)
    numbers: dict[tuple[int, int], int] = {}
    ready: dict[int, Mapping[str, Delta]] = {}
    rows: list[frozenset[int]] = []
    for edits in stacks:
        row = set()
        for place, edit in enumerate(edits):
            key = id(edit), edits[:place].count(edit)  # one that stands twice is added twice
            row.add(number := numbers.setdefault(key, len(numbers)))
            ready[number] = _deltas_of(edit, base.device)
        rows.append(frozenset(row))
    acting = tuple(rows)
    if len(set(acting)) <= 1:
        deltas: Mapping[str, Delta] = reduce(compose_all, ready.values(), {})
    else:
        sites = dict.fromkeys(site for deltas in ready.values() for site in deltas)
        deltas = {
            site: route(
                {n: found[site] for n, found in ready.items() if site in found}, tuple(acting)
            )
            for site in sites
        }
    return base.with_deltas(deltas) if deltas else base


def _is_routable(part: Edit) -> bool:
    return part.change.deltas is not None and not part.change.is_separate


def _require_routable(edit: Edit, base: VLM) -> None:
    for part in edit.parts:
        if not _is_routable(part):
            raise EditError(
                f"the edit {part.name!r} by {part.label} is not one change of weights, so it "
                "cannot be routed: answer its rows in a batch of their own, under vlm.with_edit"
            )
        part.require_fits(base)


def _deltas_of(edit: Edit, device: torch.device) -> Mapping[str, Delta]:
    kept = _READY.get(edit)
    if kept is None or kept[0] != device:
        found = {site: moved(delta, device) for site, delta in (edit.deltas or {}).items()}
        kept = _READY[edit] = (device, {site: _kept_apart(delta) for site, delta in found.items()})
    return kept[1]


def _kept_apart(delta: Delta) -> Delta:
    """Return a low-rank delta with NaN or infinity as a dense one: beside others it would reach
    their rows, as nothing times NaN is NaN.
    """
    if isinstance(delta, LowRank) and not (delta.u.isfinite().all() and delta.v.isfinite().all()):
        return Dense(delta.weight())
    return delta
