"""AlphaEdit (Fang et al. 2025, AlphaEdit: Null-Space Constrained Knowledge Editing for Language
Models), at any token of a VLM.

    ΔW_j = R_j K̂ᵀ (K̂ K̂ᵀ + Ŝ Ŝᵀ + λ₂ I)⁻¹,   K̂ = P K

MEMIT with all changes inside the null space of C, the second moment of a layer's inputs: P = I -
U₁U₁ᵀ takes away the directions U₁ in which usual inputs vary. Ŝ are the keys of all edits made
before, projected: they travel with the edited VLM, so a sequence protects what it has written.

Differences from the published code: U₁ are the fewest directions that hold a share 1 - η of C's
trace, because a threshold for singular values means something else on every network and may keep
nothing or everything (`threshold` is the published rule); the rest as in `mmedit.methods.memit`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from mmedit.cases import Example
from mmedit.deltas import LowRank
from mmedit.editors.closed_form.config import LocatedConfig
from mmedit.editors.closed_form.moments import SecondMoments
from mmedit.editors.closed_form.second_moment import NullSpace
from mmedit.editors.closed_form.solves import alphaedit_delta
from mmedit.editors.closed_form.spread import SpreadEditor
from mmedit.editors.closed_form.values import BlockValueConfig
from mmedit.editors.config import EditorConfig
from mmedit.errors import EditError, EditorError
from mmedit.vlm.edit import Change, DeltaChange, kept_of
from mmedit.vlm.interface import VLM


class AlphaEditValueConfig(BlockValueConfig):
    """Settings of the search for value vectors."""

    lr: float = Field(default=0.1, gt=0)
    """Learning rate. AlphaEdit: 0.1."""


class AlphaEditConfig(LocatedConfig):
    """Settings of AlphaEdit. Defaults are the paper's for Llama-3-8B."""

    after_fit: ClassVar[frozenset[str]] = LocatedConfig.after_fit | {"l2"}
    eta: float = Field(default=0.01, gt=0, lt=1)
    """Share η of the trace of C that edits may touch."""
    threshold: float | None = Field(default=None, gt=0)
    """Largest singular value of C that counts as 0, in place of `eta`. AlphaEdit: 0.02."""
    l2: float = Field(default=10.0, gt=0)
    """λ₂, the weight of ‖ΔW‖². AlphaEdit: 10."""
    value: AlphaEditValueConfig = AlphaEditValueConfig()  # pyright: ignore[reportIncompatibleVariableOverride]
    """Search for the value vectors."""

    def idle(self) -> dict[str, str]:
        without = {"shrink": "in alphaedit, whose null space is of the second moment as it is"}
        return without if self.threshold is None else without | {"eta": "with a threshold"}


class AlphaEdit(SpreadEditor[AlphaEditConfig]):
    """Null-space constrained editing. All requests of one `apply` are solved for together, beside
    the keys of all edits before. An edit costs one more forward, which reads the keys that later
    edits must leave.
    """

    method: ClassVar[str] = "alphaedit"
    title: ClassVar[str] = "AlphaEdit"
    paper: ClassVar[str] = (
        "Fang et al. 2025, AlphaEdit: Null-Space Constrained Knowledge Editing for Language Models"
    )
    config_class: ClassVar[type[EditorConfig]] = AlphaEditConfig
    usual_layers = (0.125, 0.157, 0.188, 0.219, 0.25)  # Llama-3-8B 4 to 8 of 32
    is_square = False

    def prepared(self, moments: SecondMoments, site: str) -> Float[Tensor, "in kept"]:
        tokens = self.config.tokens
        if (found := moments.count(tokens)) < (width := len(moments.text)):
            raise EditorError(
                f"the training cases have {found:,} tokens for {site}, whose inputs are {width:,} "
                "wide, so its null space would mean nothing; expected more tokens than that; give "
                "more training cases (--train-limit), or edit with memit"
            )
        second_moment = moments.mean(tokens)
        if self.config.threshold is not None:
            return NullSpace.of_threshold(second_moment, self.config.threshold).protected
        return NullSpace.of_share(second_moment, self.config.eta).protected

    def change(self, vlm: VLM, requests: Sequence[Example]) -> Change:
        deltas = self.written(vlm, requests, separate=False)
        last = self.config.layers_of(vlm, self.usual_layers)[-1] + 1
        found = self.keys_at(vlm.with_deltas(deltas), requests, list(deltas), after=last)
        kept = {}
        for site, at_site in found.items():
            keys = at_site.mean.flatten(0, 1)
            keys = keys[keys.any(-1)]  # without those of shorter answers
            kept[_name(site)] = self._null_space(site, vlm).project(keys).float()
        return DeltaChange(deltas, kept=kept)

    def solved(
        self,
        vlm: VLM,
        site: str,
        keys: Float[Tensor, "*edits n in"],
        residuals: Float[Tensor, "*edits n out"],
    ) -> LowRank:
        past = kept_of(vlm.edits, _name(site))
        for rows in past:
            if rows.ndim != 2 or rows.shape[1] != keys.shape[-1]:
                raise EditError(
                    f"an edit of this VLM keeps a tensor of shape {list(rows.shape)} for {site}; "
                    f"expected rows of {keys.shape[-1]:,} inputs; take that edit out, or make it "
                    "anew"
                )
        space = self._null_space(site, vlm)
        before = keys.new_zeros(0, keys.shape[-1])
        if past:
            # Another AlphaEdit editor may have projected them otherwise; once more changes nothing.
            before = space.project(torch.cat([rows.to(keys) for rows in past]))
        return alphaedit_delta(keys, residuals, space, before, self.config.l2)

    def _null_space(self, site: str, vlm: VLM) -> NullSpace:
        return NullSpace(self.learnt.matrices[site].to(vlm.device))


def _name(site: str) -> str:
    """Return the name of a site's keys in what an edit keeps for later ones."""
    return f"alphaedit.{site}"
