"""LoRA (Hu et al. 2022, LoRA: Low-Rank Adaptation of Large Language Models), fitted to the request.

    y = W x + b + (α/r) B A x,      A, B ≈ argmin  -(1/n) Σ_j log p(y_j | prompt, image, y_<j)

A begins uniform within ±1/√in and B as 0, as in peft, so the first step moves B alone. `adalora`
is the form of AdaLoRA (Zhang et al. 2023, Adaptive Budget Allocation for Parameter-Efficient
Fine-Tuning): B (E ∘ A) α/r with A, B of N(0, 0.02²) and E = 0; `orthogonality` is the weight of its
term, the mean of ‖A Aᵀ - I‖ and ‖Bᵀ B - I‖ over all sites.

Edits that follow each other have adapters of their own, which add up. With `shared` they continue
one adapter: it is kept with each edit, the next one begins from it, and an edit is its change
B A - B₀ A₀. So taking out the last edit leaves the adapter as it was before; taking out an earlier
one leaves what the adapter has learnt since.

Differences from the published code (EasyEdit's LoRA for VLMs):
- Adam in place of SGD, which hardly moves an adapter in five steps, and an end once the answer is
  learnt.
- Every edit has an adapter of its own. There one adapter is continued for ever (`shared`).
- Its `r: 8` is ignored with AdaLoRA, which makes 12, and its ranks are never allocated, yet the
  term of AdaLoRA is paid: `configs/editor/lora-easyedit.yaml` says what is done there.
- No dropout: an edit is one example. There it stays on while the edit is measured.
- The loss is taken at the answer's tokens, not at the last ones of the row, in float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.optim.lr_scheduler import ExponentialLR

from mmedit.cases import Example
from mmedit.deltas import LowRank
from mmedit.editors.base import Editor
from mmedit.editors.config import EditorConfig, SitesConfig
from mmedit.editors.descent import initial_factor, step_undone
from mmedit.metrics.multiclass_log_probs import answer_nll
from mmedit.settings import MAX_SEED
from mmedit.vlm.edit import LATEST, Change, DeltaChange, kept_of
from mmedit.vlm.interface import VLM

ADALORA_STD = 0.02
"""Standard deviation of AdaLoRA's initial A and B."""
OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}


class LoRAConfig(SitesConfig):
    """Settings of LoRA."""

    rank: int = Field(default=8, ge=1)
    """r, the rank of an adapter."""
    alpha: float = Field(default=16.0, gt=0)
    """α; the adapter is scaled by α/r."""
    init: Literal["lora", "adalora"] = "lora"
    """Form and initial values of the adapter."""
    steps: int = Field(default=25, ge=1)
    """Largest number of optimiser steps per edit."""
    stop_loss: float = Field(default=0.05, ge=0)
    """An edit is done when the NLL of each of its answers is below this; 0: never."""
    lr: float = Field(default=1e-3, gt=0)
    """Learning rate."""
    lr_decay: float = Field(default=1.0, gt=0, le=1)
    """Factor of the learning rate after each step."""
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """The optimiser of A and B."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Weight decay of A and B."""
    orthogonality: float = Field(default=0.0, ge=0)
    """Weight of AdaLoRA's term. peft: 0.5."""
    shared: bool = False
    """Continue one adapter over a sequence of edits, in place of one adapter for each."""
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    """Seed of the initial values, the same for every edit."""

    @property
    def scale(self) -> float:
        """The factor of B A."""
        return self.alpha / (self.rank + (1e-5 if self.init == "adalora" else 0))


