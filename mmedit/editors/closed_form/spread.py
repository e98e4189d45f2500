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
from mmedit.editors.closed_form.direct import require_direct
from mmedit.editors.closed_form.located import LocatedEditor
from mmedit.editors.fitting import Fitting
from mmedit.vlm.edit import Change, DeltaChange
from mmedit.vlm.interface import VLM

Config = TypeVar("Config", bound=LocatedConfig)


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
