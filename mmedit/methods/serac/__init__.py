"""SERAC: edits are kept in a cache beside the VLM, and no weight changes (Mitchell et al. 2022,
Memory-Based Model Editing at Scale).

    s = max_i exp(-scale · d(scope(question), scope(edit_i))²)

If s > 0.5, a small counterfactual model, which reads the nearest edit, answers the question;
otherwise the VLM does. In training both are mixed:

    log((1 - s) · p_base + s · p_counterfactual)

The loss has two parts: the published loss on the mixture (`mmedit.editors.objective`), and, with
weight `c_scope`, the original paper's classification of question and edit pairs as in scope or not,
with pairs from all cases of a batch.

Differences from EasyEdit's SERAC_MULTI:

- The scope never sees an answer.
- The projection that shows the image to the counterfactual model is trained, and saved.
- Image locality is trained on (`i_loc=0` is EasyEdit's choice).
- The cache holds all edits.
- The counterfactual model learns where answers end.

MSCKE (Zeng et al. 2025, Visual-Oriented Fine-Grained Knowledge Editing for MultiModal Large
Language Models) is SERAC with a scope that fuses text and image, `scope: fused`:

    scope(question) = [t ; softmax(t I^T) I]    t: its text, I: the tokens of its own image

Differences from its published code:

- Each question, and each cached edit, is fused with its own image. There the softmax runs over the
  batch of cached edits, so that edits borrow each other's images, and an edit's embedding depends
  on what else is cached. With one edit it runs over one entry, and fuses nothing; here it runs over
  the tokens of the image.
- As above: no answer in the cached text; the projections are trained once, and saved.
- A question without image has a learnt image part, not that of a black image.
- The towers (OpenCLIP's, or the VLM's own) are frozen, their features cached, and small networks
  after them are trained. There CLIP itself is trained.
- Locality probes count in both parts of the loss (there in the classification alone).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from mmedit.cases import EditCase, Example, Probe
from mmedit.editors.config import EditorConfig
from mmedit.editors.learned import LearnedEditor
from mmedit.editors.objective import examples_of, groups, outcome, require_probes
from mmedit.editors.saved import Origin
from mmedit.editors.sentences import encoder_folder, require_encoder
from mmedit.errors import EditorError
from mmedit.methods.serac.config import SERACConfig
from mmedit.methods.serac.counterfactual import Counterfactual, counterfactual_facts
from mmedit.methods.serac.memory import Memory, MemoryChange, SoftSERACVLM, with_memory
from mmedit.methods.serac.scope import TextScope, build_scope, scope_facts
from mmedit.methods.serac.similarity import classification_loss, log_similarity
from mmedit.training.learner import Learner
from mmedit.vlm.edit import Change, separate
from mmedit.vlm.interface import VLM
from mmedit.vlm.prepared import Asked

IN_SCOPE = (
    Probe.RELIABILITY,
    Probe.TEXT_GENERALITY,
    Probe.IMAGE_GENERALITY,
    Probe.FINE_GENERALITY,
)
"""Probes that belong to the edit of their case: 1 in the classification, all others 0."""


class SERACNetwork(nn.Module):
    """Everything that SERAC learns: a scope and a counterfactual model."""

    def __init__(self, facts: Mapping[str, Any], config: SERACConfig) -> None:
        super().__init__()
        self.scope = build_scope(config, facts["scope"])
        self.counterfactual = Counterfactual(facts["counterfactual"])
        self.similarity: dict[str, Any] = {
            "distance": config.distance,
            "heads": config.heads,
            "bound": config.bound,
            "scale": config.scale,
        }


class SERACLearner(Learner):
    """The outer loss. A batch costs one forward of the VLM over the probes, one over the locality
    probes, and one forward and backward of scope and counterfactual model.
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
        told: list[tuple[Tensor, Tensor]] = []
        edited = SoftSERACVLM(
            vlm,
            network,
            Memory(edits=tuple(edits), keys=keys, visible=own),
            threshold=config.threshold,
            on_asked=lambda *made: told.append(made),
        )
        found = outcome(vlm, edited, cases, probes)
        loss, figures = found.total(config.probe_weights), dict(found.figures)
        embedded, ends = (torch.cat(parts) for parts in zip(*told, strict=True))
        order = [probe for group in groups(cases, probes) for probe in group]
        parts = zip(ends.split(len(cases)), order, strict=True)
        inside = [part for part, probe in parts if probe in IN_SCOPE]
        if config.c_end and inside:
            end = torch.stack(inside).mean()
            loss, figures["loss/end"] = loss + config.c_end * end, end.detach()
        if config.c_scope:
            scope = self._scope_loss(order, embedded, keys, self._same(edits).to(keys.device))
            loss, figures["loss/scope"] = loss + config.c_scope * scope, scope.detach()
        return loss, figures

    def _same(self, edits: Sequence[Example]) -> Tensor:
        """Return which edits are the same to the scope: itself, and for a scope that sees no image
        all with its prompt.
        """
        if self._config.scope != "text":
            return torch.eye(len(edits), dtype=torch.bool)
        return torch.tensor([[one.prompt == other.prompt for other in edits] for one in edits])

    def _scope_loss(
        self, asked: Sequence[Probe], embedded: Tensor, keys: Tensor, same: Tensor
    ) -> Tensor:
        """Return the classification loss over all pairs of a probe and an edit. In scope are the
        request and the generality probes of the edit's own case, and of the same edits.
        """
        found = log_similarity(embedded, keys, **self.network.similarity)
        belongs = torch.cat([same & (probe in IN_SCOPE) for probe in asked])
        return classification_loss(found, belongs)

    def optimizer(self) -> torch.optim.Optimizer:
        learnt = [p for p in self.network.parameters() if p.requires_grad]
        return torch.optim.Adam(learnt, lr=self._config.lr)