@dataclass(frozen=True, eq=False, kw_only=True)
class SiteAdapter:
    """The adapter of one Linear."""

    a: Float[Tensor, "*edits rank in"]
    b: Float[Tensor, "*edits out rank"]
    e: Float[Tensor, "*edits rank 1"] | None = None
    """AdaLoRA's factor of every rank."""
    scale: float

    def delta(self) -> LowRank:
        """Return what the adapter adds to the output of the Linear."""
        a = self.a if self.e is None else self.e * self.a
        return LowRank(u=self.b.mT, v=self.scale * a)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that are learnt, by name."""
        return {"a": self.a, "b": self.b} | ({} if self.e is None else {"e": self.e})


def initial(shape: tuple[int, int], config: LoRAConfig, generator: torch.Generator) -> SiteAdapter:
    """Return the adapter that peft begins with; its delta is 0. `shape` is (out, in)."""
    (out, in_), rank = shape, config.rank
    if config.init == "adalora":
        a = torch.randn(rank, in_, generator=generator) * ADALORA_STD
        b = torch.randn(out, rank, generator=generator) * ADALORA_STD
        return SiteAdapter(a=a, b=b, e=torch.zeros(rank, 1), scale=config.scale)
    a = initial_factor(rank, in_, generator)
    return SiteAdapter(a=a, b=torch.zeros(out, rank), scale=config.scale)


def orthogonality(adapters: Sequence[SiteAdapter]) -> Float[Tensor, "*edits"]:
    """Return the mean over all A and B of ‖A Aᵀ - I‖ and ‖Bᵀ B - I‖, in the Frobenius norm."""
    norms = []
    for one in adapters:
        for product in (one.a @ one.a.mT, one.b.mT @ one.b):
            unit = torch.eye(product.shape[-1], device=product.device)
            norms.append(torch.linalg.matrix_norm(product - unit))
    return torch.stack(norms).mean(0)


def difference(after: LowRank, before: LowRank) -> LowRank:
    """Return B A - B₀ A₀ as (B - B₀) A + B₀ (A - A₀): the digits of a small change are not lost
    between two large numbers. Its rank is twice that of an adapter, unless the one before is 0.
    """
    if not (before.u.any() and before.v.any()):
        return after
    old = before.u.expand_as(after.u)
    return LowRank(
        u=torch.cat([after.u - before.u, old], dim=-2),
        v=torch.cat([after.v, after.v - before.v], dim=-2),
    )


class Descent:
    """Adapters of separate edits on their way down the loss; every edit begins from the same ones.

    Requests are given edit after edit, equally many for each.
    """

    def __init__(
        self, vlm: VLM, start: Mapping[str, SiteAdapter], config: LoRAConfig, *, edits: int
    ) -> None:
        self._vlm, self._config = vlm, config
        before = {site: one.delta() for site, one in start.items()}
        self._before = {site: d for site, d in before.items() if d.u.any() and d.v.any()}
        self.adapters = {site: _trainable(one, edits) for site, one in start.items()}
        """The adapters as they are now, by site, with an edits axis."""
        self._learnt = [t for one in self.adapters.values() for t in one.tensors().values()]
        make = OPTIMIZERS[config.optimizer]
        self._optimizer = make(self._learnt, lr=config.lr, weight_decay=config.weight_decay)
        self._decay = ExponentialLR(self._optimizer, gamma=config.lr_decay)
        self.left = list(range(edits))
        """The edits that are not done."""

    def deltas(self) -> dict[str, LowRank]:
        """Return the edits so far by site, with an edits axis."""
        made = {site: one.delta() for site, one in self.adapters.items()}
        continued = {site: difference(made[site], old) for site, old in self._before.items()}
        return made | continued

    def nll(
        self, requests: Sequence[Example], edits: Sequence[int]
    ) -> Float[Tensor, "edits requests"]:
        """Return the NLL of the requests of these edits. Costs a forward."""
        each = len(requests) // len(self._learnt[0])
        rows = [edit * each + number for edit in edits for number in range(each)]
        with torch.enable_grad():
            deltas = {
                site: delta.select([row // each for row in rows])
                for site, delta in self.deltas().items()
            }
            edited = self._vlm.select(rows).with_deltas(deltas)
            asked = [requests[row] for row in rows]
            predictions = edited.predict(asked, answers_only=[True] * len(rows))
            nll = answer_nll(predictions.logits, predictions.target, predictions.is_answer)
            return nll.unflatten(0, (len(edits), each))

    def step(self, nll: Float[Tensor, "edits requests"]) -> None:
        """Do one step of the optimiser for the edits that are left. Costs a backward."""
        with torch.enable_grad():
            # Separate edits share no number: with the sum, each gets the gradient of its own loss.
            loss = nll.mean(1).sum()
            if self._config.orthogonality:
                term = orthogonality(list(self.adapters.values()))
                loss = loss + self._config.orthogonality * term.sum()
            gradients = torch.autograd.grad(loss, self._learnt)
        for tensor, gradient in zip(self._learnt, gradients, strict=True):
            tensor.grad = gradient
        done = torch.ones(len(self._learnt[0]), dtype=torch.bool, device=self._vlm.device)
        done[self.left] = False
        step_undone(self._optimizer, self._learnt, done)
        self._decay.step()

    def ended(self) -> Descent:
        """Return this with adapters that no gradient goes through."""
        self.adapters = {
            site: replace(one, **{name: t.detach() for name, t in one.tensors().items()})
            for site, one in self.adapters.items()
        }
        return self

    def run(self, requests: Sequence[Example]) -> None:
        """Descend until all edits are done, or for as many steps as the settings say.

        Edits that are done are no longer asked once half of those in the batch are; the first
        forward after that runs all layers.
        """
        asked = list(self.left)
        for _ in range(self._config.steps):
            nll = self.nll(requests, asked)
            worst = dict(zip(asked, nll.detach().amax(1).tolist(), strict=True))
            # not "at least": an edit whose NLL is not a number is not done
            self.left = [edit for edit in self.left if not worst[edit] < self._config.stop_loss]
            if not self.left:
                return
            self.step(nll)
            if 2 * len(self.left) <= len(asked):
                asked = list(self.left)


class LoRA(Editor[LoRAConfig]):
    """Adapters fitted to the request. An edit is a LowRank delta per site, of rank r.

    `apply` and `apply_each` cost at most `steps` forwards and backwards, from the first edited
    layer on, and one host sync for each. All requests of one `apply` share one adapter.
    """

    method: ClassVar[str] = "lora"
    title: ClassVar[str] = "LoRA"
    paper: ClassVar[str] = "Hu et al. 2022, LoRA: Low-Rank Adaptation of Large Language Models"
    config_class: ClassVar[type[EditorConfig]] = LoRAConfig

    @torch.no_grad()
    def change(self, vlm: VLM, requests: Sequence[Example]) -> Change:
        found = self._descended(vlm, requests, edits=1)
        deltas = {site: LowRank(one.u[0], one.v[0]) for site, one in found.deltas().items()}
        kept = {
            self._name(site, name): tensor[0]
            for site, one in found.adapters.items()
            for name, tensor in one.tensors().items()
        }
        return DeltaChange(deltas, kept=kept if self.config.shared else None)

    @torch.no_grad()
    def apply_each(self, vlm: VLM, requests: Sequence[Example]) -> VLM:
        if not requests:
            return vlm
        return vlm.with_deltas(self._descended(vlm, requests, edits=len(requests)).deltas())

    def _descended(self, vlm: VLM, requests: Sequence[Example], *, edits: int) -> Descent:
        sites = self.config.sites_of(vlm)
        vlm.require_reach(requests, sites)
        descent = Descent(vlm, self._start(vlm, sites), self.config, edits=edits)
        descent.run(requests)
        return descent.ended()

    def _start(self, vlm: VLM, sites: Sequence[str]) -> dict[str, SiteAdapter]:
        """Return the adapters that an edit of this VLM begins from."""
        generator = torch.Generator().manual_seed(self.config.seed)
        start = {}
        for site in sites:
            new = initial(vlm.shape(site), self.config, generator)
            tensors = {
                name: self._latest(vlm, site, name, tensor).to(vlm.device)
                for name, tensor in new.tensors().items()
            }
            start[site] = replace(new, **tensors)
        return start

    def _latest(self, vlm: VLM, site: str, name: str, new: Tensor) -> Tensor:
        """Return a tensor of the adapter that is continued; `new` if there is none."""
        kept = kept_of(vlm.edits, self._name(site, name)) if self.config.shared else []
        return kept[-1] if kept else new

    def _name(self, site: str, name: str) -> str:
        """Return the name of a tensor in what an edit keeps: adapters of another shape, scale or
        kind have other names.
        """
        config = self.config
        return f"{LATEST}{config.init}.rank-{config.rank}.alpha-{config.alpha:g}.{site}.{name}"


def _trainable(start: SiteAdapter, edits: int) -> SiteAdapter:
    """Return the adapter once for each edit, with gradients."""
    repeated = {
        name: tensor.detach().repeat(edits, 1, 1).requires_grad_()
        for name, tensor in start.tensors().items()
    }
    return replace(start, **repeated)
