"""ROME, rank-one model editing (Meng et al. 2022, Locating and Editing Factual Associations in
GPT), at any token of a VLM.

    ΔW = Λ uᵀ,   u = C⁻¹ k / ‖C⁻¹ k‖,   Λ = δ* / (k_c · u)

W ends the feed-forward block of one layer and is seen as a memory: its input at the fact's position
is the key k (its mean over contexts, k_c without one), and its output the value. C = E[k kᵀ] is the
second moment of its inputs. δ* is the change of the value that makes the model say the new answer
(`mmedit.editors.closed_form.values`).

Differences from the published code: contexts come from a fixed list instead of being sampled; C
counts text and image tokens by a rule, because nine tenths of a VLM's tokens are the image; the KL
term also asks the same question without image and about another image; positions come from the
tokens that the model reads, and not from lengths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from mmedit.cases import Example
from mmedit.deltas import Delta, LowRank, compose_all, together
from mmedit.editors.closed_form.config import LocatedConfig
from mmedit.editors.closed_form.located import LocatedEditor
from mmedit.editors.closed_form.solves import rome_delta
from mmedit.editors.config import EditorConfig
from mmedit.vlm.edit import Change, DeltaChange
from mmedit.vlm.interface import VLM


class ROMEConfig(LocatedConfig):
    """Settings of ROME. Defaults are the paper's for GPT-2 XL, where a VLM has an equivalent."""

    covariance: bool = True
    """Whether the direction is C⁻¹ k; false: k itself, and nothing to fit."""

    def idle(self) -> dict[str, str]:
        return (
            {} if self.covariance else dict.fromkeys(("tokens", "shrink"), "with covariance=false")
        )


class ROME(LocatedEditor[ROMEConfig]):
    """Rank-one editing. An edit costs one search for a value vector and one forward per layer; in
    `apply_each` all edits share them. Several requests of one `apply` are written one after the
    other, as ROME is defined for one fact.
    """

    method: ClassVar[str] = "rome"
    paper: ClassVar[str] = "Meng et al. 2022, Locating and Editing Factual Associations in GPT"
    config_class: ClassVar[type[EditorConfig]] = ROMEConfig
    usual_layers = (0.17,)  # GPT-J 5 of 28, Llama-3-8B 5 of 32

    @property
    def needs_fit(self) -> bool:
        return self.config.covariance

    def change(self, vlm: VLM, requests: Sequence[Example]) -> Change:
        deltas: Mapping[str, Delta] = {}
        for request in requests:
            edited = vlm.with_deltas(deltas) if deltas else vlm
            deltas = compose_all(deltas, together(self._each(edited, [request])))
        return DeltaChange(deltas)

    def apply_each(self, vlm: VLM, requests: Sequence[Example]) -> VLM:
        return vlm.with_deltas(self._each(vlm, requests)) if requests else vlm

    def _each(self, vlm: VLM, requests: Sequence[Example]) -> dict[str, LowRank]:
        """Return the separate edits of rank 1, layer after layer: each sees those below it."""
        if self.needs_fit:
            self.require_fitted_on(vlm)
        self.require_positions(vlm, requests)
        config, deltas = self.config, dict[str, LowRank]()
        for layer in config.layers_of(vlm, self.usual_layers):
            site = vlm.value_sites[layer]
            edited = vlm.with_deltas(deltas) if deltas else vlm
            keys = self.keys_at(edited, requests, [site], after=layer + 1)[site]
            shift = self.found_values(edited, requests, layer, keys.output)
            factor = self.learnt.factor(site, vlm.device) if config.covariance else None
            deltas[site] = rome_delta(keys.mean, keys.clean, shift, factor)
        return deltas
