"""UltraEdit's normaliser: mean and standard deviation of z = [h; g] over all tokens so far.

Blocks of tokens are merged exactly (Chan et al. 1979). The published code counts too much variance
per block and turns NaN with a block of one token; this does neither.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mmedit.errors import EditorError

EPSILON = torch.finfo(torch.float32).eps
"""Added to the standard deviation before the division."""
CONSTANT = 1e-12
"""Largest standard deviation of a constant unit, as a share of its mean: rounding in float64."""


@dataclass(frozen=True, eq=False)
class Normaliser:
    """Running statistics of one weight shape, per unit of z = [h; g], in float64."""

    count: int
    """Number of tokens."""
    mean: Float[Tensor, " width"]
    squares: Float[Tensor, " width"]
    """Sum of squared deviations from the mean, per unit."""

    @classmethod
    def empty(cls, width: int, device: torch.device | str = "cpu") -> Normaliser:
        """Return the statistics of no token; `width` is in + out of the weight."""
        zeros = torch.zeros(width, dtype=torch.float64, device=device)
        return cls(0, zeros, zeros)

    def with_rows(self, z: Float[Tensor, "tokens width"]) -> Normaliser:
        """Return the statistics with more tokens, the same however tokens are cut into blocks."""
        if not len(z):
            return self
        z = z.double()
        count, mean = self.count + len(z), z.mean(0)
        away = mean - self.mean
        return Normaliser(
            count,
            self.mean + away * (len(z) / count),
            self.squares
            + (z - mean).square().sum(0)
            + away.square() * (self.count * len(z) / count),
        )

    def to(self, device: torch.device) -> Normaliser:
        """Return the statistics on a device."""
        return Normaliser(self.count, self.mean.to(device), self.squares.to(device))

    @property
    def std(self) -> Float[Tensor, " width"]:
        """Unbiased standard deviation of each unit. Raises EditorError for less than two tokens."""
        if self.count < 2:
            raise EditorError(
                f"the normaliser has seen {self.count} tokens; expected at least 2, better some "
                "thousand; fit the editor on more training cases"
            )
        return (self.squares / (self.count - 1)).sqrt()

    def normalise(self, z: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
        """Return (z - mean) / (std + EPSILON), in float64.

        A unit that was constant so far gives 0: divided by EPSILON alone, the first token in which
        it moves would outweigh all other units.
        """
        std = self.std
        varies = std > CONSTANT * self.mean.abs()
        return (z.double() - self.mean) * (varies / (std + EPSILON))
