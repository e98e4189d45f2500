"""Edits in the making: their parts at every site, and one step of all sites."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmedit.deltas import LowRank
from mmedit.methods.more.config import MOREConfig
from mmedit.methods.more.readings import Reading
from mmedit.methods.more.steps import Part, gate, group_of, largest


@dataclass(frozen=True, eq=False)
class Writing:
    """Separate edits in the making at one site. Without shared rows that part is 0 wide."""

    basis: Float[Tensor, "rank in"]
    private: Part
    shared: Part

    def delta(self, scale: float) -> LowRank:
        """Return s · B A of every edit."""
        u = scale * torch.cat([self.private.b, self.shared.b], dim=-1).mT
        return LowRank(u, self.basis.expand(len(u), -1, -1))


def step(
    writings: Mapping[str, Writing], read: Mapping[str, Reading], config: MOREConfig
) -> dict[str, Writing]:
    """Return all sites after a step of the `top_k` groups with the largest gradients, which every
    edit chooses for itself.
    """
    in_private, in_shared = _chosen(read, config)
    stepped = {}
    for site, writing in writings.items():
        reading, group, rank = read[site], group_of(site), config.rank
        writes, shares = in_private[group][:, None], in_shared[group][:, None]
        own, gradient = reading.code, reading.gradient
        gated = gate(own[:, rank:], reading.image_code[:, rank:], tau=config.tau, beta=config.beta)
        shared = (gated.own[:, None] * shares)[..., None] * gradient[..., rank:]
        stepped[site] = Writing(
            writing.basis,
            writing.private.stepped(
                gradient[..., :rank] * writes[..., None],
                own[:, :rank] * writes,
                lr=config.lr,
                damping=config.damping,
            ),
            writing.shared.stepped(
                shared, gated.key * shares, lr=config.shared_lr, damping=config.shared_damping
            ),
        )
    return stepped


ByGroup = dict[str, Bool[Tensor, " edits"]]
"""Edits that write a group, by group."""


def _chosen(read: Mapping[str, Reading], config: MOREConfig) -> tuple[ByGroup, ByGroup]:
    """Return which edits write the private rows of each group, and which the shared ones."""
    squares: dict[str, Tensor] = {}
    for site, reading in read.items():
        group = group_of(site)
        squares[group] = squares.get(group, 0) + reading.gradient.square().sum((1, 2))
    scores = torch.stack(list(squares.values()), dim=-1)
    with_text = {group_of(site) for site, reading in read.items() if reading.is_text}
    text = torch.tensor([group in with_text for group in squares], device=scores.device)
    private = largest(scores, config.top_k)
    shared = largest(scores.where(text, -1), config.shared_top_k)
    numbered = list(enumerate(squares))
    return {g: private[:, n] for n, g in numbered}, {g: shared[:, n] for n, g in numbered}
