"""A value that is added at some positions to the output of a Linear, whatever its input is.

Value vectors are searched for with it, and edits that live beside the model write their values with
it. It is no change of a weight, so it acts inside one call and is in no edit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mmedit.adapters.places import Places
from mmedit.deltas import Delta, require_rows
from mmedit.errors import SiteError


@dataclass(frozen=True, eq=False)
class Shift(Delta):
    """Δ(x)[b, t] = Σ_k writes[b, t, k] value[b, k], in the first forward of a call alone: while an
    answer is generated, its positions are those of the prompt.
    """

    of_prompt: ClassVar[bool] = True
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
        # A part of a batch may be shorter: what it lacks is padding on the left.
        return self.writes[:, -x.shape[1] :] @ self.value

    def weight(self) -> Float[Tensor, "*edits out in"]:
        raise SiteError("a value added at positions is not a change of a weight")

    def select(self, rows: Sequence[int]) -> Shift:
        require_rows(rows, self.edits)
        index = torch.tensor(rows, device=self.value.device)
        return Shift(self.value[index], self.writes[index], self.width)

    def for_generation(self, places: Places) -> Shift:
        """Return the shift for the prompts alone, padded on the left, as a generation reads them.

        `places` are those that it was made with.
        """
        last, before = places.last_prompt, places.before_answer
        longest = int(before.sum(1).max())
        index = last.unsqueeze(1) + torch.arange(1 - longest, 1, device=last.device)
        there = index.clamp(min=0)
        writes = self.writes.gather(1, there.unsqueeze(-1).expand(-1, -1, self.writes.shape[2]))
        kept = (index >= 0) & before.gather(1, there)
        return Shift(self.value, writes * kept.unsqueeze(-1), self.width)

    def tensors(self) -> dict[str, Tensor]:
        return {"value": self.value, "writes": self.writes}
