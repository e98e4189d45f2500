"""A patch: the neurons of one or several edits while they are searched for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmedit.cases import Example
from mmedit.editors.closed_form.positions import spots
from mmedit.editors.descent import step_undone
from mmedit.methods.tpatcher.block import Block
from mmedit.methods.tpatcher.config import TPatcherConfig
from mmedit.methods.tpatcher.losses import activation_loss, memory_loss
from mmedit.metrics.multiclass_log_probs import answer_nll
from mmedit.neurons import Neurons
from mmedit.vlm.interface import VLM
from mmedit.vlm.outputs import Predictions

GAIN = 10.0
"""Gain of every value at the start."""


@dataclass(frozen=True, eq=False)
class Queries:
    """Inputs of the block that neurons are for, one for each neuron."""

    x: Float[Tensor, "edits neurons read"]
    real: Bool[Tensor, "edits neurons"]
    """Whether an edit has this neuron; others have fewer."""

    def together(self) -> Queries:
        """Return the queries of all edits as those of one."""
        x = self.x[self.real][None]
        return Queries(x, torch.ones(x.shape[:2], dtype=torch.bool, device=x.device))


@dataclass(frozen=True, eq=False)
class Patch:
    """The neurons of every edit; the value of one is value * gain, entry by entry."""

    key: Float[Tensor, "edits neurons read"]
    bias: Float[Tensor, "edits neurons"]
    value: Float[Tensor, "edits neurons out"]
    gain: Float[Tensor, "edits neurons out"]

    @staticmethod
    def start(queries: Queries, out: int) -> Patch:
        """Return neurons with activation 1 at their queries, which add nothing yet. The neurons
        that an edit does not have are 0.
        """
        squares = queries.x.square().sum(-1, keepdim=True).clamp(min=1e-12)
        key = (queries.x / squares).masked_fill(~queries.real.unsqueeze(-1), 0)
        value = key.new_zeros(*key.shape[:2], out)
        return Patch(key, key.new_zeros(key.shape[:2]), value, torch.full_like(value, GAIN))

    @property
    def parameters(self) -> list[Tensor]:
        """All that is searched for."""
        return [self.key, self.bias, self.value, self.gain]

    def neurons(self, vlm: VLM, block: Block, *, separate: bool) -> Neurons:
        """Return the delta: of separate edits, or of the one that there is for all rows."""
        tensors = self.key, self.bias, self.value * self.gain
        key, bias, value = tensors if separate else (tensor[0] for tensor in tensors)
        return Neurons(key, bias, value, block.reads, vlm.shape(block.site)[1])

    def at(self, states: Float[Tensor, "states read"]) -> Float[Tensor, "edits states neurons"]:
        """Return the activation of every neuron on states."""
        return states @ self.key.mT + self.bias.unsqueeze(1)

    def own(self, queries: Queries) -> Float[Tensor, "edits neurons"]:
        """Return the activation of every neuron at its own query."""
        return (self.key * queries.x).sum(-1) + self.bias


class Losses(NamedTuple):
    """The parts of the loss, by edit."""

    nll: Float[Tensor, " edits"]
    activation: Float[Tensor, " edits"]
    memory: Float[Tensor, " edits"]

    def total(self, config: TPatcherConfig) -> Float[Tensor, " edits"]:
        """Return their weighted sum."""
        return self.nll + config.a_weight * self.activation + config.m_weight * self.memory


def losses_of(
    patch: Patch,
    queries: Queries,
    on_memory: Float[Tensor, "edits states neurons"],
    nll: Float[Tensor, " edits"],
    config: TPatcherConfig,
) -> Losses:
    """Return the parts of the loss; `on_memory` are the activations on the memory, and `nll` is
    that of the answers under the patch.
    """
    own = patch.own(queries)
    return Losses(
        nll=nll,
        activation=activation_loss(
            own, queries.real, margin=config.a_margin, largest=config.a_largest
        ),
        memory=memory_loss(
            own,
            on_memory,
            queries.real,
            margins=config.m_margins,
            largest=config.m_largest,
        ),
    )


def queries_of(vlm: VLM, requests: Sequence[Example], reads: str, *, neurons: int) -> Queries:
    """Return what the block takes where an answer token is predicted wrong now: of every request
    the least probable tokens, `neurons` of them at most. A request that is answered right has one.

    Costs two forwards.
    """
    predictions = vlm.predict(requests, answers_only=[True] * len(requests))
    x = spots("answer", vlm.places(requests)).read(vlm.observe(requests, [reads]).x[reads].float())
    log_probs, is_wrong = _of_answers(predictions)
    order = log_probs.where(is_wrong, log_probs + 1e6).argsort(dim=1)[:, :neurons]
    real = is_wrong.gather(1, order)
    real[:, 0] = True
    return Queries(x.gather(1, order.unsqueeze(-1).expand(-1, -1, x.shape[-1])), real)


def _of_answers(
    predictions: Predictions,
) -> tuple[Float[Tensor, "rows tokens"], Bool[Tensor, "rows tokens"]]:
    """Return the log-probability of every answer token, infinite at padding, and whether another
    token is more probable. The predictions must be of answers only.
    """
    log_probs = predictions.logits.float().log_softmax(-1)
    of_target = log_probs.gather(-1, predictions.target.unsqueeze(-1)).squeeze(-1)
    is_wrong = (predictions.logits.argmax(-1) != predictions.target) & predictions.is_answer
    return of_target.masked_fill(~predictions.is_answer, torch.inf), is_wrong


def find_patch(
    vlm: VLM,
    requests: Sequence[Example],
    block: Block,
    queries: Queries,
    memory: Float[Tensor, "states read"],
    config: TPatcherConfig,
    *,
    separate: bool,
) -> Neurons:
    """Return the neurons of every request (`separate`), or of all requests together.

    Costs at most `steps` forwards and backwards from the layer of the block on, and one host sync
    each. Edits do not see each other, and one that is done stays as it is.
    """
    patch = Patch.start(queries, vlm.shape(block.site)[0])
    for parameter in patch.parameters:
        parameter.requires_grad_()
    optimizer = torch.optim.Adam(patch.parameters, lr=config.lr, weight_decay=config.weight_decay)
    done = torch.zeros(len(patch.key), dtype=torch.bool, device=vlm.device)
    answers_only = [True] * len(requests)
    for _ in range(config.steps):
        with torch.enable_grad():
            edited = vlm.with_deltas({block.site: patch.neurons(vlm, block, separate=separate)})
            nll = _nll(edited.predict(requests, answers_only=answers_only), separate)
            on_memory = patch.at(memory)
            total = losses_of(patch, queries, on_memory, nll, config).total(config)
        done |= (nll < config.stop_loss) & (on_memory.amax((1, 2)) <= 0)
        if bool(done.all()):
            break
        step(optimizer, patch, total, done, clip=config.clip)
    found = patch.neurons(vlm, block, separate=separate)
    return replace(
        found, key=found.key.detach(), bias=found.bias.detach(), value=found.value.detach()
    )


def _nll(predictions: Predictions, separate: bool) -> Float[Tensor, " edits"]:
    nll = answer_nll(predictions.logits, predictions.target, predictions.is_answer)
    return nll if separate else nll.mean(0, keepdim=True)


def step(
    optimizer: torch.optim.Optimizer,
    patch: Patch,
    total: Float[Tensor, " edits"],
    done: Bool[Tensor, " edits"],
    *,
    clip: float,
) -> None:
    """Do one step for the edits that are not done. The gradient of each edit is clipped by itself,
    so that it does not depend on the others.
    """
    gradients = torch.autograd.grad(total.sum(), patch.parameters)
    squares = torch.stack([gradient.square().flatten(1).sum(1) for gradient in gradients])
    share = (clip / squares.sum(0).sqrt().clamp(min=1e-12)).clamp(max=1)
    with torch.no_grad():
        for parameter, gradient in zip(patch.parameters, gradients, strict=True):
            parameter.grad = gradient * share.view(-1, *[1] * (gradient.ndim - 1))
    step_undone(optimizer, patch.parameters, done)
