"""The size of a change of weights, site by site, without the full matrix of a low-rank change.

|U^T V|² = Σ (U U^T) ∘ (V V^T)      of r x r numbers for a change of rank r
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mmedit.deltas import Delta, LowRank, Sum
from mmedit.neurons import Neurons, by_input


@dataclass(frozen=True, kw_only=True)
class SiteChange:
    """The change of one weight."""

    site: str
    kind: str
    """Form of the delta: "low rank", "dense", "neurons", or "sum" of several."""
    rank: int | None
    """Number of its outer products, or neurons; None for a whole matrix."""
    norm: float
    """Frobenius norm of what is added to the weight; of neurons, as if all were active."""
    parameters: int
    """Number of values that it takes."""


def changes_of(deltas: Mapping[str, Delta]) -> list[SiteChange]:
    """Return the size of every change, in the order of the sites."""
    return [
        SiteChange(
            site=site,
            kind=delta.kind.replace("_", " "),
            rank=_rank(delta),
            norm=frobenius(delta),
            parameters=delta.parameters,
        )
        for site, delta in deltas.items()
    ]


@torch.no_grad()
def frobenius(delta: Delta) -> float:
    """Return the Frobenius norm of Δ in float64; of separate edits, that of all together."""
    total = 0.0
    for same in by_input(delta).values():  # changes of what two Linears take have no product
        parts = [_active(part) for part in (same.parts if isinstance(same, Sum) else (same,))]
        total += sum(float(_product(first, second)) for first in parts for second in parts)
    return math.sqrt(max(0.0, total))


def _active(delta: Delta) -> Delta:
    """Return neurons as what they add where all are active, without their biases."""
    return LowRank(delta.value, delta.key) if isinstance(delta, Neurons) else delta


def _product(first: Delta, second: Delta) -> Float[Tensor, ""]:
    """Return the sum over all entries of the product of two changes."""
    if isinstance(first, LowRank) and isinstance(second, LowRank):
        u = first.u.double() @ second.u.double().mT
        v = first.v.double() @ second.v.double().mT
        return (u * v).sum()
    if isinstance(first, LowRank):
        return _product(second, first)
    if isinstance(second, LowRank):
        projected = second.v.double() @ first.weight().double().mT
        return (second.u.double() * projected).sum()
    return (first.weight().double() * second.weight().double()).sum()


def _rank(delta: Delta) -> int | None:
    low = _active(delta)
    return low.u.shape[-2] if isinstance(low, LowRank) else None
