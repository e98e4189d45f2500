"""Edits in the making: their B, P and keys at every site, and one step of all sites."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmedit.deltas import LowRank
from mmedit.methods.more.config import MOREConfig
from mmedit.methods.more.readings import Reading
from mmedit.methods.more.steps import Online, gate, group_of, largest, projector_of


@dataclass(frozen=True, eq=False)
class Part:
    """Some rows of A with their columns of B, of separate edits or of one."""

    online: Online
    keys: Float[Tensor, "edits keys rank"]
    """Keys of the steps so far; 0 where a step did not write this site."""

    @staticmethod
    def begun(out: int, keys: Float[Tensor, "keys rank"], damping: float, edits: int) -> Part:
        """Return B = 0 and the P of all keys before, for so many edits."""
        rank = keys.shape[-1]
        projector = projector_of(keys, damping).expand(edits, rank, rank)
        b = keys.new_zeros(edits, out, rank)
        return Part(Online(b, projector), keys.new_zeros(edits, 0, rank))

    def stepped(
        self,
        gradient: Float[Tensor, "edits out rank"],
        keys: Float[Tensor, "edits new rank"],
        writes: Bool[Tensor, " edits"],
        *,
        lr: float,
        damping: float,
    ) -> Part:
        """Return the part after a step of the edits that write it."""
        mask = writes[:, None, None]
        gradient, keys = gradient * mask, keys * mask
        online = self.online.stepped(gradient, keys, lr=lr, damping=damping)
        return Part(online, torch.cat([self.keys, keys], dim=1))

    @property
    def rows(self) -> Float[Tensor, "keys rank"]:
        """The keys of all edits, without those of steps that did not write."""
        keys = self.keys.flatten(0, 1)
        return keys[keys.any(-1)]


@dataclass(frozen=True, eq=False)
class Writing:
    """An edit in the making at one site. Without shared rows that part is 0 wide."""

    basis: Float[Tensor, "rank in"]
    private: Part
    shared: Part

    def delta(self, scale: float, *, separate: bool) -> LowRank:
        """Return s · B A of separate edits, or of the only one."""
        u = scale * torch.cat([self.private.online.b, self.shared.online.b], dim=-1).mT
        return (
            LowRank(u, self.basis.expand(len(u), -1, -1)) if separate else LowRank(u[0], self.basis)
        )


def step(
    writings: Mapping[str, Writing],
    read: Mapping[str, Reading],
    config: MOREConfig,
    *,
    separate: bool,
) -> dict[str, Writing]:
    """Return all sites after a step of the `top_k` groups with the largest gradients, which each
    of separate edits chooses for itself. An edit of several requests steps along the sum of their
    gradients, and has a key of each.
    """
    in_private, in_shared = _chosen(read, config, separate=separate)
    stepped = {}
    for site, writing in writings.items():
        reading, group, rank = read[site], group_of(site), config.rank
        gated = gate(
            reading.code[:, rank:], reading.image_code[:, rank:], tau=config.tau, beta=config.beta
        )
        private = (reading.gradient[..., :rank], reading.code[:, :rank])
        shared = (reading.gradient[..., rank:] * gated.own[:, None, None], gated.key)
        stepped[site] = Writing(
            writing.basis,
            writing.private.stepped(
                *_of_edits(*private, separate=separate),
                in_private[group],
                lr=config.lr,
                damping=config.damping,
            ),
            writing.shared.stepped(
                *_of_edits(*shared, separate=separate),
                in_shared[group],
                lr=config.shared_lr,
                damping=config.shared_damping,
            ),
        )
    return stepped


def _of_edits(
    gradient: Float[Tensor, "rows out rank"], keys: Float[Tensor, "rows rank"], *, separate: bool
) -> tuple[Float[Tensor, "edits out rank"], Float[Tensor, "edits keys rank"]]:
    """Return gradients and keys by edit: every row is one, or all rows together are."""
    if separate:
        return gradient, keys[:, None]
    return gradient.sum(0, keepdim=True), keys[None]


def _chosen(
    read: Mapping[str, Reading], config: MOREConfig, *, separate: bool
) -> tuple[dict[str, Bool[Tensor, " edits"]], dict[str, Bool[Tensor, " edits"]]]:
    """Return by group which edits write its private and its shared rows."""
    squares: dict[str, Tensor] = {}
    for site, reading in read.items():
        gradient, _ = _of_edits(reading.gradient, reading.code, separate=separate)
        group = group_of(site)
        squares[group] = squares.get(group, 0) + gradient.square().sum((1, 2))
    scores = torch.stack(list(squares.values()), dim=-1)
    with_text = {group_of(site) for site, reading in read.items() if reading.is_text}
    text = torch.tensor([group in with_text for group in squares], device=scores.device)
    private = largest(scores, config.top_k)
    shared = largest(scores.where(text, -1), config.shared_top_k)
    numbered = list(enumerate(squares))
    return {g: private[:, n] for n, g in numbered}, {g: shared[:, n] for n, g in numbered}
