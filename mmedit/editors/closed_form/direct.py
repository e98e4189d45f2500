"""Whether a layer adds what its feed-forward block gives to the hidden state as it is.

Where it does, a value that is added to the block's output may be added to the layer's output, and
the layer itself need not run. A network that normalises the block's output first (Gemma 3) would
make something else of it.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

from mmedit.cases import Example
from mmedit.editors.closed_form.positions import spots
from mmedit.editors.shifts import Shift
from mmedit.errors import SiteError
from mmedit.vlm.frozen import Frozen
from mmedit.vlm.interface import VLM

DIRECT = 0.05
"""Largest relative difference between a value and the change of the hidden state by it."""
_KNOWN: WeakKeyDictionary[Frozen, dict[int, bool]] = WeakKeyDictionary()
"""The findings by network and layer."""


def is_direct(vlm: VLM, layer: int, request: Example) -> bool:
    """Tell whether a layer adds what its block gives as it is. The first time it costs two forwards
    of the request.
    """
    known = _KNOWN.setdefault(vlm.frozen, {})
    if layer not in known:
        known[layer] = _adds(vlm.base, layer, request)
    return known[layer]


def require_direct(vlm: VLM, layer: int, request: Example) -> None:
    """Raise SiteError unless `is_direct`."""
    if not is_direct(vlm, layer, request):
        raise SiteError(
            f"the output of {vlm.value_sites[layer]} is changed before it is added to the hidden "
            "state, so values cannot be spread over layers of this VLM; use rome, or another method"
        )


def _adds(vlm: VLM, layer: int, request: Example) -> bool:
    """Return whether a value at the block's output changes the layer's output by that value."""
    site, after = vlm.value_sites[layer], layer + 1
    where = spots("last_prompt", vlm.places([request]))
    before = vlm.observe([request], [site], after=[after])
    value = where.read(before.y[site].float())
    shift = Shift(value, where.writes, vlm.shape(site)[1])
    shifted = vlm.with_deltas({site: shift}).observe([request], [], after=[after])
    change = where.read((shifted.states[after] - before.states[after]).float())
    return bool((change - value).norm() <= DIRECT * value.norm())
