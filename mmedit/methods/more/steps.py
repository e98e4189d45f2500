"""Formulas of M-ORE and ScopeEdit for one Linear: a step of B and P, the basis, keys, the gate."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from mmedit.errors import SiteError

EPSILON = 1e-6
"""Added to the denominators of the gate, as in the published code."""


@dataclass(frozen=True, eq=False)
class Part:
    """Some rows of A with their columns of B; with the axis in front, of separate edits."""

    b: Float[Tensor, "*edits out rank"]
    """B, or its change by the edits that are being made."""
    projector: Float[Tensor, "*edits rank rank"]
    """P = (I + Σ z zᵀ / λ)⁻¹ over all keys z so far."""
    keys: Float[Tensor, "*edits steps rank"]
    """Key of every step; 0 where a step did not write."""

    @staticmethod
    def begun(out: int, keys: Float[Tensor, "keys rank"], damping: float, edits: int) -> Part:
        """Return B = 0 and the P of all keys before, for so many edits."""
        rank = keys.shape[-1]
        projector = projector_of(keys, damping).expand(edits, rank, rank)
        return Part(keys.new_zeros(edits, out, rank), projector, keys.new_zeros(edits, 0, rank))

    @property
    def rows(self) -> Float[Tensor, "keys rank"]:
        """The keys of all steps that wrote."""
        keys = self.keys.flatten(0, -2)
        return keys[keys.any(-1)]

    def stepped(
        self,
        gradient: Float[Tensor, "*edits out rank"],
        key: Float[Tensor, "*edits rank"],
        *,
        lr: float,
        damping: float,
    ) -> Part:
        """Return B - lr · ∂L/∂B P, with P as it was, and P with the key. Zeros change nothing."""
        return Part(
            self.b - lr * gradient @ self.projector,
            damped(self.projector, key, damping),
            torch.cat([self.keys, key.unsqueeze(-2)], dim=-2),
        )


def damped(
    projector: Float[Tensor, "*edits rank rank"], key: Float[Tensor, "*edits rank"], damping: float
) -> Float[Tensor, "*edits rank rank"]:
    """Return P with one more key: P - (P z)(P z)ᵀ / (λ + zᵀ P z)."""
    z = key.unsqueeze(-1)
    projected = projector @ z
    return projector - projected @ projected.mT / (damping + z.mT @ projected)


def projector_of(keys: Float[Tensor, "keys rank"], damping: float) -> Float[Tensor, "rank rank"]:
    """Return P = (I + Zᵀ Z / λ)⁻¹ of all keys Z (rows), by way of float64."""
    rows = keys.double()
    one = torch.eye(rows.shape[-1], dtype=rows.dtype, device=rows.device)
    return torch.linalg.inv(one + rows.mT @ rows / damping).to(keys.dtype)


@lru_cache(maxsize=8)
def orthonormal(rank: int, width: int, seed: int) -> Float[Tensor, "rank width"]:
    """Return A: random orthonormal rows, the same for the same seed. Raises SiteError if the rank
    is larger than the width.
    """
    require_rank(rank, width)
    drawn = torch.randn(
        width, rank, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    q, r = torch.linalg.qr(drawn)
    return (q * r.diagonal().sign()).mT.float().contiguous()  # signs: QR alone leaves them open


def require_rank(rank: int, width: int) -> None:
    """Raise SiteError unless a Linear has as many inputs as A has rows."""
    if rank > width:
        raise SiteError(
            f"A would have {rank} orthonormal rows, and a Linear to edit has {width} inputs; "
            f"expected at most {width} rows: lower editor.rank, or name other sites"
        )


def mean_over(
    values: Float[Tensor, "rows tokens width"], mask: Bool[Tensor, "rows tokens"]
) -> Float[Tensor, "rows width"]:
    """Return the mean over the tokens of the mask; 0 for a row that has none."""
    there = mask.unsqueeze(-1)
    total = values.masked_fill(~there, 0).sum(1)  # what stands at padding may be no number
    return total / there.sum(1).clamp(min=1)


def group_of(site: str) -> str:
    """Return the group of a site: its layer, or without numbered layers the module around it.

    >>> group_of("model.language_model.layers.7.mlp.up_proj")
    'model.language_model.layers.7'
    >>> group_of("model.multi_modal_projector.linear_1")
    'model.multi_modal_projector'
    """
    around = site.split(".")[:-1]
    numbered = [place for place, part in enumerate(around) if part.isdigit()]
    return ".".join(around[: numbered[0] + 1] if numbered else around)


def largest(scores: Float[Tensor, "edits groups"], k: int) -> Bool[Tensor, "edits groups"]:
    """Return which scores are the k largest of each edit. A score below 0 is none of them."""
    place = scores.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    return (place < k) & (scores >= 0)


class Gate(NamedTuple):
    """ScopeEdit's gate, for each edit."""

    own: Float[Tensor, " edits"]
    """γ_self, the share of a shared step that is written."""
    other: Float[Tensor, " edits"]
    """γ_other."""
    key: Float[Tensor, "edits shared"]
    """q, the key of the shared rows, of length 1; 0 without image."""


def gate(
    own: Float[Tensor, "edits shared"],
    other: Float[Tensor, "edits shared"],
    *,
    tau: float,
    beta: float,
) -> Gate:
    """Return the gate from the shared codes of text (`own`) and image (`other`):
    γ = σ(β (cos - τ)) · min‖·‖/max‖·‖, which the two share by each other's norms.
    """
    n_own, n_other = (torch.linalg.vector_norm(code, dim=-1) for code in (own, other))
    cos = (own * other).sum(-1) / (n_own * n_other + EPSILON)
    support = torch.minimum(n_own, n_other) / (torch.maximum(n_own, n_other) + EPSILON)
    gamma = torch.sigmoid(beta * (cos - tau)) * support
    both = n_own + n_other + EPSILON
    of_own, of_other = gamma * n_other / both, gamma * n_own / both
    key = of_other.unsqueeze(-1) * own + of_own.unsqueeze(-1) * other
    return Gate(of_own, of_other, F.normalize(key, dim=-1))
