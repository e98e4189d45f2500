"""The outer loop for editors that learn: batches of training cases, a loss, an optimiser. It knows
no method.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from mmedit.cases import EditCase
from mmedit.errors import DataError, TrainingError

log = logging.getLogger(__name__)

Report = Callable[[int, int, str], None]
"""Called with (steps done, steps in all, figures)."""

OuterLoss = Callable[[Sequence[EditCase]], tuple[Tensor, Mapping[str, Tensor]]]
"""From a batch of cases to the loss (with graph) and figures to show (0-d tensors, without graph).
"""


class TrainingConfig(BaseModel):
    """Settings of the outer loop."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(default=30_000, ge=1)
    batch_size: int = Field(default=1, ge=1)
    """Edits per step, each independent of the others."""
    warmup_steps: int = Field(default=0, ge=0)
    final_lr_share: float = Field(default=1.0, ge=0, le=1)
    """Every learning rate falls along a cosine to this share of itself; 1: constant, as published.
    """
    grad_clip: float = Field(default=100.0, gt=0)
    max_seconds: float | None = Field(default=None, gt=0)
    """Stop after this wall time; the schedule follows whichever of steps and time is further along.
    """
    report_every: int = Field(default=5, ge=1)


def train(
    optimizer: torch.optim.Optimizer,
    loss_of: OuterLoss,
    cases: Sequence[EditCase],
    config: TrainingConfig,
    *,
    seed: int,
    report: Report,
) -> int:
    """Run the outer loop and return the number of steps done. One call of `loss_of` and one
    backward per step.

    Raises TrainingError with step and case ids when the loss or a gradient is NaN or infinite; the
    parameters are then those of the last good step.
    """
    if not cases:
        raise DataError("training needs cases; none were given")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    base_lrs = [group["lr"] for group in optimizer.param_groups]
    order = _Order(len(cases), config.batch_size, seed)
    started = time.perf_counter()
    for step in range(config.steps):
        elapsed = time.perf_counter() - started
        progress = max(
            step / config.steps, elapsed / config.max_seconds if config.max_seconds else 0.0
        )
        if progress >= 1:
            return step
        for group, lr in zip(optimizer.param_groups, base_lrs, strict=True):
            group["lr"] = lr * _schedule(step, progress, config)
        batch = [cases[index] for index in order.next()]
        optimizer.zero_grad(set_to_none=True)
        loss, figures = loss_of(batch)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, config.grad_clip)
        if not (math.isfinite(norm.item()) and math.isfinite(loss.item())):
            raise TrainingError(
                f"step {step}: loss {loss.item()}, gradient norm {norm.item()} on cases "
                f"{', '.join(case.id for case in batch)}. Lower the learning rate; the weights "
                f"are those of step {step - 1}."
            )
        optimizer.step()
        if step % config.report_every == 0 or step + 1 == config.steps:
            shown = {"loss": loss.item(), **{name: value.item() for name, value in figures.items()}}
            log.info(json.dumps({"step": step, **shown}))
            report(
                step + 1,
                config.steps,
                " ".join(f"{name} {value:.3f}" for name, value in shown.items()),
            )
    return config.steps


def _schedule(step: int, progress: float, config: TrainingConfig) -> float:
    """Linear warm-up, then a cosine from 1 to `final_lr_share`."""
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return warmup * (config.final_lr_share + (1 - config.final_lr_share) * cosine)


class _Order:
    """Endless passes over the cases, each in its own random order; batches are cut across the
    passes.
    """

    def __init__(self, cases: int, batch_size: int, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._cases = cases
        self._batch_size = batch_size
        self._left: list[int] = []

    def next(self) -> list[int]:
        while len(self._left) < self._batch_size:
            self._left += torch.randperm(self._cases, generator=self._generator).tolist()
        batch, self._left = self._left[: self._batch_size], self._left[self._batch_size :]
        return batch
