"""A value that is added at some positions to the output of a Linear, whatever its input is.

It is how value vectors are searched for: it is no change of a weight, so it is never part of an
edit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mmedit.deltas import Delta, require_rows
from mmedit.errors import SiteError


@dataclass(frozen=True, eq=False)
class Shift(Delta):
    """Δ(x)[b, t] = Σ_k writes[b, t, k] value[b, k]."""

    value: Float[Tensor, "edits keys out"]
    writes: Float[Tensor, "edits tokens keys"]
    width: int
    """Width of the inputs of its Linear."""

    @property
    def edits(self) -> int:
        return len(self.value)

    @property
    def shape(self) -> tuple[int, int]:
        return self.value.shape[-1], self.width

    def __call__(self, x: Float[Tensor, "rows tokens in"]) -> Float[Tensor, "rows tokens out"]:
        return self.writes @ self.value

    def weight(self) -> Float[Tensor, "*edits out in"]:
        raise SiteError("a value added at positions is not a change of a weight")

    def select(self, rows: Sequence[int]) -> Shift:
        require_rows(rows, self.edits)
        index = torch.tensor(rows, device=self.value.device)
        return Shift(self.value[index], self.writes[index], self.width)

    def tensors(self) -> dict[str, Tensor]:
        return {"value": self.value, "writes": self.writes}
