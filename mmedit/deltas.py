"""A weight edit as data: `y = W x + b` becomes `y = W x + b + Δ(x)`, where Δ(x) = U^T (V x) or
Δ(x) = ΔW x.

A delta may have a leading `edits` axis: then row i of a batch is answered under edit i alone. How
deltas act in a network is in `mmedit.vlm.acting`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmedit.errors import SiteError, did_you_mean


class Delta(ABC):
    """An addition to the output of one `nn.Linear`; or to that of a decoder layer, which is x."""

    of_prompt: ClassVar[bool] = False
    """Whether it acts in the first forward of a call alone, which reads the prompt."""

    kind: ClassVar[str]
    """Name of this kind of delta in files."""

    @property
    def reads(self) -> str | None:
        """Name of the Linear whose input is x; None for the one that it acts at. A delta that reads
        another one is not a change of a weight.
        """
        return None

    @property
    @abstractmethod
    def edits(self) -> int | None:
        """Length of the edits axis; None for one edit of all rows."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(out, in) of the weight."""

    @abstractmethod
    def __call__(self, x: Float[Tensor, "rows tokens in"]) -> Float[Tensor, "rows tokens out"]:
        """Return Δ(x), in the delta's own dtype."""

    @abstractmethod
    def weight(self) -> Float[Tensor, "*edits out in"]:
        """Return Δ as a matrix to add to the weight (export)."""

    @abstractmethod
    def select(self, rows: Sequence[int]) -> Delta:
        """Return the delta under which row i is answered by edit rows[i].

        A delta without edits axis returns itself.
        """

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that a file stores, by name."""

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> Delta:
        """Return the delta that gave these `tensors`."""
        return cls(**tensors)

    def beside(self, other: Delta) -> Delta | None:
        """Return one delta in place of both; None if they must stay apart. It is asked of deltas
        that read another Linear.
        """
        return None

    @property
    def parameters(self) -> int:
        """Number of values in one edit."""
        return sum(tensor.numel() for tensor in self.tensors().values()) // (self.edits or 1)


@dataclass(frozen=True, eq=False)
class LowRank(Delta):
    """Δ(x) = Σ_r u_r (v_r · x); the factors of rank r are u[r] and v[r]."""

    kind = "low_rank"
    u: Float[Tensor, "*edits rank out"]
    v: Float[Tensor, "*edits rank in"]
    _: KW_ONLY
    repeats: int = 1
    """How often separate edits are selected one after the other: row i is answered under edit i
    modulo len(u).
    """

    @property
    def edits(self) -> int | None:
        return len(self.u) * self.repeats if self.u.ndim == 3 else None

    @property
    def shape(self) -> tuple[int, int]:
        return self.u.shape[-1], self.v.shape[-1]

    def __call__(self, x: Float[Tensor, "rows tokens in"]) -> Float[Tensor, "rows tokens out"]:
        if self.repeats == 1:
            return x.to(self.v) @ self.v.mT @ self.u
        # Rows of one edit go side by side: the factors are not copied, and products are larger.
        of_edit = x.to(self.v).unflatten(0, (self.repeats, -1)).transpose(0, 1).flatten(1, 2)
        change = of_edit @ self.v.mT @ self.u
        return change.unflatten(1, (self.repeats, -1)).transpose(0, 1).flatten(0, 1)

    def weight(self) -> Float[Tensor, "*edits out in"]:
        each = self.spread()
        return each.u.mT @ each.v

    def spread(self) -> LowRank:
        """Return the delta with factors of its own for every row."""
        if self.repeats == 1:
            return self
        return LowRank(self.u.repeat(self.repeats, 1, 1), self.v.repeat(self.repeats, 1, 1))

    def select(self, rows: Sequence[int]) -> LowRank:
        if self.edits is None or list(rows) == list(range(self.edits)):
            return self
        require_rows(rows, self.edits)
        each = list(range(len(self.u)))
        chosen = [row % len(each) for row in rows]
        if rows and chosen == each * (len(rows) // len(each)):
            return LowRank(self.u, self.v, repeats=len(rows) // len(each))
        index = torch.tensor(chosen, device=self.u.device)
        return LowRank(self.u.index_select(0, index), self.v.index_select(0, index))

    def tensors(self) -> dict[str, Tensor]:
        each = self.spread()
        return {"u": each.u, "v": each.v}


@dataclass(frozen=True, eq=False)
class Dense(Delta):
    """Δ(x) = ΔW x."""

    kind = "dense"
    change: Float[Tensor, "*edits out in"]

    @property
    def edits(self) -> int | None:
        return len(self.change) if self.change.ndim == 3 else None

    @property
    def shape(self) -> tuple[int, int]:
        return self.change.shape[-2], self.change.shape[-1]

    def __call__(self, x: Float[Tensor, "rows tokens in"]) -> Float[Tensor, "rows tokens out"]:
        return x.to(self.change) @ self.change.mT

    def weight(self) -> Float[Tensor, "*edits out in"]:
        return self.change

    def select(self, rows: Sequence[int]) -> Dense:
        if self.edits is None or list(rows) == list(range(self.edits)):
            return self
        require_rows(rows, self.edits)
        index = torch.tensor(rows, device=self.change.device)
        return Dense(self.change.index_select(0, index))

    def tensors(self) -> dict[str, Tensor]:
        return {"change": self.change}


@dataclass(frozen=True, eq=False)
class Sum(Delta):
    """Deltas at one site that cannot be merged without cost.

    These are separate edits of two kinds, separate edits beside one of all rows, or deltas that
    read different Linears (`mmedit.neurons.by_input`).
    """

    kind = "sum"
    parts: tuple[Delta, ...]

    @property
    def edits(self) -> int | None:
        return next((part.edits for part in self.parts if part.edits is not None), None)

    @property
    def parameters(self) -> int:
        return sum(part.parameters for part in self.parts)

    @property
    def shape(self) -> tuple[int, int]:
        return self.parts[0].shape

    def __call__(self, x: Float[Tensor, "rows tokens in"]) -> Float[Tensor, "rows tokens out"]:
        total = self.parts[0](x)
        for part in self.parts[1:]:
            total = total + part(x)
        return total

    def weight(self) -> Float[Tensor, "*edits out in"]:
        total = self.parts[0].weight()
        for part in self.parts[1:]:
            total = total + part.weight()
        return total

    def select(self, rows: Sequence[int]) -> Sum:
        return Sum(tuple(part.select(rows) for part in self.parts))

    def tensors(self) -> dict[str, Tensor]:
        return {
            f"{number}.{part.kind}.{name}": tensor
            for number, part in enumerate(self.parts)
            for name, tensor in part.tensors().items()
        }


def require_rows(rows: Sequence[int], edits: int) -> None:
    """Raise SiteError if a row is to be answered under an edit that does not exist."""
    for row in rows:
        if not 0 <= row < edits:
            raise SiteError(
                f"row {row} was selected of {edits} separate edits; expected 0 to {edits - 1}"
            )


def compose(first: Delta, second: Delta) -> Delta:
    """Return the delta that does what both do.

    Deltas of all rows become one, whose cost does not grow with their number; separate edits are
    merged if they are of the same kind. Raises SiteError if they do not fit together.
    """
    if first.shape != second.shape:
        raise SiteError(f"deltas of shapes {first.shape} and {second.shape} cannot act at one site")
    if None not in (first.edits, second.edits) and first.edits != second.edits:
        raise SiteError(
            f"one delta has {first.edits} edits and the other {second.edits}; select the same "
            "rows of both"
        )
    parts = list(first.parts) if isinstance(first, Sum) else [first]
    for part in second.parts if isinstance(second, Sum) else (second,):
        for place, there in enumerate(parts):
            if merged := _merge(there, part):
                parts[place] = merged
                break
        else:
            parts.append(part)
    return parts[0] if len(parts) == 1 else Sum(tuple(parts))


def _merge(first: Delta, second: Delta) -> Delta | None:
    if first.edits != second.edits:
        return None
    if first.reads or second.reads:
        return first.beside(second)
    if isinstance(first, LowRank) and isinstance(second, LowRank):
        first, second = first.spread(), second.spread()
        if _read_alike(first.v, second.v):
            return LowRank(first.u + second.u, first.v)
        joined = LowRank(
            torch.cat([first.u, second.u], dim=-2), torch.cat([first.v, second.v], dim=-2)
        )
        return joined if joined.edits is not None else _cheapest(joined)
    if first.edits is None or (isinstance(first, Dense) and isinstance(second, Dense)):
        return Dense(_added(first, second))
    return None


def _read_alike(first: Tensor, second: Tensor) -> bool:
    """Tell whether two low-rank deltas read the same of an input, as those of M-ORE do."""
    return first is second or (
        first.shape == second.shape and first.dtype == second.dtype and torch.equal(first, second)
    )


def _added(first: Delta, second: Delta) -> Tensor:
    if isinstance(first, Dense) and isinstance(second, LowRank):  # every edit of a long sequence
        u, v = second.u.to(first.change), second.v.to(first.change)
        return torch.addmm(first.change, u.mT, v)  # one pass over the matrix in place of two
    return first.weight() + second.weight()


def _cheapest(delta: LowRank) -> Delta:
    """Return the delta as one matrix if that takes fewer numbers."""
    (out, in_), rank = delta.shape, delta.u.shape[-2]
    return Dense(delta.weight()) if rank * (out + in_) > out * in_ else delta


def compose_all(first: Mapping[str, Delta], second: Mapping[str, Delta]) -> dict[str, Delta]:
    """Compose deltas site by site."""
    both = {site: compose(first[site], second[site]) for site in first.keys() & second.keys()}
    return {**first, **second, **both}


def together(separate: Mapping[str, LowRank]) -> dict[str, Delta]:
    """Return separate edits as one edit of all rows, their sum."""
    return {
        site: _cheapest(LowRank(u=delta.u.flatten(0, -2), v=delta.v.flatten(0, -2)))
        for site, delta in separate.items()
    }


def fold(weight: Float[Tensor, "out in"], delta: Delta) -> Float[Tensor, "*edits out in"]:
    """Return the edited weight, in the weight's dtype. Half precision may round the edit away."""
    return (weight.float() + delta.weight().float()).to(weight.dtype)


def linear_at(network: nn.Module, site: str) -> nn.Linear:
    """Return the Linear of that name. Raises SiteError, which tells the nearest name."""
    try:
        module = network.get_submodule(site)
    except AttributeError:
        names = [name for name, found in network.named_modules() if isinstance(found, nn.Linear)]
        near = did_you_mean(site, names, cutoff=0.3)
        raise SiteError(f"the network has no Linear named {site!r}.{near}") from None
    if not isinstance(module, nn.Linear):
        raise SiteError(f"{site} is a {type(module).__name__}; an edit site must be an nn.Linear")
    return module
