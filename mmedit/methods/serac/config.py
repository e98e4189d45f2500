"""Settings of SERAC."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from mmedit.editors.objective import ObjectiveConfig
from mmedit.methods.serac.similarity import Distance
from mmedit.training.settings import TrainingConfig


class SERACConfig(ObjectiveConfig):
    """Settings of SERAC. Defaults are EasyEdit's for BLIP-2 (hparams/TRAINING/SERAC/blip2.yaml), if
    it has them.
    """

    after_fit: ClassVar[frozenset[str]] = frozenset({"threshold"})
    scope: Literal["text", "multimodal", "fused"] = "multimodal"
    """Parts that the scope compares: prompts (text, the paper's), images and prompts (multimodal),
    or prompts and what they attend to in their own images (fused, MSCKE's).
    """
    scope_encoder: str | None = None
    """Hugging Face encoder of the text scope, trained further; null: a new small one. EasyEdit:
    distilbert-base-cased.
    """
    sentence_encoder: str | None = None
    """Frozen sentence encoder of the prompts in any scope: all-MiniLM-L6-v2 (extra `retrieval`),
    a folder or a hub id; null: the scope's own encoder, or the texts of its towers.
    """
    clip: str | None = None
    """OpenCLIP model of the multimodal or fused scope, ARCHITECTURE/WEIGHTS; null: the VLM's own
    features.
    """
    scope_width: int = Field(default=128, ge=4, multiple_of=4)
    """Width of the scope's embeddings, if no pretrained encoder sets it; of the multimodal and the
    fused scope: of image part and text part each.
    """
    scope_layers: int = Field(default=2, ge=1)
    """Layers of a new encoder of the text scope."""
    distance: Distance = "squared_euclidean"
    """Distance d of two embeddings. Paper: squared_euclidean."""
    heads: int = Field(default=1, ge=1)
    """Number of parts that embeddings are cut into; the nearest part counts. 1: not cut."""
    bound: bool = False
    """Apply tanh to embeddings before they are compared."""
    scale: float = Field(default=1.0, gt=0)
    """Factor of the distance in s. Paper: 1."""
    threshold: float = Field(default=0.5, ge=0, le=1)
    """A question with s above this is answered by the counterfactual model. Paper: 0.5."""
    counterfactual: str | None = None
    """Pretrained causal language model with the VLM's tokenizer, for example facebook/opt-125m;
    null: a new small one.
    """
    counterfactual_width: int = Field(default=128, ge=8, multiple_of=8)
    """Width of a new counterfactual model."""
    counterfactual_layers: int = Field(default=3, ge=1)
    """Layers of a new counterfactual model."""
    c_scope: float = Field(default=1.0, ge=0)
    """Weight of the classification of pairs as in scope or not; 0: the mixture alone, as in
    EasyEdit.
    """
    c_end: float = Field(default=0.1, ge=0)
    """Weight of the counterfactual model's NLL of ending its answer."""
    lr: float = Field(default=1e-5, gt=0)
    """Learning rate. EasyEdit: 1e-5."""
    training: TrainingConfig = TrainingConfig(steps=50_000)
    """Settings of the training loop."""

    def idle(self) -> dict[str, str]:
        encoder = ("scope_encoder", "scope_layers")
        other = ("clip",) if self.scope == "text" else encoder
        idle: dict[str, str] = dict.fromkeys(other, f"with scope={self.scope}")
        if self.scope == "text" and self.sentence_encoder:
            idle |= dict.fromkeys((*encoder, "scope_width"), "with a sentence_encoder")
        elif self.scope == "text" and self.scope_encoder:
            idle |= dict.fromkeys(("scope_width", "scope_layers"), "with a scope_encoder")
        if self.counterfactual:
            new = ("counterfactual_width", "counterfactual_layers")
            idle |= dict.fromkeys(new, "with a pretrained counterfactual model")
        return idle

    @field_validator("clip")
    @classmethod
    def _clip_has_weights(cls, clip: str | None) -> str | None:
        if clip is not None and not all(clip.partition("/")):
            raise ValueError("expected ARCHITECTURE/WEIGHTS, for example ViT-B-32/openai")
        return clip

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> SERACConfig:
        if self.scope_width % self.heads:
            raise ValueError(
                f"scope_width {self.scope_width} cannot be cut into {self.heads} equal heads"
            )
        return self
