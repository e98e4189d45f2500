"""SERAC (Mitchell et al. 2022): edits are kept in a cache beside the VLM, and no weight changes.

    s = max_i exp(-scale · d(scope(question), scope(edit_i))²)

A question with s > 0.5 is answered by a small counterfactual model, which is told the nearest
edit; any other one by the VLM. For training both are mixed:

    log((1 - s) · p_base + s · p_counterfactual)

Losses: the published one on the mixture (`mmedit.editors.objective`; `c_base`, `c_edit`, `i_edit`,
`c_loc`, `i_loc`), and, weighed by `c_scope`, the original paper's classification of which question
is in which edit's scope, with pairs from all cases of a batch. Differences from EasyEdit's
SERAC_MULTI, each of which is a fault there: no answer is shown to the scope; the projection that
lets the counterfactual model see the image is trained, and kept; image locality is trained on
(`i_loc=0`: as there); the cache holds all edits; the counterfactual model learns where answers end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from mmedit.cases import EditCase, Example, Probe
from mmedit.editors.base import EditorConfig
from mmedit.editors.learned import LearnedEditor
from mmedit.editors.objective import ObjectiveConfig, groups, outcome, require_probes
from mmedit.methods.serac.counterfactual import Counterfactual, counterfactual_facts
from mmedit.methods.serac.memory import SERACVLM, Memory, SoftSERACVLM, remember
from mmedit.methods.serac.scope import (
    MultimodalScope,
    Scope,
    TextScope,
    multimodal_scope_facts,
    text_scope_facts,
)
from mmedit.methods.serac.similarity import Distance, classification_loss, log_similarity, mixture
from mmedit.training.loop import Learner
from mmedit.training.settings import TrainingConfig
from mmedit.vlm.interface import VLM

SCOPES: dict[str, type[Scope]] = {"text": TextScope, "multimodal": MultimodalScope}
IN_SCOPE = (Probe.RELIABILITY, Probe.TEXT_GENERALITY, Probe.IMAGE_GENERALITY)


class SERACConfig(ObjectiveConfig):
    """Defaults are EasyEdit's for BLIP-2 (hparams/TRAINING/SERAC/blip2.yaml), where it has them."""

    scope: Literal["text", "multimodal"] = "multimodal"
    scope_encoder: str | None = None
    """Of the text scope: a Hugging Face encoder (distilbert-base-cased); none: a new small one."""
    clip: str | None = None
    """Of the multimodal scope: OpenCLIP's ARCHITECTURE/WEIGHTS; none: the VLM's own features."""
    scope_width: int = Field(default=128, ge=4, multiple_of=4)
    scope_layers: int = Field(default=2, ge=1)
    distance: Distance = "squared_euclidean"
    heads: int = Field(default=1, ge=1)
    """The embedding is cut into so many parts, and the nearest part counts."""
    bound: bool = False
    """Put tanh on embeddings."""
    scale: float = Field(default=1.0, gt=0)
    threshold: float = Field(default=0.5, ge=0, le=1)
    counterfactual: str | None = None
    """A causal language model with the VLM's tokenizer (facebook/opt-125m); none: a new small one.
    """
    counterfactual_width: int = Field(default=128, ge=8, multiple_of=8)
    counterfactual_layers: int = Field(default=3, ge=1)
    c_scope: float = Field(default=1.0, ge=0)
    """Of the supervised classification of scopes; 0: the published mixture alone."""
    c_end: float = Field(default=0.1, ge=0)
    """Of the counterfactual model's NLL of ending its answer."""
    lr: float = Field(default=1e-5, gt=0)
    training: TrainingConfig = TrainingConfig(steps=50_000)

    @field_validator("clip")
    @classmethod
    def _clip_has_weights(cls, clip: str | None) -> str | None:
        if clip is not None and not all(clip.partition("/")):
            raise ValueError("ARCHITECTURE/WEIGHTS was wanted, for instance ViT-B-32/openai")
        return clip

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> SERACConfig:
        if self.scope_width % self.heads:
            raise ValueError(
                f"scope_width {self.scope_width} cannot be cut into {self.heads} equal heads"
            )
        return self


class SERACNetwork(nn.Module):
    """All that SERAC learns."""

    def __init__(self, facts: Mapping[str, Any], config: SERACConfig) -> None:
        super().__init__()
        self.scope = SCOPES[config.scope](facts["scope"])
        self.counterfactual = Counterfactual(facts["counterfactual"])
        self.similarity: dict[str, Any] = {
            "distance": config.distance,
            "heads": config.heads,
            "bound": config.bound,
            "scale": config.scale,
        }


