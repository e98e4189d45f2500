"""Settings of VisEdit."""

from __future__ import annotations

from pydantic import Field

from mmedit.editors.block_editor import BlockConfig
from mmedit.training.settings import TrainingConfig


class VisEditConfig(BlockConfig):
    """Settings of VisEdit. Defaults are the paper's."""

    layer: int | None = None
    """Decoder layer whose output is edited, from 0; null: at 18/32 of the depth. Published: 19 for
    BLIP-2, 18 for LLaVA, 17 for MiniGPT-4.
    """
    influence: int = Field(default=1024, ge=1)
    """Width of W₁ in the influence map. Published: 1024."""
    c_influence: float = Field(default=0.1, ge=0)
    """Weight of the losses of the influence map. Published: 0.1."""
    training: TrainingConfig = TrainingConfig(batch_size=4)
    """Settings of the training loop. Published: 4 edits a step."""
