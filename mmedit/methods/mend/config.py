"""Settings of MEND."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from mmedit.editors.config import SitesConfig
from mmedit.editors.objective import ObjectiveConfig
from mmedit.training.settings import TrainingConfig


class MENDConfig(SitesConfig, ObjectiveConfig):
    """Settings of MEND. Defaults are MMEdit's for BLIP-2 (hparams/TRAINING/MEND/blip2.yaml)."""

    rank: int = Field(default=1920, ge=1)
    """Maximum rank of the weight matrices of g. MMEdit: 1920."""
    hidden_layers: int = Field(default=1, ge=0)
    """Layers of g before its last one. MMEdit: 1."""
    norm: bool = True
    """Normalise x and δ with running statistics. MMEdit: true."""
    shared: bool = True
    """Share one g among all sites of a shape; false: one g per site. MMEdit: true."""
    combine: bool = True
    """Use one g on x and δ together; false: one network for x and one for δ. MMEdit: true."""
    sides: Literal["both", "x", "delta", "smaller"] = "both"
    """Sides that are transformed if `combine` is false; the other one is only normalised.
    "smaller" is the narrower one at each site (the paper's one-sided variant). MMEdit: both.
    """
    lr: float = Field(default=1e-6, gt=0)
    """Learning rate of g. MMEdit: 1e-6."""
    edit_lr: float = Field(default=1e-4)
    """Initial step size of every site. MMEdit: 1e-4."""
    lr_lr: float = Field(default=1e-4, ge=0)
    """Learning rate of the step sizes. MMEdit: 1e-4."""
    training: TrainingConfig = TrainingConfig(batch_size=2)
    """Settings of the training loop."""

    @model_validator(mode="after")
    def _combine_needs_both(self) -> MENDConfig:
        if self.combine and self.sides != "both":
            raise ValueError(f"combine transforms both sides; with sides={self.sides} set it false")
        return self
