"""The training of a side memory on one edit, or on separate edits side by side.

    loss = NLL(answer) + relu(Δ_out - Δ_in + γ) + relu(Δ_out - α) + relu(β - Δ_in)
    W' <- clamp(W' - lr · mask ∘ (∇loss + weight_decay · W'), W ± norm_constraint)

Δ_in is the activation distance of the request, Δ_out that of irrelevant prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mmedit.cases import Example
from mmedit.deltas import Delta, Dense
from mmedit.editors.chosen import Chosen
from mmedit.methods.wise.distance import Hinges, Reading, hinges, row_distance, token_distance
from mmedit.metrics.multiclass_log_probs import answer_nll
from mmedit.vlm.interface import VLM


class Margins(NamedTuple):
    """The margins of the hinges, and the length that is 1 for them."""

    alpha: float
    beta: float
    gamma: float
    unit: float = 1.0


class Descent(NamedTuple):
    """How a side memory is trained."""

    steps: int
    lr: float
    weight_decay: float
    norm_constraint: float | None
    stop_loss: float = 0.0
    """The training of an edit ends when its loss is below this."""


class Losses(NamedTuple):
    """The losses of every edit."""

    nll: Float[Tensor, " edits"]
    hinges: Hinges

    @property
    def total(self) -> Float[Tensor, " edits"]:
        """Their sum."""
        return self.nll + sum(self.hinges)


@dataclass(frozen=True, eq=False, kw_only=True)
class Side:
    """Everything that the training of a side memory reads. A change is [edits, out, in]: one edit
    of all requests, or a separate one for each.
    """

    vlm: VLM
    site: str
    requests: Sequence[Example]
    inside: Reading
    """The requests' prompts."""
    outside: Reading
    """Irrelevant prompts, which all edits share."""
    mask: Float[Tensor, "out in"]
    """1 at the entries that may change."""
    margins: Margins
    dropped_bias: Float[Tensor, " out"] | None = None
    """The bias that the published code forgets on the side."""

    @torch.no_grad()
    def descend(
        self, start: Float[Tensor, "edits out in"], how: Descent
    ) -> Float[Tensor, "edits out in"]:
        """Return the changes after all steps. Costs at most so many forwards and backwards from the
        site on, and one host sync each.
        """
        change, weight = start, self.vlm.weight(self.site)
        done = torch.zeros(len(start), 1, 1, dtype=torch.bool, device=start.device)
        for _ in range(how.steps):
            further, losses = self.stepped(change, weight, how)
            done |= (losses.total < how.stop_loss)[:, None, None]
            if done.all():
                break
            change = change.where(done, further)
        return change

    @torch.no_grad()
    def stepped(
        self,
        change: Float[Tensor, "edits out in"],
        weight: Float[Tensor, "*edits out in"],
        how: Descent,
    ) -> tuple[Float[Tensor, "edits out in"], Losses]:
        """Return the changes after one step of gradient descent, and the losses before it."""
        with torch.enable_grad():
            leaf = change.detach().requires_grad_()
            losses = self.losses(leaf)
            # Separate edits share no entry: with the sum, each gets the gradient of its own loss.
            (gradient,) = torch.autograd.grad(losses.total.sum(), [leaf])
        change = change - how.lr * self.mask * (gradient + how.weight_decay * (weight + change))
        if how.norm_constraint is not None:
            change = change.clamp(-how.norm_constraint, how.norm_constraint)
        return change, losses

    def losses(self, change: Float[Tensor, "edits out in"]) -> Losses:
        """Return the losses of every edit, differentiable. Costs a forward from the site on."""
        edited = self.vlm.with_deltas({self.site: self._delta(change)})
        predictions = edited.predict(self.requests, answers_only=[True] * len(self.requests))
        nll = answer_nll(predictions.logits, predictions.target, predictions.is_answer)
        inside, outside = (
            self.distance(reading, change) / self.margins.unit
            for reading in (self.inside, self.outside)
        )
        gap = (outside.unsqueeze(1) - inside.unsqueeze(2)).flatten(1)
        alpha, beta, gamma, _ = self.margins
        return Losses(
            nll.unflatten(0, (len(change), -1)).mean(1),
            hinges(inside, outside, gap, alpha=alpha, beta=beta, gamma=gamma),
        )

    def distance(
        self, reading: Reading, change: Float[Tensor, "edits out in"]
    ) -> Float[Tensor, "edits rows"]:
        """Return the activation distance of prompts under every edit."""
        sigma: Callable[[Tensor], Tensor] = self.vlm.activation
        each = token_distance(reading.x, reading.y, change, sigma, self.dropped_bias)
        return row_distance(each, reading.counts)

    @torch.no_grad()
    def activation(self, change: Float[Tensor, "edits out in"]) -> Float[Tensor, " edits"]:
        """Return the mean distance of each edit's requests: what a question must come near."""
        return self.distance(self.inside, change).mean(1)

    def _delta(self, change: Float[Tensor, "edits out in"]) -> Delta:
        """Return the side memory as what answers the requests."""
        rows = len(self.requests)
        if self.dropped_bias is not None:
            of_row = torch.arange(rows, device=change.device) % len(change)
            return Chosen(change, of_row, -self.dropped_bias)
        return Dense(change if len(change) == rows else change[0])
