"""MEMIT (Meng et al. 2023, Mass-Editing Memory in a Transformer), at any token of a VLM.

    ΔW_j = R_j Kᵀ (λC + K Kᵀ)⁻¹,   R_j = (Z - Z_now) / (L - j + 1)

for the layers j, the lowest first, on the network with the layers below written. The columns of K
are the keys of all requests, Z the hidden states that the last layer should give, and C the second
moment of the layer's inputs. The delta has one rank per key, and its solve is as large as the
number of keys.

Differences from the published code: λ is `weight` times the width of the keys, so that it means the
same on every network (the published 15000 is 0.92 times GPT-J's 16384, and 1.05 times that of
Llama-3-8B); contexts, tokens of C, KL term and positions as in `mmedit.methods.rome`.
"""

from __future__ import annotations

from typing import ClassVar

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from mmedit.deltas import LowRank
from mmedit.editors.closed_form.config import LocatedConfig
from mmedit.editors.closed_form.solves import memit_delta
from mmedit.editors.closed_form.spread import SpreadEditor
from mmedit.editors.closed_form.values import BlockValueConfig
from mmedit.editors.config import EditorConfig
from mmedit.vlm.interface import VLM


class MEMITConfig(LocatedConfig):
    """Settings of MEMIT. Defaults are the paper's for GPT-J."""

    after_fit: ClassVar[frozenset[str]] = LocatedConfig.after_fit | {"weight"}
    weight: float = Field(default=1.0, gt=0)
    """λ, in units of the width of the keys: how much the usual inputs count against the requests.
    MEMIT: 0.92 for GPT-J.
    """
    value: BlockValueConfig = BlockValueConfig()  # pyright: ignore[reportIncompatibleVariableOverride]
    """Search for the value vectors."""


class MEMIT(SpreadEditor[MEMITConfig]):
    """Mass editing. All requests of one `apply` are solved for together."""

    method: ClassVar[str] = "memit"
    paper: ClassVar[str] = "Meng et al. 2023, Mass-Editing Memory in a Transformer"
    config_class: ClassVar[type[EditorConfig]] = MEMITConfig
    usual_layers = (0.125, 0.157, 0.188, 0.219, 0.25)  # Llama-3-8B 4 to 8 of 32

    def solved(
        self,
        vlm: VLM,
        site: str,
        keys: Float[Tensor, "*edits n in"],
        residuals: Float[Tensor, "*edits n out"],
    ) -> LowRank:
        weight = self.config.weight * keys.shape[-1]
        return memit_delta(keys, residuals, self.learnt.factor(site, vlm.device), weight)
