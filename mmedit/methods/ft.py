"""FT: fine-tune a few weights on the request alone.

    W' = W + ΔW,   ΔW ≈ argmin Σ_j -log p(y_j | prompt, image),   optionally |ΔW|_∞ <= ε

A few steps of Adam or AdamW approximate the minimum. Two objectives:

FT-M (`target_new`; Zhang et al. 2024, A Comprehensive Study of Knowledge Editing for Large Language
Models) is the ordinary autoregressive loss of the target. FT-L (`prompt_last`; baseline of Meng et
al. 2022, Locating and Editing Factual Associations in GPT) predicts every target token at the last
position of the prompt.

`where` and `sites` choose the weights. MMEdit's row "last layer" is `where=language`, its row
"vision block" is `where=bridge`.
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
from mmedit.editors.base import Editor
from mmedit.editors.config import EditorConfig, SitesConfig
from mmedit.metrics.multiclass_log_probs import answer_nll
from mmedit.vlm.edit import Change, DeltaChange
from mmedit.vlm.interface import VLM
from mmedit.vlm.outputs import Predictions


class FTConfig(SitesConfig):
    """Settings of FT. Defaults are those of VLKEB's fine-tuning of BLIP-2."""

    objective: Literal["prompt_last", "target_new"] = "target_new"
    """The loss: target_new (FT-M), or prompt_last (FT-L)."""
    steps: int = Field(default=15, ge=1)
    """Optimiser steps per edit. VLKEB: 15."""
    lr: float = Field(default=2e-4, gt=0)
    """Learning rate. VLKEB: 2e-4."""
    optimizer: Literal["adam", "adamw"] = "adamw"
    """The optimiser. VLKEB: adamw."""
    weight_decay: float = Field(default=1e-2, ge=0)
    """Weight decay, on the whole weight W + ΔW. VLKEB: 1e-2 (AdamW's default)."""
    norm_constraint: float | None = Field(default=None, gt=0)
    """ε: no entry of a weight moves further than this; null: no limit. VLKEB: null."""


class FT(Editor[FTConfig]):
    """Fine-tuning. `apply` and `apply_each` cost `steps` forwards and backwards; the edit is one
    Dense delta per site.
    """

    method: ClassVar[str] = "ft"
    paper: ClassVar[str] = (
        "Zhang et al. 2024, A Comprehensive Study of Knowledge Editing for Large Language Models"
    )
    config_class: ClassVar[type[EditorConfig]] = FTConfig

    def change(self, vlm: VLM, requests: Sequence[Example]) -> Change:
        return DeltaChange(self._descend(vlm, requests, edits=()))

    def apply_each(self, vlm: VLM, requests: Sequence[Example]) -> VLM:
        if not requests:
            return vlm
        return vlm.with_deltas(self._descend(vlm, requests, edits=(len(requests),)))

    def _descend(
        self, vlm: VLM, requests: Sequence[Example], edits: tuple[int, ...]
    ) -> dict[str, Dense]:
        """Return the changes of the weights, with an edits axis of that length or without one."""
        sites = self.config.sites_of(vlm)
        vlm.require_reach(requests, sites)
        start = [vlm.weight(site) for site in sites]
        changes = [
            torch.zeros(*edits, *vlm.shape(site), device=vlm.device, requires_grad=True)
            for site in sites
        ]
        make = torch.optim.AdamW if self.config.optimizer == "adamw" else torch.optim.Adam
        optimizer = make(changes, lr=self.config.lr, weight_decay=0.0, fused=True)
        answers_only = [True] * len(requests)
        for _ in range(self.config.steps):
            deltas = {site: Dense(change) for site, change in zip(sites, changes, strict=True)}
            with torch.enable_grad():
                edited = vlm.with_deltas(deltas)
                losses = self._loss(edited.predict(requests, answers_only=answers_only))
                # Separate edits share no weight: with the sum, each gets the gradient of its own
                # row's loss.
                loss = losses.sum() if edits else losses.mean()
                gradients = torch.autograd.grad(loss, changes)
            self._step(optimizer, changes, start, gradients)
        return {site: Dense(c.detach()) for site, c in zip(sites, changes, strict=True)}

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
        """Do one step. The optimiser knows the change alone, but weight decay acts on the whole
        weight, so it is added here.
        """
        decay = self.config.weight_decay
        for change, weight, gradient in zip(changes, start, gradients, strict=True):
            # The fused optimiser takes for granted that both lie in memory in the same order.
            change.grad = gradient.contiguous()
            if decay and self.config.optimizer == "adam":
                change.grad.add_(weight + change, alpha=decay)
            elif decay:
                change.sub_(weight + change, alpha=self.config.lr * decay)
        optimizer.step()
        if self.config.norm_constraint is not None:
            for change in changes:
                change.clamp_(-self.config.norm_constraint, self.config.norm_constraint)


def prompt_last_nll(predictions: Predictions) -> Float[Tensor, " batch"]:
    """Return, per row, the mean over target tokens of -log p(token) at the prompt's last position,
    in float32.
    """
    first = predictions.is_answer.int().argmax(1)
    rows = torch.arange(len(first), device=first.device)
    log_probs = F.log_softmax(predictions.logits[rows, first].float(), dim=-1)
    nll = -log_probs.gather(1, predictions.target) * predictions.is_answer
    return nll.sum(1) / predictions.is_answer.sum(1)
