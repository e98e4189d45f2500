"""Settings of LiveEdit."""

from __future__ import annotations

from pydantic import Field

from mmedit.editors.block_editor import BlockConfig
from mmedit.training.settings import TrainingConfig


class LiveEditConfig(BlockConfig):
    """Settings of LiveEdit. Defaults are the paper's, for every VLM."""

    layer: int | None = None
    """Decoder layer whose output is edited, from 0; null: at 21/32 of the depth. Published: 21 of
    the 32 layers of BLIP-2, MiniGPT-4 and LLaVA.
    """
    heads: int = Field(default=8, ge=1)
    """Heads of every attention; the widths of extracts and hidden states are multiples of it.
    Published: 8.
    """
    eqe: int = Field(default=4, ge=1)
    """Vectors in an extract. Published: 4."""
    rank: int = Field(default=4, ge=1)
    """Units of an expert. Published: 4."""
    lora_scale: float = Field(default=5.0, gt=0)
    """An expert's vectors are divided by lora_scale · √rank. Published: 5."""
    prototype: int = Field(default=32, ge=1)
    """Tokens of the learnt image that an edit's image must be nearer than. Published: as many as
    an image has.
    """
    lr: float = Field(default=1e-4, gt=0)
    """Learning rate of Adam. Published: 1e-4, and a tenth of it after 10,000 steps."""
    c_soft: float = Field(default=1.0, ge=0)
    """Weight of the losses of the soft routing, by the question. Published: 1."""
    c_hard: float = Field(default=1.0, ge=0)
    """Weight of the losses of the hard routing, by the image. Published: 1."""
    c_apart: float = Field(default=0.0, ge=0)
    """Weight of the loss of the hard routing on the images of other edits; 0: as published."""
    training: TrainingConfig = TrainingConfig(batch_size=8)
    """Settings of the training loop. Published: 8 edits a step, 50 epochs."""

    @property
    def routing_weights(self) -> dict[str, float]:
        """Weights of the losses of the routing, by name."""
        return {
            "soft_relative": self.c_soft,
            "soft_absolute": self.c_soft,
            "hard_neighbour": self.c_hard,
            "hard_prototype": self.c_hard,
            "hard_apart": self.c_apart,
        }
