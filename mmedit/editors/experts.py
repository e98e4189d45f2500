"""Small experts at a decoder layer: units that read the hidden states and write to them.

Δ(h) = Σ_u w[b, u] write_u relu(read_u · LN(h))        at every position of row b
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mmedit.deltas import Delta, require_rows
from mmedit.errors import SiteError


@dataclass(frozen=True, eq=False, kw_only=True)
class Experts(Delta):
    """Units that all rows share, with weights of each row's own. Costs two products with all units
    at every position; a row whose weights are 0 stays as it is.
    """

    read: Float[Tensor, "units hidden"]
    write: Float[Tensor, "units hidden"]
    weights: Float[Tensor, "edits units"]
    norm: nn.LayerNorm

    @property
    def edits(self) -> int:
        return len(self.weights)

    @property
    def shape(self) -> tuple[int, int]:
        return self.write.shape[1], self.read.shape[1]

    def __call__(self, x: Float[Tensor, "rows tokens in"]) -> Float[Tensor, "rows tokens out"]:
        read = F.relu(self.norm(x.to(self.read)) @ self.read.T)
        return (read * self.weights.unsqueeze(1)) @ self.write

    def weight(self) -> Float[Tensor, "*edits out in"]:
        raise SiteError("experts at a decoder layer are not a change of a weight")

    def select(self, rows: Sequence[int]) -> Experts:
        require_rows(rows, self.edits)
        index = torch.tensor(rows, device=self.weights.device)
        weights = self.weights[index]
        return Experts(read=self.read, write=self.write, weights=weights, norm=self.norm)

    def tensors(self) -> dict[str, Tensor]:
        return {"read": self.read, "write": self.write, "weights": self.weights}
