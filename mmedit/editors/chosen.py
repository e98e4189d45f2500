"""Whole matrices of which each row of a batch is answered under one, or under none.

Edits that live beside the model answer with it: the matrices are shared, so a row costs no copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from mmedit.deltas import Delta, require_rows
from mmedit.errors import SiteError

NOTHING = -1
"""Stands for the matrix of a row that is answered as before."""


@dataclass(frozen=True, eq=False)
class Chosen(Delta):
    """Δ(x)[row] = changes[of_row[row]] x[row] + offset, and 0 for a row that has none."""

    changes: Float[Tensor, "matrices out in"]
    of_row: Int[Tensor, " rows"]
    """The number of each row's matrix, or NOTHING."""
    offset: Float[Tensor, " out"] | None = None

    @property
    def edits(self) -> int:
        return len(self.of_row)

    @property
    def shape(self) -> tuple[int, int]:
        return self.changes.shape[1], self.changes.shape[2]

    @property
    def parameters(self) -> int:
        return self.changes[0].numel()

    def __call__(self, x: Float[Tensor, "rows tokens in"]) -> Float[Tensor, "rows tokens out"]:
        total = x.new_zeros(*x.shape[:2], self.shape[0], dtype=self.changes.dtype)
        for number in self.of_row.unique().tolist():  # the few that are in use
            if number == NOTHING:
                continue
            rows = (self.of_row == number).nonzero().flatten()
            change = x[rows].to(self.changes) @ self.changes[number].mT
            total = total.index_copy(
                0, rows, change if self.offset is None else change + self.offset
            )
        return total

    def weight(self) -> Float[Tensor, "*edits out in"]:
        raise SiteError("a matrix that is chosen for each question is not a change of the weight")

    def select(self, rows: Sequence[int]) -> Chosen:
        require_rows(rows, self.edits)
        return Chosen(self.changes, self.of_row[list(rows)], self.offset)

    def tensors(self) -> dict[str, Tensor]:
        return {"changes": self.changes, "of_row": self.of_row}
