"""FT: gradient descent on the request alone.

W' = argmin_W Σ_j -log p(y_j | ...), by a few steps of Adam(W), optionally |W' - W|_∞ <= ε.

FT-L (`prompt_last`; Meng et al. 2022, baseline of ROME): every target token is scored at the
prompt's last position. FT-M (`target_new`; Zhang et al. 2024): the ordinary autoregressive loss of
the target. Which weights move is `where`/`sites`: MMEdit's "last layer" and "vision block" rows are
language and bridge.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from mmedit.cases import Example
from mmedit.deltas import Dense
from mmedit.editors.base import Editor, EditorConfig, SitesConfig
from mmedit.metrics.multiclass_log_probs import answer_nll
from mmedit.vlm.interface import VLM, Predictions


class FTConfig(SitesConfig):
    """Defaults are those of VLKEB's fine-tuning of BLIP-2 (15 steps of AdamW at 2e-4)."""

    objective: Literal["prompt_last", "target_new"] = "target_new"
    steps: int = Field(default=15, ge=1)
    lr: float = Field(default=2e-4, gt=0)
    optimizer: Literal["adam", "adamw"] = "adamw"
    weight_decay: float = Field(default=1e-2, ge=0)
    norm_constraint: float | None = Field(default=None, gt=0)
    """ε: no weight moves further than this from where it was."""


class FT(Editor[FTConfig]):
    """Fine-tuning. `apply` and `apply_each` cost `steps` forwards and backwards; the edit is a
    Dense delta per site.
    """

    method: ClassVar[str] = "ft"
    config_class: ClassVar[type[EditorConfig]] = FTConfig

    def apply(self, vlm: VLM, requests: Sequence[Example]) -> VLM:
        return self._descend(vlm, requests, edits=()) if requests else vlm

    def apply_each(self, vlm: VLM, requests: Sequence[Example]) -> VLM:
        return self._descend(vlm, requests, edits=(len(requests),)) if requests else vlm

    def _descend(self, vlm: VLM, requests: Sequence[Example], edits: tuple[int, ...]) -> VLM:
        sites = self.config.sites_of(vlm)
        vlm.require_reach(requests, sites)
        start = [vlm.weight(site) for site in sites]
        changes = [
            torch.zeros(*edits, *vlm.shape(site), device=vlm.device, requires_grad=True)
            for site in sites
        ]
        make = torch.optim.AdamW if self.config.optimizer == "adamw" else torch.optim.Adam
        optimizer = make(changes, lr=self.config.lr, weight_decay=0.0)
        for _ in range(self.config.steps):
            deltas = {site: Dense(change) for site, change in zip(sites, changes, strict=True)}
            with torch.enable_grad():
                losses = self._loss(vlm.with_deltas(deltas).predict(requests))
                # Separate edits do not share a weight: the sum gives each row the gradient of its
                # own loss.
                loss = losses.sum() if edits else losses.mean()
                gradients = torch.autograd.grad(loss, changes)
            self._step(optimizer, changes, start, gradients)
        return vlm.with_deltas({s: Dense(c.detach()) for s, c in zip(sites, changes, strict=True)})

    def _loss(self, predictions: Predictions) -> Float[Tensor, " batch"]:
        if self.config.objective == "target_new":
            return answer_nll(predictions.logits, predictions.target, predictions.is_answer)
        return prompt_last_nll(predictions)

    @torch.no_grad()
    def _step(
        self,
        optimizer: torch.optim.Optimizer,
        changes: Sequence[Tensor],
        start: Sequence[Tensor],
        gradients: Sequence[Tensor],
    ) -> None:
        """One step. The optimiser holds the change alone; weight decay pulls at the whole weight,
        so it is added here.
        """
        decay = self.config.weight_decay
        for change, weight, gradient in zip(changes, start, gradients, strict=True):
            change.grad = gradient
            if decay and self.config.optimizer == "adam":
                change.grad = gradient + decay * (weight + change)
            elif decay:
                change -= self.config.lr * decay * (weight + change)
        optimizer.step()
        if self.config.norm_constraint is not None:
            for change in changes:
                change.clamp_(-self.config.norm_constraint, self.config.norm_constraint)


def prompt_last_nll(predictions: Predictions) -> Float[Tensor, " batch"]:
    """Mean over a row's target tokens of -log p(token) at the prompt's last position, float32."""
    first = predictions.is_answer.int().argmax(1)
    rows = torch.arange(len(first), device=first.device)
    log_probs = F.log_softmax(predictions.logits[rows, first].float(), dim=-1)
    nll = -log_probs.gather(1, predictions.target) * predictions.is_answer
    return nll.sum(1) / predictions.is_answer.sum(1)
