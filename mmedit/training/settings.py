"""Settings of the outer loop, and the schedule of its learning rates."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Tracker = Literal["tensorboard", "wandb", "trackio"]


class TrainingConfig(BaseModel):
    """Settings of the outer loop."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(default=30_000, ge=1)
    batch_size: int = Field(default=1, ge=1)
    """Edits per forward and process, each independent of the others."""
    accumulate: int = Field(default=1, ge=1)
    """Batches per step."""
    warmup_steps: int = Field(default=0, ge=0)
    final_lr_share: float = Field(default=1.0, ge=0, le=1)
    """Every learning rate falls along a cosine to this share of itself; 1: constant, as published.
    """
    grad_clip: float = Field(default=100.0, gt=0)
    max_loss: float = Field(default=1e4, gt=0)
    """A loss beyond it has exploded: training stops."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    max_seconds: float | None = Field(default=None, gt=0)
    """Stop after this wall time; the schedule follows whichever of steps and time is further along.
    """
    check_every: int = Field(default=1000, ge=1)
    """Steps between checkpoints (and validations, where there are validation cases)."""
    patience: int | None = Field(default=None, ge=1)
    """Stop after so many validations in a row without a better score."""
    report_every: int = Field(default=5, ge=1)
    trackers: tuple[Tracker, ...] = ()


def lr_share(step: int, progress: float, config: TrainingConfig) -> float:
    """Linear warm-up, then a cosine from 1 to `final_lr_share`."""
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return warmup * (config.final_lr_share + (1 - config.final_lr_share) * cosine)
