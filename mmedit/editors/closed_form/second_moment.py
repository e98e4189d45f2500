"""The second moment C = E[k kᵀ] of a Linear's inputs, prepared for closed forms.

`Factor` solves with C, so that an edit changes little for common inputs. `NullSpace` keeps the
directions in which inputs hardly vary, so that an edit inside them changes little else. Both are
made for a site, in float64, and shared by all edits where they fit into memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmedit.errors import EditorError


@dataclass(frozen=True, eq=False)
class Factor:
    """The Cholesky factor of a second moment: C = L Lᵀ.

    `(λC)⁻¹ k` is `solve(k) / λ`: a weight λ needs no factor of its own.
    """

    lower: Float[Tensor, "in in"]
    """L, in float64: 8 · in² bytes."""

    @classmethod
    def of(cls, second_moment: Float[Tensor, "in in"]) -> Factor:
        """Factorise C in float64, in³/3 multiplications. Raises EditorError unless C is finite and
        positive definite.
        """
        _require_finite(second_moment)
        lower, failed = torch.linalg.cholesky_ex(second_moment.double())
        pivots = lower.diagonal().square()
        # Below this share of the largest, a pivot is rounding: C has no direction of its own there.
        rounding = torch.finfo(pivots.dtype).eps * len(pivots)
        if failed or pivots.min() <= rounding * pivots.max():
            raise EditorError(
                f"the second moment of {len(lower)} inputs is not positive definite; expected one "
                f"of clearly more than {len(lower)} tokens; collect more tokens or let it shrink"
            )
        return cls(lower)

    def solve(self, keys: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows in"]:
        """Return C⁻¹ k of every key, in float64: one solve for all rows."""
        return solve_rows(self.lower, keys.double())


@dataclass(frozen=True, eq=False)
class NullSpace:
    """The directions that an edit may use: all that are orthogonal to `protected`."""

    protected: Float[Tensor, "in kept"]
    """Orthonormal columns U₁ that an edit must not touch. The projection is P = I - U₁U₁ᵀ."""

    @classmethod
    def of_share(cls, second_moment: Float[Tensor, "in in"], eta: float) -> NullSpace:
        """Protect the fewest leading eigenvectors that hold a share 1 - `eta` of C's trace. The
        scale of C does not matter. Raises EditorError if no direction is left, or C is not finite.
        """
        values, vectors = _spectrum(second_moment)
        protected = leading(values, 1 - eta)
        if protected.all():
            raise EditorError(
                f"all {len(values)} directions are needed for {1 - eta:g} of the trace of the "
                "second moment, so the edit would be empty; expected a few that are left over; "
                "choose a larger share eta"
            )
        return cls(vectors[:, protected])

    @classmethod
    def of_threshold(cls, second_moment: Float[Tensor, "in in"], threshold: float) -> NullSpace:
        """Protect the directions whose singular value is not below an absolute `threshold`, as the
        published code does. It depends on the scale of C. Raises EditorError if no direction is
        left, or C is not finite.
        """
        values, vectors = _spectrum(second_moment)
        protected = values >= threshold
        if protected.all():
            raise EditorError(
                f"no singular value of the second moment is below the threshold {threshold:g}, so "
                f"the edit would be empty; the smallest is {values[-1].item():.3g}; choose the "
                "directions by a share of the trace, which does not depend on the scale"
            )
        return cls(vectors[:, protected])

    @property
    def dimension(self) -> int:
        """Number of directions that an edit may use."""
        width, protected = self.protected.shape
        return width - protected

    def project(self, keys: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows in"]:
        """Return P k = k - U₁ (U₁ᵀ k) of every key, in float64."""
        keys, protected = keys.double(), self.protected.double()
        return keys - keys @ protected @ protected.mT


def directions(second_moment: Float[Tensor, "in in"], number: int) -> Float[Tensor, "number in"]:
    """Return the first `number` eigenvectors of C, largest eigenvalue first, as orthonormal rows in
    float64. Raises EditorError if C is not finite.
    """
    return _spectrum(second_moment)[1][:, :number].mT


def leading(values: Float[Tensor, " in"], share: float) -> Bool[Tensor, " in"]:
    """Return which eigenvalues, given largest first, are the fewest that hold a share of their
    sum.
    """
    return values.cumsum(0) - values < share * values.sum()


def solve_rows(
    lower: Float[Tensor, "width width"], rows: Float[Tensor, "*rows width"]
) -> Float[Tensor, "*rows width"]:
    """Return (L Lᵀ)⁻¹ of every row. All rows share one factor, which is never copied."""
    columns = torch.atleast_2d(rows).flatten(0, -2).mT
    return torch.cholesky_solve(columns, lower).mT.reshape(rows.shape)


def _spectrum(second_moment: Tensor) -> tuple[Float[Tensor, " in"], Float[Tensor, "in in"]]:
    """Return singular values, largest first, and vectors (columns), in float64."""
    _require_finite(second_moment)
    values, vectors = torch.linalg.eigh(second_moment.double())
    # Rounding leaves tiny negative eigenvalues; the singular value is their absolute value.
    values, order = values.abs().sort(descending=True)
    return values, vectors[:, order]


def _require_finite(second_moment: Tensor) -> None:
    if not second_moment.isfinite().all():
        raise EditorError(
            "the second moment holds values that are not finite; expected finite ones; collect it "
            "again in float32 from a model whose outputs are finite"
        )
