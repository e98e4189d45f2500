"""Settings of the training loop, and the schedule of its learning rates."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from mmedit.settings import Settings

Tracker = Literal["tensorboard", "wandb", "trackio"]


class TrainingConfig(Settings):
    """Settings of the training loop."""

    steps: int = Field(default=30_000, ge=1)
    """Optimiser steps."""
    batch_size: int = Field(default=1, ge=1)
    """Edits per forward and process, each independent of the others."""
    accumulate: int = Field(default=1, ge=1)
    """Batches per optimiser step; their gradients are averaged."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the learning rates rise linearly from 0; 0: no warm-up."""
    final_lr_share: float = Field(default=1.0, ge=0, le=1)
    """Share of itself to which every learning rate falls along a cosine; 1: constant, as in the
    published code.
    """
    grad_clip: float = Field(default=100.0, gt=0)
    """Maximum norm of the gradient; a longer gradient is scaled down to it."""
    max_loss: float = Field(default=1e4, gt=0)
    """Training stops with an error if the loss is larger than this."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """Number format of the forward pass; parameters stay float32."""
    max_seconds: float | None = Field(default=None, gt=0)
    """Stop after this wall time, in seconds. The learning rates then follow time or steps,
    whichever is further along.
    """
    check_every: int = Field(default=1000, ge=1)
    """Steps between checkpoints, and between validations if there are validation cases."""
    patience: int | None = Field(default=None, ge=1)
    """Stop after this many validations in a row without a better score; null: never."""
    report_every: int = Field(default=5, ge=1)
    """Steps between reports of the figures."""
    trackers: tuple[Tracker, ...] = ()
    """Experiment trackers that get every report: tensorboard, wandb, trackio."""


def lr_share(step: int, share_done: float, config: TrainingConfig) -> float:
    """Return the factor of every learning rate: a linear warm-up, then a cosine from 1 to
    `final_lr_share`. `share_done` is how far training has come, from 0 to 1.
    """
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    cosine = 0.5 * (1 + math.cos(math.pi * share_done))
    return warmup * (config.final_lr_share + (1 - config.final_lr_share) * cosine)
