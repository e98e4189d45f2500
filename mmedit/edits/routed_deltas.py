"""Deltas that act on some rows of a batch each.

No edit is copied for each row that it answers: the factors of all low-rank edits stand side by side
in one matrix product, of which each row keeps its own part, and a dense edit sees its rows alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from mmedit.deltas import Delta, LowRank, Sum, require_rows
from mmedit.neurons import by_input

Acting = tuple[frozenset[int], ...]
"""The numbers of the deltas that act on a row, by row."""
LARGEST_RANK = 128
"""A low-rank delta of a higher rank sees its own rows alone, as a dense one does."""


@dataclass(frozen=True, eq=False)
class RoutedLowRank(Delta):
    """Low-rank deltas side by side: factor r acts on the rows that delta owner[r] acts on."""

    u: Float[Tensor, "ranks out"]
    v: Float[Tensor, "ranks in"]
    owner: tuple[int, ...]
    acting: Acting

    @property
    def edits(self) -> int:
        return len(self.acting)

    @property
    def shape(self) -> tuple[int, int]:
        return self.u.shape[-1], self.v.shape[-1]

    @cached_property
    def _is_own(self) -> Tensor:
        """Whether a factor acts on a row, [rows, 1, ranks]."""
        own = [[[number in numbers for number in self.owner]] for numbers in self.acting]
        return torch.tensor(own, device=self.u.device)

    def __call__(self, x: Float[Tensor, "rows tokens in"]) -> Float[Tensor, "rows tokens out"]:
        return (x.to(self.v) @ self.v.mT).where(self._is_own, 0) @ self.u

    def weight(self) -> Float[Tensor, "edits out in"]:
        return (self.u.mT * self._is_own) @ self.v

    def select(self, rows: Sequence[int]) -> RoutedLowRank:
        require_rows(rows, self.edits)
        return replace(self, acting=tuple(self.acting[row] for row in rows))

    def tensors(self) -> dict[str, Tensor]:
        return {"u": self.u, "v": self.v}

    @property
    def parameters(self) -> int:
        return int(self._is_own.sum(-1).max()) * sum(self.shape)


@dataclass(frozen=True, eq=False)
class Routed(Delta):
    """Deltas that each see their own rows alone; `deltas` is by number, and all read one Linear."""

    deltas: dict[int, Delta]
    acting: Acting

    @property
    def edits(self) -> int:
        return len(self.acting)

    @property
    def reads(self) -> str | None:
        return next(iter(self.deltas.values())).reads

    @property
    def shape(self) -> tuple[int, int]:
        return next(iter(self.deltas.values())).shape

    def __call__(self, x: Float[Tensor, "rows tokens in"]) -> Float[Tensor, "rows tokens out"]:
        total = x.new_zeros(*x.shape[:-1], self.shape[0], dtype=torch.float32)
        for number, delta in self.deltas.items():
            own = [row for row, numbers in enumerate(self.acting) if number in numbers]
            if own:
                index = torch.tensor(own, device=x.device)
                change = delta(x.index_select(0, index).flatten(0, 1).unsqueeze(0)).to(x.device)
                change = change.reshape(len(own), x.shape[1], -1)
                total = total.to(change.dtype).index_add(0, index, change)
        return total

    def weight(self) -> Float[Tensor, "edits out in"]:
        weights = {number: delta.weight() for number, delta in self.deltas.items()}
        nothing = torch.zeros_like(next(iter(weights.values())))
        return torch.stack(
            [
                sum((weights[n] for n in sorted(numbers & weights.keys())), nothing)
                for numbers in self.acting
            ]
        )

    def select(self, rows: Sequence[int]) -> Routed:
        require_rows(rows, self.edits)
        return replace(self, acting=tuple(self.acting[row] for row in rows))

    def tensors(self) -> dict[str, Tensor]:
        return {
            f"{number}.{name}": tensor
            for number, delta in self.deltas.items()
            for name, tensor in delta.tensors().items()
        }

    @property
    def parameters(self) -> int:
        sizes = {number: delta.parameters for number, delta in self.deltas.items()}
        return max(sum(sizes.get(number, 0) for number in numbers) for numbers in self.acting)


def route(deltas: dict[int, Delta], acting: Acting) -> Delta:
    """Return the delta under which row i has the deltas of the numbers acting[i].

    There must be a delta, none may have an edits axis, and all low-rank ones must be on one device.
    """
    low: dict[int, LowRank] = {}
    apart: dict[str | None, dict[int, Delta]] = {}
    for number, delta in deltas.items():
        for reads, part in by_input(delta).items():
            if isinstance(part, LowRank) and len(part.u) <= LARGEST_RANK:
                low[number] = part
            else:
                apart.setdefault(reads, {})[number] = part
    parts: list[Delta] = []
    if low:
        u, v = (torch.cat([delta.tensors()[name] for delta in low.values()]) for name in ("u", "v"))
        owner = tuple(number for number, delta in low.items() for _ in delta.tensors()["u"])
        parts.append(RoutedLowRank(u, v, owner, acting))
    parts += [Routed(found, acting) for found in apart.values()]
    return parts[0] if len(parts) == 1 else Sum(tuple(parts))
