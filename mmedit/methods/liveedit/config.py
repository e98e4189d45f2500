"""Settings of LiveEdit."""

from __future__ import annotations

from pydantic import Field, model_validator

from mmedit.editors.objective import ObjectiveConfig
from mmedit.training.settings import TrainingConfig


class LiveEditConfig(ObjectiveConfig):
    """Settings of LiveEdit. Defaults are the paper's, for every VLM."""

    layer: int | None = None
    """Decoder layer whose output is edited, from 0; null: at 21/32 of the depth. Published: 21 of
    the 32 layers of BLIP-2, MiniGPT-4 and LLaVA.
    """
    module: int = Field(default=1024, ge=1)
    """Width of the extracts by which edits are found. Published: 1024."""
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
    c_base: float = Field(default=1.0, ge=0)
    """Weight of the request's own NLL (reliability). Published: 1."""
    c_edit: float = Field(default=1.0, ge=0)
    """Weight of the rephrase's NLL (text generality). Published: 1."""
    i_edit: float = Field(default=1.0, ge=0)
    """Weight of the other image's NLL (image generality). Published: 1."""
    c_loc: float = Field(default=0.0, ge=0, le=0)
    """Weight of text locality: 0, because a question without image is never edited."""
    i_loc: float = Field(default=1.0, ge=0)
    """Weight of KL(edited || base) on questions about another image. Published: 1."""
    c_soft: float = Field(default=1.0, ge=0)
    """Weight of the losses of the soft routing, by the question. Published: 1."""
    c_hard: float = Field(default=1.0, ge=0)
    """Weight of the losses of the hard routing, by the image. Published: 1."""
    training: TrainingConfig = TrainingConfig(batch_size=8)
    """Settings of the training loop. Published: 8 edits a step, 50 epochs."""

    @model_validator(mode="after")
    def _heads_divide(self) -> LiveEditConfig:
        if self.module % self.heads:
            raise ValueError(f"module={self.module} is not a multiple of heads={self.heads}")
        return self
