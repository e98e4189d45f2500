"""UltraEdit (Gu et al. 2026, UltraEdit: Training-, Subject-, and Memory-Free Lifelong Editing in
Language Models): an edit from one backward pass, in closed form.

    ΔWᵀ = Hᵀ (H Hᵀ + I)⁻¹ V,   v_t = -lr ‖ĥ_t‖² ĝ_t

h_t is the input of a Linear at a token that predicts the answer, g_t the gradient of the answer's
NLL with respect to its output, and ĥ, ĝ are both after normalisation. The solve is as large as the
number of answer tokens.

Differences from the published code: the statistics of the normalisation come from `fit` and stay,
because a single edit that is normalised by itself is divided by its own spread; they are exact; a
gradient is that of the sum of each request's mean NLL, so it does not depend on the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Bool, Float
from pydantic import Field, field_validator
from torch import Tensor

from mmedit.adapters.base import Stage
from mmedit.cases import Example
from mmedit.chunks import chunks
from mmedit.deltas import LowRank
from mmedit.editors.base import Editor
from mmedit.editors.closed_form.normaliser import Normaliser
from mmedit.editors.closed_form.positions import spots
from mmedit.editors.closed_form.solves import ultraedit_delta
from mmedit.editors.config import EditorConfig, SitesConfig
from mmedit.editors.fitting import Fitting
from mmedit.editors.saved import Origin, origin_of
from mmedit.errors import DataError, EditorError, SiteError
from mmedit.vlm.edit import Change, DeltaChange
from mmedit.vlm.interface import VLM

BATCH = 16
"""Training cases in one capture of `fit`."""
PARTS = ("count", "mean", "squares")


class UltraEditConfig(SitesConfig):
    """Settings of UltraEdit. It edits the language model."""

    after_fit: ClassVar[frozenset[str]] = frozenset({"lr"})
    lr: float = Field(default=1e-6, gt=0)
    """Length of the step. UltraEdit: 1e-6."""
    share: bool = True
    """Whether weights of one shape share their statistics, as published; false: each its own."""

    @field_validator("where")
    @classmethod
    def _in_the_language_model(cls, where: Stage) -> Stage:
        if where != "language":
            raise ValueError(f"UltraEdit edits the language model; found {where}")
        return where


class UltraEdit(Editor[UltraEditConfig]):
    """Editing from one backward. `fit` and an edit cost one capture, and nothing is trained."""

    method: ClassVar[str] = "ultraedit"
    title: ClassVar[str] = "UltraEdit"
    paper: ClassVar[str] = (
        "Gu et al. 2026, UltraEdit: Training-, Subject-, and Memory-Free Lifelong Editing in "
        "Language Models"
    )
    config_class: ClassVar[type[EditorConfig]] = UltraEditConfig

    @property
    def needs_fit(self) -> bool:
        return True

    def require_learnt(self, vlm: VLM) -> None:
        """Raise EditorError unless the statistics are those of its weights."""
        for site in self.origin.sites if self.origin else ():
            out, width = vlm.shape(site)
            found = (self.learnt or {}).get(self._name((out, width), site))
            if found is None or len(found.mean) != width + out:
                there = "none" if found is None else f"{len(found.mean):,} units"
                raise EditorError(
                    f"the statistics of this editor for {site} are {there}; expected "
                    f"{width + out:,}, its {width:,} inputs and {out:,} outputs; fit the editor "
                    "anew"
                )

    def fit(self, vlm: VLM, fitting: Fitting) -> Self:
        if not fitting.cases:
            raise DataError(
                "UltraEdit needs training cases for the statistics of its normalisation; none were "
                "given"
            )
        sites = self.config.sites_of(vlm)
        requests = [case.request for case in fitting.cases]
        vlm.require_reach(requests, sites)
        progress = fitting.progress
        found: dict[str, Normaliser] = {}
        done = 0
        for asked in chunks(requests, BATCH):
            answered = answer_tokens(vlm, asked, sites)
            for site in sites:
                h, g, real = answered[site]
                z = torch.cat([h, g], dim=-1)[real]
                name = self._name(vlm.shape(site), site)
                before = found.get(name) or Normaliser.empty(z.shape[-1], z.device)
                found[name] = before.with_rows(z)
            done += len(asked)
            progress("statistics", done, len(requests), "")
        return self.with_learnt(found, origin_of(vlm, sites, fitting.cases, fitting.seed))

    def change(self, vlm: VLM, requests: Sequence[Example]) -> Change:
        return DeltaChange(self._deltas(vlm, requests, separate=False))

    def apply_each(self, vlm: VLM, requests: Sequence[Example]) -> VLM:
        if not requests:
            return vlm
        return vlm.with_deltas(self._deltas(vlm, requests, separate=True))

    def _deltas(
        self, vlm: VLM, requests: Sequence[Example], *, separate: bool
    ) -> dict[str, LowRank]:
        """Return the deltas by site. Weights that share their statistics are solved for in one
        batch.
        """
        self.require_fitted_on(vlm)
        assert self.origin is not None
        answered = answer_tokens(vlm, requests, self.origin.sites)
        alike: dict[str, list[str]] = {}
        for site in answered:
            alike.setdefault(self._name(vlm.shape(site), site), []).append(site)
        deltas: dict[str, LowRank] = {}
        for name, sites in alike.items():
            tokens = [answered[site] if separate else _joined(answered[site]) for site in sites]
            h, g, real = (torch.cat(part) for part in zip(*tokens, strict=True))
            statistics = self.learnt[name].to(h.device)
            solved = ultraedit_delta(h, g, statistics, self.config.lr, real)
            for number, site in enumerate(sites):
                rows = len(requests) if separate else 1
                u, v = (f[number * rows :][:rows] for f in (solved.u, solved.v))
                deltas[site] = LowRank(u, v) if separate else LowRank(u[0], v[0])
        return deltas

    def _name(self, shape: tuple[int, int], site: str) -> str:
        """Return the name of the statistics of a site."""
        return f"{shape[1]}-{shape[0]}" if self.config.share else site

    def state(self) -> dict[str, Tensor]:
        return {
            f"{name}/{part}": torch.as_tensor(getattr(statistics, part)).cpu()
            for name, statistics in (self.learnt or {}).items()
            for part in PARTS
        }

    def load_state(
        self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any], origin: Origin | None
    ) -> Self:
        names = sorted({name.rpartition("/")[0] for name in tensors})
        found = {}
        for name in names:
            count, mean, squares = (tensors[f"{name}/{part}"] for part in PARTS)
            sound = mean.dtype == squares.dtype == torch.float64 and mean.shape == squares.shape
            if count.ndim or mean.ndim != 1 or not sound or len(tensors) != 3 * len(names):
                raise EditorError(
                    f"the tensors of {name} are not statistics of UltraEdit; expected a count, and "
                    "mean and squares of one length in float64; fit the editor anew"
                )
            found[name] = Normaliser(int(count), mean, squares)
        if origin is not None and not found:
            raise EditorError(
                "the editor is fitted and has no statistics; expected those of its sites; fit it "
                "anew"
            )
        return self.with_learnt(found or None, origin)


Answered = tuple[
    Float[Tensor, "edits tokens in"],
    Float[Tensor, "edits tokens out"],
    Bool[Tensor, "edits tokens"],
]
"""Inputs and gradients at the tokens that predict the answer, and which of them are no padding."""


def _joined(answered: Answered) -> Answered:
    """Return the tokens of all requests as those of one edit."""
    h, g, real = answered
    return h[real][None], g[real][None], real[real][None]


def answer_tokens(
    vlm: VLM, requests: Sequence[Example], sites: Sequence[str]
) -> dict[str, Answered]:
    """Return inputs and gradients of the sites at the tokens that predict the answers. Costs one
    capture.
    """
    captured, places = vlm.capture(requests, sites), vlm.places(requests)
    for site in sites:
        if captured.x[site].shape[:2] != places.is_real.shape:
            raise SiteError(
                f"{site} is not in the language model, so no answer token passes through it; name "
                "sites of the language model"
            )
    at = spots("answer", places)
    return {
        site: (at.read(captured.x[site].float()), at.read(captured.delta[site].float()), at.real)
        for site in sites
    }