class SERAC(LearnedEditor[SERACConfig]):
    """SERAC. `apply` costs an embedding of the requests, and no forward of the VLM."""

    method: ClassVar[str] = "serac"
    paper: ClassVar[str] = "Mitchell et al. 2022, Memory-Based Model Editing at Scale"
    config_class: ClassVar[type[EditorConfig]] = SERACConfig

    def require_fits(self, vlm: VLM) -> None:
        super().require_fits(vlm)
        if self.config.sentence_encoder:
            encoder_folder(self.config.sentence_encoder)

    def facts(self, vlm: VLM) -> dict[str, Any]:
        config, frozen = self.config, vlm.frozen
        counterfactual = counterfactual_facts(
            config.counterfactual,
            config.counterfactual_width,
            config.counterfactual_layers,
            frozen,
        )
        return {"scope": scope_facts(config, frozen), "counterfactual": counterfactual}

    def build(self, facts: Mapping[str, Any]) -> SERACNetwork:
        return SERACNetwork(facts, self.config)

    def initialise(self, vlm: VLM, network: SERACNetwork) -> None:
        if isinstance(network.scope, TextScope) and self.config.scope_encoder:
            network.scope.load_encoder(self.config.scope_encoder)
        if self.config.counterfactual:
            network.counterfactual.load_language(self.config.counterfactual)

    def load_state(
        self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any], origin: Origin | None
    ) -> Self:
        scope = notes["facts"]["scope"]
        if encoder := scope.get("sentence_encoder"):
            require_encoder(encoder, scope["sha256"])
        return super().load_state(tensors, notes, origin)

    def asked(self, vlm: VLM, cases: Sequence[EditCase]) -> Asked:
        return Asked(base=examples_of(cases, list(self.config.probe_weights)))

    def learner(self, vlm: VLM, network: SERACNetwork, cases: Sequence[EditCase]) -> SERACLearner:
        require_probes(cases, list(self.config.probe_weights), self.method)
        return SERACLearner(vlm, network, self.config)

    def change(self, vlm: VLM, requests: Sequence[Example]) -> Change:
        return MemoryChange(requests, self._keys(vlm, requests), self)

    def apply_each(self, vlm: VLM, requests: Sequence[Example]) -> VLM:
        if not requests:
            return vlm
        keys = self._keys(vlm, requests)
        opened = with_memory(vlm, self, keys.shape[1])
        edited = opened.holding(opened.memory.with_each(requests, keys))
        return edited.noting(separate(self.label, self.method, requests))

    @torch.no_grad()
    def _keys(self, vlm: VLM, requests: Sequence[Example]) -> Tensor:
        return self.network_on(vlm).scope(requests, vlm.frozen)

    @classmethod
    def load_change(
        cls,
        kind: str,
        tensors: Mapping[str, Tensor],
        notes: Mapping[str, Any],
        *,
        requests: Sequence[Example],
        editor: Any,
    ) -> Change:
        if kind != MemoryChange.kind or editor is None:
            return super().load_change(kind, tensors, notes, requests=requests, editor=editor)
        keys = tensors["keys"]
        if keys.ndim != 2 or len(keys) != len(requests) or not keys.is_floating_point():
            raise EditorError(
                f"the embeddings of {len(requests)} requests have shape {list(keys.shape)}; "
                f"expected [{len(requests)}, width], in floating-point numbers"
            )
        return MemoryChange(requests, keys, editor)
