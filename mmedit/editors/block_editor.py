"""Editors that learn a network which reads and writes the output of one decoder layer, for
questions about images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self, TypeVar

import torch
from pydantic import Field, model_validator
from torch import nn

from mmedit.cases import EditCase
from mmedit.editors.blocks import block_layer, require_image_cases
from mmedit.editors.learned import LearnedEditor
from mmedit.editors.memory import MemoryEditor
from mmedit.editors.objective import ObjectiveConfig, asked, require_probes
from mmedit.training.learner import Learner
from mmedit.vlm.interface import VLM
from mmedit.vlm.prepared import Asked


class BlockConfig(ObjectiveConfig):
    """Settings of editors that learn at one decoder layer. Defaults are the papers'."""

    layer: int | None = None
    """Decoder layer whose output is edited, from 0; null: at the published share of the depth."""
    module: int = Field(default=1024, ge=1)
    """Width of the attention beside the layer. Published: 1024."""
    heads: int = Field(default=8, ge=1)
    """Heads of every attention; `module` is a multiple of it. Published: 8."""
    lr: float = Field(default=1e-4, gt=0)
    """Learning rate of Adam. Published: 1e-4."""
    c_base: float = Field(default=1.0, ge=0)
    """Weight of the request's own NLL (reliability). Published: 1."""
    c_edit: float = Field(default=1.0, ge=0)
    """Weight of the rephrase's NLL (text generality). Published: 1."""
    i_edit: float = Field(default=1.0, ge=0)
    """Weight of the other image's NLL (image generality). Published: 1."""
    c_loc: float = Field(default=0.0, ge=0, le=0)
    """Weight of text locality: 0, because a question without image is never edited."""
    i_loc: float = Field(default=1.0, ge=0)
    """Weight of the KL divergence on questions about another image. Published: 1."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.module % self.heads:
            raise ValueError(f"module={self.module} is not a multiple of heads={self.heads}")
        return self


Config = TypeVar("Config", bound=BlockConfig)


class BlockEditor(MemoryEditor[Config], LearnedEditor[Config]):
    """An editor whose network stands beside one decoder layer. A subclass gives `build`, the
    entries of its memory, and a `BlockLearner`.
    """

    depth: ClassVar[float]
    """Share of the layers before the edited one, if no layer is set."""
    learner_class: ClassVar[type[BlockLearner]]
    """The outer loss."""

    def require_fits(self, vlm: VLM) -> None:
        super().require_fits(vlm)
        self._layer_in(vlm)

    def facts(self, vlm: VLM) -> dict[str, Any]:
        return {"layer": self._layer_in(vlm), "hidden": vlm.frozen.hidden}

    def asked(self, vlm: VLM, cases: Sequence[EditCase]) -> Asked:
        site = vlm.layer_sites[self._layer_in(vlm)]
        return asked(cases, list(self.config.probe_weights), (site,))

    def learner(self, vlm: VLM, network: nn.Module, cases: Sequence[EditCase]) -> Learner:
        probes = list(self.config.probe_weights)
        require_probes(cases, probes, self.method)
        require_image_cases(cases, probes, self.label)
        return self.learner_class(vlm, network, self.config, self._layer_in(vlm))

    @property
    def layer(self) -> int:
        """The layer that the network was trained for."""
        return self.learnt.facts["layer"]

    def _layer_in(self, vlm: VLM) -> int:
        return block_layer(vlm, self.config.layer, self.depth)


class BlockLearner(Learner):
    """Base of the outer losses of these editors."""

    def __init__(self, vlm: VLM, network: nn.Module, config: Any, layer: int) -> None:
        super().__init__()
        self.network: Any = network
        self.vlm = vlm
        self.config = config
        self.layer = layer

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.network.parameters(), lr=self.config.lr)
