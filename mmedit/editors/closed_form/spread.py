"""The base of methods that spread a change over several layers: MEMIT and AlphaEdit.

Value vectors are searched for at the output of the last layer. Every layer, the lowest first, adds
its share of what is still missing there, on the network with the layers below it written:

    R_j = (z - z_now) / (L - j + 1),   ΔW_j from the keys at layer j and R_j
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Self, TypeVar

from jaxtyping import Float
from torch import Tensor

from mmedit.cases import Example
from mmedit.deltas import LowRank
from mmedit.editors.closed_form.config import LocatedConfig
from mmedit.editors.closed_form.located import LocatedEditor
from mmedit.editors.closed_form.positions import spots
from mmedit.editors.fitting import Fitting
from mmedit.editors.shifts import Shift
from mmedit.errors import SiteError
from mmedit.vlm.edit import Change, DeltaChange
from mmedit.vlm.interface import VLM

Config = TypeVar("Config", bound=LocatedConfig)
DIRECT = 0.05
"""Largest relative difference between a value and the change of the hidden state by it."""


class SpreadEditor(LocatedEditor[Config]):
    """An editor that solves for all requests of one `apply` together, layer by layer.

    An edit costs one search for value vectors, and a forward per layer.
    """

    def fit(self, vlm: VLM, fitting: Fitting) -> Self:
        if fitting.cases:
            layers = self.config.layers_of(vlm, self.usual_layers)
            require_direct(vlm, layers[-1], fitting.cases[0].request)
        return super().fit(vlm, fitting)

    @abstractmethod
    def solved(
        self,
        vlm: VLM,
        site: str,
        keys: Float[Tensor, "*edits n in"],
        residuals: Float[Tensor, "*edits n out"],
    ) -> LowRank:
        """Return the delta of a site; with the axis in front, of separate edits."""

    def change(self, vlm: VLM, requests: Sequence[Example]) -> Change:
        return DeltaChange(self.written(vlm, requests, separate=False))

    def apply_each(self, vlm: VLM, requests: Sequence[Example]) -> VLM:
        if not requests:
            return vlm
        return vlm.with_deltas(self.written(vlm, requests, separate=True))

    def written(
        self, vlm: VLM, requests: Sequence[Example], *, separate: bool
    ) -> dict[str, LowRank]:
        """Return the deltas by site, of all requests together or of separate edits."""
        self.require_fitted_on(vlm)
        self.require_positions(vlm, requests)
        layers = self.config.layers_of(vlm, self.usual_layers)
        sites, last = [vlm.value_sites[layer] for layer in layers], layers[-1]
        keys = self.keys_at(vlm, requests, sites[:1], after=last + 1)[sites[0]]
        aim = keys.state + self.found_values(vlm, requests, last, keys.state)
        deltas: dict[str, LowRank] = {}
        for number, site in enumerate(sites):
            if deltas:
                edited = vlm.with_deltas(deltas)
                keys = self.keys_at(edited, requests, [site], after=last + 1)[site]
            residuals = (aim - keys.state) / (len(sites) - number)
            of_edits = (keys.mean, residuals)
            if not separate:
                of_edits = tuple(part.flatten(0, 1) for part in of_edits)
            deltas[site] = self.solved(vlm, site, *of_edits)
        return deltas


def require_direct(vlm: VLM, layer: int, request: Example) -> None:
    """Raise SiteError unless what the MLP of a layer gives is added to the hidden state as it is.

    A network that normalises it first (Gemma 3) would make something else of a value vector. Costs
    two forwards of one row.
    """
    site, after = vlm.value_sites[layer], layer + 1
    where = spots("last_prompt", vlm.places([request]))
    before = vlm.observe([request], [site], after=[after])
    value = where.read(before.y[site].float())
    shift = Shift(value, where.writes, vlm.shape(site)[1])
    shifted = vlm.with_deltas({site: shift}).observe([request], [], after=[after])
    change = where.read((shifted.states[after] - before.states[after]).float())
    if (change - value).norm() > DIRECT * value.norm():
        raise SiteError(
            f"the output of {site} is changed before it is added to the hidden state, so values "
            "cannot be spread over layers of this VLM; use rome, or another method"
        )