class SERACLearner(Learner):
    """The outer loss: one forward of the VLM over the probes (and one over those of locality), one
    forward and backward of scope and counterfactual model.
    """

    def __init__(self, vlm: VLM, network: SERACNetwork, config: SERACConfig) -> None:
        super().__init__()
        self.network = network
        self._vlm = vlm
        self._config = config

    def forward(self, cases: Sequence[EditCase]) -> tuple[Tensor, dict[str, Tensor]]:
        vlm, config, network = self._vlm, self._config, self.network
        probes = [probe for probe in config.probe_weights if probe in cases[0].probes]
        edits = [case.request for case in cases]
        keys = network.scope(edits, vlm.frozen)
        own = torch.eye(len(edits), dtype=torch.bool, device=keys.device)
        ends: list[Tensor] = []
        edited = SoftSERACVLM(
            vlm,
            network,
            Memory(edits=tuple(edits), keys=keys, visible=own),
            threshold=config.threshold,
            on_end=ends.append,
        )
        found = outcome(vlm, edited, cases, probes)
        loss, figures = found.total(config.probe_weights), dict(found.figures)
        parts = [part for group in ends for part in group.split(len(cases))]
        order = [probe for group in groups(cases, probes) for probe in group]
        inside = [part for part, probe in zip(parts, order, strict=True) if probe in IN_SCOPE]
        if config.c_end and inside:
            end = torch.stack(inside).mean()
            loss, figures["loss/end"] = loss + config.c_end * end, end.detach()
        if config.c_scope:
            scope = self._scope_loss(cases, probes, keys)
            loss, figures["loss/scope"] = loss + config.c_scope * scope, scope.detach()
        return loss, figures

    def _scope_loss(
        self, cases: Sequence[EditCase], probes: Sequence[Probe], keys: Tensor
    ) -> Tensor:
        """Every probe of the batch against every edit: in scope are a case's own ones."""
        asked = [case.probes[probe][0] for probe in probes for case in cases]
        embedded = self.network.scope(asked, self._vlm.frozen)
        found = log_similarity(embedded, keys, **self.network.similarity)
        own = torch.eye(len(cases), dtype=torch.bool, device=keys.device)
        belongs = torch.cat([own if probe in IN_SCOPE else ~own & own for probe in probes])
        return classification_loss(found, belongs)

    def optimizer(self) -> torch.optim.Optimizer:
        learnt = [p for p in self.network.parameters() if p.requires_grad]
        return torch.optim.Adam(learnt, lr=self._config.lr)


class SERAC(LearnedEditor[SERACConfig]):
    """`apply` costs an embedding of the requests, and no forward of the VLM."""

    method: ClassVar[str] = "serac"
    config_class: ClassVar[type[EditorConfig]] = SERACConfig

    def facts(self, vlm: VLM) -> dict[str, Any]:
        config, frozen = self.config, vlm.frozen
        scope = (
            text_scope_facts(config.scope_encoder, config.scope_width, config.scope_layers, frozen)
            if config.scope == "text"
            else multimodal_scope_facts(config.clip, config.scope_width, frozen)
        )
        counterfactual = counterfactual_facts(
            config.counterfactual,
            config.counterfactual_width,
            config.counterfactual_layers,
            frozen,
        )
        return {"scope": scope, "counterfactual": counterfactual}

    def build(self, facts: Mapping[str, Any]) -> SERACNetwork:
        return SERACNetwork(facts, self.config)

    def initialise(self, vlm: VLM, network: SERACNetwork) -> None:
        if isinstance(network.scope, TextScope) and self.config.scope_encoder:
            network.scope.load_encoder(self.config.scope_encoder)
        if self.config.counterfactual:
            network.counterfactual.load_language(self.config.counterfactual)

    def learner(self, vlm: VLM, network: SERACNetwork, cases: Sequence[EditCase]) -> SERACLearner:
        require_probes(cases, list(self.config.probe_weights), self.method)
        return SERACLearner(vlm, network, self.config)

    def apply(self, vlm: VLM, requests: Sequence[Example]) -> VLM:
        return self._remember(vlm, requests, each=False)

    def apply_each(self, vlm: VLM, requests: Sequence[Example]) -> VLM:
        return self._remember(vlm, requests, each=True)

    def _remember(self, vlm: VLM, requests: Sequence[Example], *, each: bool) -> VLM:
        if not requests:
            return vlm
        network = self.network_on(vlm)
        return remember(vlm, network, requests, threshold=self.config.threshold, each=each)


__all__ = [
    "SERAC",
    "SERACVLM",
    "SERACConfig",
    "SERACNetwork",
    "classification_loss",
    "log_similarity",
    "mixture",
]
