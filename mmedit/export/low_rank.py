"""A delta as the two factors of a LoRA adapter: ΔW ≈ B A.

A low-rank delta has them already: A = V, B = U^T. A dense one gets those of its largest singular
values, ΔW = L S R^T ≈ (L_r S_r^1/2)(S_r^1/2 R_r^T), the nearest matrix of rank r in the Frobenius
norm (Eckart and Young 1936).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mmedit.deltas import Delta, LowRank

NOISE = 8
"""Singular values below this many roundings of the largest one come from rounding."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Factors:
    """The factors of one site's delta, in float32 on the CPU, and what they leave out."""

    a: Float[Tensor, "rank in"]
    b: Float[Tensor, "out rank"]
    left_out: float
    """Frobenius norm of ΔW - B A."""
    size: float
    """Frobenius norm of ΔW."""

    @property
    def rank(self) -> int:
        """Number of columns of B."""
        return len(self.a)


def factors_of(deltas: Sequence[Delta], rank: int) -> Factors:
    """Return the factors of the sum of deltas without edits axis.

    Low-rank deltas are exact: their factors are joined. The sum of the dense ones gets at most
    `rank` further columns, for one singular value decomposition.
    """
    low = [delta for delta in deltas if isinstance(delta, LowRank)]
    dense = [delta for delta in deltas if not isinstance(delta, LowRank)]
    if sum(delta.u.shape[-2] for delta in low) > min(deltas[0].shape):  # fewer columns are exact
        return _largest(_total(deltas), min(deltas[0].shape))
    exact = _joined(low) if low else None
    if not dense and exact is not None:
        return exact
    nearest = _largest(_total(dense), rank)
    if exact is None:
        return nearest
    return Factors(
        a=torch.cat([exact.a, nearest.a]),
        b=torch.cat([exact.b, nearest.b], dim=1),
        left_out=nearest.left_out,
        size=float(_total(deltas).norm()),
    )


def _joined(deltas: Sequence[LowRank]) -> Factors:
    u = torch.cat([delta.u.detach().float() for delta in deltas])
    v = torch.cat([delta.v.detach().float() for delta in deltas])
    size = float(((u @ u.mT) * (v @ v.mT)).sum().clamp(min=0).sqrt())
    return Factors(a=v.cpu(), b=u.mT.cpu(), left_out=0.0, size=size)


def _total(deltas: Sequence[Delta]) -> Tensor:
    total = deltas[0].weight().detach().float()
    for delta in deltas[1:]:
        total = total + delta.weight().detach().float()
    return total


def _largest(change: Float[Tensor, "out in"], rank: int) -> Factors:
    """Return the factors of the largest singular values, without those that are rounding noise."""
    left, values, right = torch.linalg.svd(change, full_matrices=False)
    noise = values[0] * NOISE * torch.finfo(values.dtype).eps
    kept = max(1, min(rank, int((values > noise).sum())))
    root = values[:kept].sqrt()
    return Factors(
        a=(root[:, None] * right[:kept]).cpu(),
        b=(left[:, :kept] * root).cpu(),
        left_out=float(values[kept:].norm()),
        size=float(values.norm()),
    )
