"""The settings of WISE."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import Field, model_validator

from mmedit.editors.config import EditorConfig, layer_in
from mmedit.methods.wise.memories import Rules
from mmedit.methods.wise.search import Descent
from mmedit.vlm.interface import VLM

MOST_KEPT = 64
"""Irrelevant prompts that `fit` keeps."""


class WISEConfig(EditorConfig):
    """Settings of WISE. Published values are EasyEdit's for text; for VLMs it has 10 steps."""

    after_fit: ClassVar[frozenset[str]] = frozenset(
        {"alpha", "beta", "gamma", "steps", "lr", "weight_decay", "mask_ratio", "norm_constraint"}
        | {"stop_loss", "irrelevant", "act_ratio", "save_freq", "merge_freq", "density", "retrieve"}
    )
    site: str | None = None
    """Name of the Linear whose copy is trained; null: the one that ends the feed-forward block of
    `layer`. Published: fc1 of layer 23 of BLIP-2's OPT.
    """
    layer: int | None = None
    """Decoder layer of that block, from 0; null: at two thirds of the depth."""
    alpha: float = Field(default=5.0, ge=0)
    """Distance that irrelevant prompts should stay below, in `unit`s. Published: 5."""
    beta: float = Field(default=20.0, ge=0)
    """Distance that a request should reach, in `unit`s. Published: 20."""
    gamma: float = Field(default=10.0, ge=0)
    """Least difference of the two, in `unit`s. Published: 10."""
    unit: float | None = Field(default=None, gt=0)
    """Length that is 1 for alpha, beta and gamma; null: a twentieth of the usual length of
    σ(Wx + b) at a prompt's text token, which `fit` measures. Published: 1.
    """
    steps: int = Field(default=70, ge=1)
    """Steps of gradient descent. Published: 70."""
    lr: float = Field(default=1.0, gt=0)
    """Learning rate. Published: 1.0."""
    weight_decay: float = Field(default=1e-5, ge=0)
    """Weight decay, on the whole weight W'. Published: 1e-5."""
    stop_loss: float = Field(default=0.02, ge=0)
    """The training of an edit ends when its loss, hinges included, is below this. Published: 0.02.
    """
    mask_ratio: float = Field(default=0.2, gt=0, le=1)
    """Share of the entries that may change, drawn anew for every memory. Published: 0.2."""
    norm_constraint: float | None = Field(default=1.0, gt=0)
    """Largest change of an entry; null: no limit. Published: 1.0."""
    irrelevant: int = Field(default=8, ge=1, le=MOST_KEPT)
    """Irrelevant prompts that an edit is trained on, drawn anew for every edit. Published: 1."""
    act_ratio: float = Field(default=0.4, ge=0)
    """Share of the least distance of a memory's edits that a question must exceed. Published: 0.4.
    """
    save_freq: int = Field(default=500, ge=1)
    """Edits after which another memory begins. Published: 500."""
    merge_freq: int = Field(default=1000, ge=1)
    """Edits after which memories are merged. Published: 1000."""
    density: float = Field(default=0.53, gt=0, le=1)
    """Share of the entries of a memory that a merge keeps. Published: 0.53."""
    retrieve: bool = True
    """Whether every merge leaves a memory of its own, of which the best answers; false: a merge
    takes in the one before it.
    """
    paper_faults: bool = False
    """Whether to do as the published code does where it is not as the paper means it, to see what
    that is worth: no bias on the side, distances over all tokens, the largest one in a long
    question.
    """

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.merge_freq < self.save_freq:
            raise ValueError(
                f"merge_freq is {self.merge_freq} and save_freq {self.save_freq}; expected a "
                "merge_freq that is not smaller"
            )
        return self

    def idle(self) -> dict[str, str]:
        return {"layer": "beside site"} if self.site is not None else {}

    def site_in(self, vlm: VLM) -> str:
        """Return the Linear whose copy is trained. Raises SiteError."""
        if self.site is not None:
            vlm.shape(self.site)
            return self.site
        sites = vlm.value_sites
        layer = layer_in(
            len(sites),
            self.layer,
            usual=(2 * len(sites)) // 3,
            unknown="the feed-forward blocks of this VLM's language model are not known by name; "
            "name a Linear of it with editor.site",
        )
        return sites[layer]

    @property
    def rules(self) -> Rules:
        """When memories are closed and merged."""
        return Rules(self.save_freq, self.merge_freq, self.density, self.retrieve)

    @property
    def descent(self) -> Descent:
        """How a memory is trained."""
        return Descent(self.steps, self.lr, self.weight_decay, self.norm_constraint, self.stop_loss)
