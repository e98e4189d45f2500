"""Neurons beside a feed-forward block: they read what the block reads and add to what it gives.

    Δ(x) = Σ_j relu(key_j · x + bias_j) value_j

They act at the Linear that ends the block, but x is the input of the one that begins it. So they
are no change of a weight: no ΔW of either Linear does the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from mmedit.deltas import Delta, Sum, require_rows
from mmedit.errors import SiteError


@dataclass(frozen=True, eq=False)
class Neurons(Delta):
    """Δ(x) = Σ_j relu(key_j · x + bias_j) value_j, where x is the input of another Linear."""

    kind = "neurons"
    key: Float[Tensor, "*edits neurons read"]
    bias: Float[Tensor, "*edits neurons"]
    value: Float[Tensor, "*edits neurons out"]
    read_at: str
    """Name of the Linear whose input they read."""
    width: int
    """Width of the inputs of the Linear that they act at."""

    @property
    def reads(self) -> str:
        return self.read_at

    @property
    def edits(self) -> int | None:
        return len(self.key) if self.key.ndim == 3 else None

    @property
    def shape(self) -> tuple[int, int]:
        return self.value.shape[-1], self.width

    def __call__(self, x: Float[Tensor, "rows tokens read"]) -> Float[Tensor, "rows tokens out"]:
        return self.activation(x).relu() @ self.value

    def activation(
        self, x: Float[Tensor, "rows tokens read"]
    ) -> Float[Tensor, "rows tokens neurons"]:
        """Return key_j · x + bias_j."""
        return x.to(self.key) @ self.key.mT + self.bias.unsqueeze(-2)

    def weight(self) -> Float[Tensor, "*edits out in"]:
        raise SiteError(
            "neurons beside a feed-forward block are not a change of a weight; keep the edit as it "
            "is, and serve it with `mmedit serve`"
        )

    def select(self, rows: Sequence[int]) -> Neurons:
        if self.edits is None or list(rows) == list(range(self.edits)):
            return self
        require_rows(rows, self.edits)
        index = torch.tensor(rows, device=self.key.device)
        return replace(
            self,
            key=self.key.index_select(0, index),
            bias=self.bias.index_select(0, index),
            value=self.value.index_select(0, index),
        )

    def tensors(self) -> dict[str, Tensor]:
        name = torch.tensor(list(self.read_at.encode()), dtype=torch.uint8)
        width = torch.tensor(self.width)
        about = {"read_at": name.to(self.key.device), "width": width.to(self.key.device)}
        return {"key": self.key, "bias": self.bias, "value": self.value} | about

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> Neurons:
        name, width = bytes(tensors["read_at"].tolist()).decode(), int(tensors["width"])
        return cls(tensors["key"], tensors["bias"], tensors["value"], name, width)

    def beside(self, other: Delta) -> Neurons | None:
        if not isinstance(other, Neurons) or other.read_at != self.read_at:
            return None
        return replace(
            self,
            key=torch.cat([self.key, other.key], dim=-2),
            bias=torch.cat([self.bias, other.bias], dim=-1),
            value=torch.cat([self.value, other.value], dim=-2),
        )

    @property
    def parameters(self) -> int:
        values = sum(tensor.numel() for tensor in (self.key, self.bias, self.value))
        return values // (self.edits or 1)


def stacked(parts: Sequence[Neurons]) -> Neurons:
    """Return separate edits of one block one after the other. Those of fewer neurons get neurons
    that are 0 throughout.
    """
    most = max(part.key.shape[1] for part in parts)

    def cat(tensors: Sequence[Tensor]) -> Tensor:
        padded = [tensor.new_zeros(len(tensor), most, *tensor.shape[2:]) for tensor in tensors]
        for place, tensor in zip(padded, tensors, strict=True):
            place[:, : tensor.shape[1]] = tensor
        return torch.cat(padded)

    return replace(
        parts[0],
        key=cat([part.key for part in parts]),
        bias=cat([part.bias for part in parts]),
        value=cat([part.value for part in parts]),
    )


def by_input(delta: Delta) -> dict[str | None, Delta]:
    """Return the parts of a delta by the Linear that they read; None: the one that they act at."""
    parts: dict[str | None, list[Delta]] = {}
    for part in delta.parts if isinstance(delta, Sum) else (delta,):
        parts.setdefault(part.reads, []).append(part)
    return {
        reads: Sum(tuple(found)) if len(found) > 1 else found[0] for reads, found in parts.items()
    }


def read_by(deltas: Mapping[str, Delta]) -> tuple[str, ...]:
    """Return the Linears that deltas read beside those that they act at."""
    names = (reads for delta in deltas.values() for reads in by_input(delta))
    return tuple(dict.fromkeys(name for name in names if name is not None))
