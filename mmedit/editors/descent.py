"""Descent of separate edits side by side: factors to begin with, and steps for those not done."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def initial_factor(
    rank: int, width: int, generator: torch.Generator
) -> Float[Tensor, "rank width"]:
    """Return the factor that reads the input, uniform within ±1/√width, as peft begins LoRA."""
    return (2 * torch.rand(rank, width, generator=generator) - 1) / width**0.5


@torch.no_grad()
def step_undone(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[Float[Tensor, "edits *_"]],
    done: Bool[Tensor, " edits"],
) -> None:
    """Do one step of the optimiser, whose gradients are set. Edits that are done keep their values,
    which their gradients and the optimiser's memory would still move.
    """
    kept = [parameter[done] for parameter in parameters]
    optimizer.step()
    for parameter, values in zip(parameters, kept, strict=True):
        parameter[done] = values
