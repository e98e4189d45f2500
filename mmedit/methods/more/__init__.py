"""M-ORE (arXiv 2605.20273, ICML 2026): online editing in a fixed low-rank basis, in which
directions that were used are damped. With `shared_rank` it is ScopeEdit (arXiv 2607.01978).

    Δ(x) = s · B A x,   B ← B - η ∂L/∂B P,   P ← P - (P z)(P z)ᵀ / (λ + zᵀ P z)

A is random, orthonormal and fixed, B = 0 and P = I at the start, L is the answer's NLL, and z the
mean of A x over the tokens that predict the answer. An edit is a few such steps, each in the
`top_k` layers with the largest gradients. P = (I + Σ z zᵀ / λ)⁻¹ over all z so far, so an edit
costs the same however many were made before.

A sequence is in the edits of the VLM: each has its change of s · B A as a low-rank delta, and its z
as rows that later edits read. Edits with one A add up in B.

ScopeEdit has further rows of A, which text and image share. They are written as far as a gate
(`mmedit.methods.more.steps.gate`) says that text and image agree there; questions pass no gate.

Differences from the published code:

- z is read where the answer is predicted; there at the answer's own tokens, which miss the first
  that predicts. `keys: published` does the same.
- P never sees a locality probe of the edit that is tested. There every edit is followed by the
  locality questions of its own test record, which cannot be repeated here: an editor is given
  requests alone. `locality_keys` are questions of training cases.
- B and P are in float32 and no dropout acts. No edits of training cases come before the first one.
- The setting for BLIP-2 with a layer norm on A x is left out: it is no change of a weight.
- Sites with inputs of one width share A.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor

from mmedit.cases import Example
from mmedit.deltas import LowRank
from mmedit.editors.base import Editor
from mmedit.editors.config import EditorConfig
from mmedit.editors.fitting import Fitting
from mmedit.editors.saved import Origin, origin_of
from mmedit.errors import DataError
from mmedit.methods.more.config import MOREConfig
from mmedit.methods.more.prepared import Prepared, data_bases, locality_keys
from mmedit.methods.more.readings import readings
from mmedit.methods.more.steps import orthonormal, require_rank
from mmedit.methods.more.writing import Part, Writing, step
from mmedit.vlm.edit import Change, DeltaChange, kept_of
from mmedit.vlm.interface import VLM


class MORE(Editor[MOREConfig]):
    """M-ORE. `apply` and `apply_each` cost `steps` captures. Several requests of one `apply` are
    written one after the other, as in a sequence. `fit` costs a capture of every locality question,
    and with `basis=data` the statistics of the training questions
    (`mmedit.editors.closed_form.statistics`).

    Separate edits have a P each: edits · sites · rank² numbers.
    """

    method: ClassVar[str] = "more"
    title: ClassVar[str] = "M-ORE"
    paper: ClassVar[str] = "M-ORE 2026 (arXiv 2605.20273); ScopeEdit 2026 (arXiv 2607.01978)"
    config_class: ClassVar[type[EditorConfig]] = MOREConfig

    @property
    def needs_fit(self) -> bool:
        return self.config.basis == "data" or self.config.locality_keys > 0

    def require_fits(self, vlm: VLM) -> None:
        super().require_fits(vlm)
        for site in self.edited_sites(vlm):
            require_rank(self.config.rows, vlm.shape(site)[1])

    def fit(self, vlm: VLM, fitting: Fitting) -> Self:
        if not self.needs_fit:
            return self
        if not fitting.cases:
            raise DataError(
                "M-ORE with basis=data or locality_keys needs training cases; none were given"
            )
        self.require_fits(vlm)
        config, sites = self.config, self.config.sites_of(vlm)
        bases = data_bases(vlm, sites, fitting, config.rows) if config.basis == "data" else {}
        keys = locality_keys(vlm, fitting, bases or self._drawn(vlm, sites), config)
        origin = origin_of(vlm, sites, fitting.cases, fitting.seed)
        return self.with_learnt(Prepared(bases=bases, keys=keys), origin)

    def change(self, vlm: VLM, requests: Sequence[Example]) -> Change:
        written = self._begun(vlm, edits=1)
        for request in requests:
            written = self._written(vlm, [request], written)
        u = {site: one.delta(self.config.scale).u[0] for site, one in written.items()}
        kept = {self._name("private", site): one.private.rows for site, one in written.items()}
        if self.config.shared_rank:
            kept |= {self._name("shared", site): one.shared.rows for site, one in written.items()}
        return DeltaChange({site: LowRank(u[site], written[site].basis) for site in u}, kept=kept)

    def apply_each(self, vlm: VLM, requests: Sequence[Example]) -> VLM:
        if not requests:
            return vlm
        written = self._written(vlm, requests, self._begun(vlm, edits=len(requests)))
        scale = self.config.scale
        return vlm.with_deltas({site: writing.delta(scale) for site, writing in written.items()})

    @torch.no_grad()
    def _written(
        self, vlm: VLM, requests: Sequence[Example], written: dict[str, Writing]
    ) -> dict[str, Writing]:
        """Return what is written after all steps of an edit for each request."""
        config = self.config
        bases = {site: writing.basis for site, writing in written.items()}
        for _ in range(config.steps):
            deltas = {site: writing.delta(config.scale) for site, writing in written.items()}
            edited = vlm.with_deltas(deltas)
            read = readings(edited, requests, bases, keys=config.keys, scale=config.scale)
            written = step(written, read, config)
        return written

    def _begun(self, vlm: VLM, edits: int) -> dict[str, Writing]:
        """Return edits before their first step, after the edits that the VLM holds."""
        if self.needs_fit:
            self.require_fitted_on(vlm)
        config, begun = self.config, {}
        before = self.learnt.keys if self.learnt else {}
        for site, basis in self._bases(vlm).items():
            out = vlm.shape(site)[0]
            private = before.get(site, basis.new_zeros(0, config.rank)).to(basis)
            private = self._with_kept(private, vlm, "private", site)
            shared = basis.new_zeros(0, config.shared_rank)
            shared = self._with_kept(shared, vlm, "shared", site)
            begun[site] = Writing(
                basis,
                Part.begun(out, private, config.damping, edits),
                Part.begun(out, shared, config.shared_damping, edits),
            )
        return begun

    def _with_kept(
        self, keys: Float[Tensor, "before rank"], vlm: VLM, part: str, site: str
    ) -> Float[Tensor, "keys rank"]:
        """Return keys, and behind them those of the edits that the VLM holds."""
        kept = kept_of(vlm.edits, self._name(part, site))
        return torch.cat([keys, *(rows.to(keys) for rows in kept)])

    def _name(self, part: str, site: str) -> str:
        """Return the name of a site's keys in what an edit keeps for later ones. It names A, as the
        keys of another A mean nothing.
        """
        config = self.config
        data = self.origin.dataset if self.origin and config.basis == "data" else None
        basis = f"{config.basis}.{data or config.seed}"
        return f"more.{basis}.{config.rank}.{config.shared_rank}.{part}.{site}"

    def _bases(self, vlm: VLM) -> dict[str, Float[Tensor, "rank _"]]:
        """Return A of every site."""
        if self.config.basis == "orthogonal":
            return self._drawn(vlm, self.edited_sites(vlm))
        return {site: basis.to(vlm.device) for site, basis in self.learnt.bases.items()}

    def _drawn(self, vlm: VLM, sites: Sequence[str]) -> dict[str, Float[Tensor, "rank _"]]:
        """Return the random A of every site."""
        rows, seed = self.config.rows, self.config.seed
        drawn = {site: orthonormal(rows, vlm.shape(site)[1], seed) for site in sites}
        return {site: basis.to(vlm.device) for site, basis in drawn.items()}

    def state(self) -> dict[str, Tensor]:
        return self.learnt.tensors() if self.learnt else {}

    def load_state(
        self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any], origin: Origin | None
    ) -> Self:
        if origin is None:
            return self.with_learnt(None, None)
        return self.with_learnt(Prepared.of_tensors(tensors, origin.sites, self.config), origin)
