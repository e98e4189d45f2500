"""KE, Knowledge Editor: a recurrent network reads the edit and gates its gradient (De Cao et al.
2021, Editing Factual Knowledge in Language Models), for VLMs as in MMEdit and VLKEB.

A BiLSTM reads "pred >> alt || src" (the VLM's answer, the new answer, the prompt) and computes, for
every site W of shape [out, in], vectors a, c [out], b, d [in] and a number n:

    ΔW = max_scale · σ(n) · (∇ ∘ softmax(a) b^T + softmax(c) d^T),   ∇ = Σ_t δ_t x_t^T

∇ is never formed: since (δ_t x_t^T) ∘ (a b^T) = (a ∘ δ_t) (b ∘ x_t)^T, the edit is a LowRank delta.
Its rank is the number of tokens that the loss reaches, plus 1. The training minimises

    nll(request) + nll(rephrase) + nll(image rephrase), subject to C <= margin

where C is the KL on the locality probes, or the 2-norm of the edit. The loss is the sum of the NLLs
and multiplier · (C - margin); the multiplier is trained to maximise it, and the margin shrinks
while edits succeed.

Differences from the published code:

- "pred" comes from the VLM itself, not from the dataset.
- Token embeddings are those of the language model and are not trained; a copy to train would have
  129 M parameters for OPT-2.7B.
- VLKEB drops the KL and trains on the request alone; here both are settings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence

from mmedit.cases import EditCase, Example, Probe
from mmedit.deltas import LowRank
from mmedit.editors.base import DeltaEditor
from mmedit.editors.config import EditorConfig, SitesConfig
from mmedit.editors.learned import LearnedEditor
from mmedit.editors.objective import NAMES, ObjectiveConfig, asked, outcome, require_probes
from mmedit.training.learner import Learner
from mmedit.training.settings import TrainingConfig
from mmedit.vlm.interface import VLM
from mmedit.vlm.outputs import Captured
from mmedit.vlm.prepared import Asked

EDITED = (Probe.RELIABILITY, Probe.TEXT_GENERALITY, Probe.IMAGE_GENERALITY)
KEPT = (
    Probe.TEXT_LOCALITY,
    Probe.IMAGE_LOCALITY,
    Probe.RANDOM_IMAGE,
    Probe.CONSISTENT_IMAGE,
    Probe.NO_IMAGE,
)


class KEConfig(SitesConfig, ObjectiveConfig):
    """Settings of KE. Defaults are VLKEB's for BLIP-2, or the paper's if VLKEB has none. The
    locality terms of the objective are the constraint; `c_loc` and `i_loc` are their weights in it.
    """

    lstm_hidden: int = Field(default=128, ge=1)
    """Width of the BiLSTM's state, per direction. VLKEB: 128."""
    condition: int = Field(default=1024, ge=1)
    """Width of the vector that the BiLSTM makes of the edit. VLKEB: 1024."""
    hidden: int = Field(default=128, ge=1)
    """Width of the hidden layer of every gate. VLKEB: 128."""
    max_scale: float = Field(default=1.0, gt=0)
    """Maximum factor of the edit."""
    max_condition_tokens: int = Field(default=32, ge=1)
    """Tokens of "pred >> alt || src" that the BiLSTM reads; the rest is cut off."""
    max_pred_tokens: int = Field(default=12, ge=1)
    """Maximum length of the VLM's own answer "pred", in tokens."""
    c_base: float = Field(default=1.0, ge=0)
    """Weight of the request's NLL (reliability)."""
    c_edit: float = Field(default=1.0, ge=0)
    """Weight of the rephrase's NLL (text generality)."""
    i_edit: float = Field(default=1.0, ge=0)
    """Weight of the other image's NLL (image generality)."""
    constraint: Literal["kl", "l2"] = "kl"
    """The constraint C: the KL on locality probes (kl), or the 2-norm of the edit (l2)."""
    lr: float = Field(default=3e-4, gt=0)
    """Learning rate. VLKEB: 3e-4."""
    multiplier: float = Field(default=1.0, ge=0)
    """Initial value of the multiplier of the constraint."""
    multiplier_lr: float = Field(default=0.1, ge=0)
    """Learning rate of the multiplier. VLKEB: 0.1."""
    margin: float = Field(default=1e-3, ge=0)
    """Initial value of the margin. VLKEB: 1e-3."""
    margin_min: float = Field(default=1e-7, ge=0)
    """Minimum of the margin. VLKEB: 1e-7."""
    margin_decay: float = Field(default=0.8, gt=0, le=1)
    """Factor by which the margin shrinks. VLKEB: 0.8."""
    margin_accuracy: float = Field(default=0.9, ge=0, le=1)
    """Share of edits (exact match) above which the margin shrinks at a check. VLKEB: 0.9."""
    training: TrainingConfig = TrainingConfig(warmup_steps=1000)
    """Settings of the training loop."""


class Conditioner(nn.Module):
    """The network from tokens to a condition: the two final states of a BiLSTM, a Linear, tanh."""

    def __init__(self, width: int, *, lstm_hidden: int, condition: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, lstm_hidden, bidirectional=True, batch_first=True)
        self.linear = nn.Linear(2 * lstm_hidden, condition)

    def forward(
        self, embedded: Float[Tensor, "batch tokens width"], lengths: Sequence[int]
    ) -> Float[Tensor, "batch condition"]:
        """Return one condition per row. `lengths`: number of tokens of each row without padding."""
        packed = pack_padded_sequence(
            embedded, torch.tensor(lengths), batch_first=True, enforce_sorted=False
        )
        _, (final, _) = self.lstm(packed)
        return self.linear(torch.cat([final[0], final[1]], dim=-1)).tanh()


class Gate(nn.Module):
    """The network from a condition to the edit of one site."""

    def __init__(self, shape: tuple[int, int], config: KEConfig) -> None:
        super().__init__()
        out, in_ = shape
        self.max_scale = config.max_scale
        self.sizes = (in_, out, in_, out, 1)
        self.hidden = weight_norm(nn.Linear(config.condition, config.hidden))
        self.output = weight_norm(nn.Linear(config.hidden, sum(self.sizes)))

    def forward(
        self,
        condition: Float[Tensor, "batch condition"],
        x: Float[Tensor, "batch tokens in"],
        delta: Float[Tensor, "batch tokens out"],
    ) -> LowRank:
        """Return one delta per row, of rank tokens + 1."""
        made = self.output(self.hidden(condition).tanh()).unsqueeze(1)
        col_a, row_a, col_b, row_b, norm = made.split(self.sizes, dim=-1)
        scale = self.max_scale * norm.sigmoid()
        gated = scale * row_a.softmax(-1) * delta.float()
        free = scale * row_b.softmax(-1)
        return LowRank(
            u=torch.cat([gated, free], dim=1), v=torch.cat([col_a * x.float(), col_b], dim=1)
        )


class KENetwork(nn.Module):
    """Everything that KE learns for editing: one conditioner, and a gate per site."""

    def __init__(self, shapes: Mapping[str, tuple[int, int]], width: int, config: KEConfig) -> None:
        super().__init__()
        self.sites = tuple(shapes)
        self.conditioner = Conditioner(
            width, lstm_hidden=config.lstm_hidden, condition=config.condition
        )
        self.gates = nn.ModuleList(Gate(shape, config) for shape in shapes.values())

    def forward(
        self,
        captured: Captured,
        embedded: Float[Tensor, "batch tokens width"],
        lengths: Sequence[int],
    ) -> dict[str, LowRank]:
        """Return one delta per row and site."""
        captured, condition = captured.reached(), self.conditioner(embedded, lengths)
        return {
            site: gate(condition, captured.x[site], captured.delta[site])
            for site, gate in zip(self.sites, self.gates, strict=True)
        }


class KELearner(Learner):
    """The outer loss. A batch costs one capture, one forward and backward over the probes and one
    forward of the base model; "pred" costs one generation per training case, once.
    """

    margin: Tensor
    """The current margin, 0-d."""

    def __init__(self, vlm: VLM, network: KENetwork, config: KEConfig) -> None:
        super().__init__()
        self.network = network
        self.multiplier = nn.Parameter(torch.tensor(config.multiplier, device=vlm.device))
        self.register_buffer("margin", torch.tensor(config.margin, device=vlm.device))
        self._vlm = vlm
        self._config = config
        self._preds: dict[str, str] = {}

    def forward(self, cases: Sequence[EditCase]) -> tuple[Tensor, dict[str, Tensor]]:
        vlm, weights = self._vlm, self._config.probe_weights
        requests = [case.request for case in cases]
        deltas = self.network(
            vlm.capture(requests, self.network.sites),
            *embed_conditions(vlm, requests, self._preds_of(cases), self._config),
        )
        found = outcome(vlm, vlm.with_deltas(deltas), cases, list(weights))
        edit = sum(weights[p] * term for p, term in found.terms.items() if p in EDITED)
        excess = self._constraint(found.terms, deltas) - self.margin
        figures = {
            "loss/constraint": (excess + self.margin).detach(),
            "multiplier": self.multiplier.detach(),
            "margin": self.margin.clone(),
        }
        return edit + self.multiplier * excess, {**found.figures, **figures}

    def _constraint(self, terms: Mapping[Probe, Tensor], deltas: Mapping[str, LowRank]) -> Tensor:
        if self._config.constraint == "l2":
            return torch.stack([root_mean_square(delta) for delta in deltas.values()]).mean()
        weights = self._config.probe_weights
        kept = {probe: term for probe, term in terms.items() if probe in KEPT}
        total = torch.stack([weights[probe] * term for probe, term in kept.items()]).sum()
        return total / sum(weights[probe] for probe in kept)

    def _preds_of(self, cases: Sequence[EditCase]) -> list[str]:
        new = [case for case in cases if case.id not in self._preds]
        if new:
            said = generate_preds(self._vlm, [case.request for case in new], self._config)
            self._preds.update(zip((case.id for case in new), said, strict=True))
        return [self._preds[case.id] for case in cases]

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.RMSprop(
            [
                {"params": list(self.network.parameters()), "lr": self._config.lr},
                {
                    "params": [self.multiplier],
                    "lr": self._config.multiplier_lr,
                    "maximize": True,
                },
            ],
            centered=True,
        )

    def after_step(self) -> None:
        self.multiplier.clamp_(min=0)

    def after_check(self, figures: Mapping[str, float]) -> None:
        accuracies = [figures[f"{NAMES[p]}/acc"] for p in EDITED if f"{NAMES[p]}/acc" in figures]
        if sum(accuracies) / len(accuracies) > self._config.margin_accuracy:
            self.margin.mul_(self._config.margin_decay).clamp_(min=self._config.margin_min)


class KE(DeltaEditor[KEConfig], LearnedEditor[KEConfig]):
    """KE. `apply` costs one capture, and one generation of the VLM's own answer."""

    method: ClassVar[str] = "ke"
    paper: ClassVar[str] = "De Cao et al. 2021, Editing Factual Knowledge in Language Models"
    config_class: ClassVar[type[EditorConfig]] = KEConfig

    def facts(self, vlm: VLM) -> dict[str, Any]:
        return {
            "shapes": {site: list(vlm.shape(site)) for site in self.config.sites_of(vlm)},
            "width": vlm.frozen.hidden,
        }

    def build(self, facts: Mapping[str, Any]) -> KENetwork:
        shapes = {site: (int(out), int(in_)) for site, (out, in_) in facts["shapes"].items()}
        return KENetwork(shapes, int(facts["width"]), self.config)

    def asked(self, vlm: VLM, cases: Sequence[EditCase]) -> Asked:
        return asked(cases, list(self.config.probe_weights), self.config.sites_of(vlm))

    def learner(self, vlm: VLM, network: KENetwork, cases: Sequence[EditCase]) -> KELearner:
        weights = self.config.probe_weights
        require_probes(cases, [probe for probe in weights if probe in EDITED], self.method)
        if self.config.constraint == "kl":
            require_probes(cases, [probe for probe in weights if probe in KEPT], self.method)
        return KELearner(vlm, network, self.config)

    @torch.no_grad()
    def deltas(self, vlm: VLM, requests: Sequence[Example]) -> dict[str, LowRank]:
        network = self.network_on(vlm)
        said = generate_preds(vlm, requests, self.config)
        return network(
            vlm.capture(requests, network.sites),
            *embed_conditions(vlm, requests, said, self.config),
        )


def generate_preds(vlm: VLM, requests: Sequence[Example], config: KEConfig) -> list[str]:
    """Return the VLM's own answers: E-VQA's "pred"."""
    return vlm.generate(requests, max_new_tokens=config.max_pred_tokens)


def embed_conditions(
    vlm: VLM, requests: Sequence[Example], said: Sequence[str], config: KEConfig
) -> tuple[Float[Tensor, "batch tokens width"], list[int]]:
    """Return embeddings of "pred >> alt || src" of every request, padded on the right, and the
    lengths in tokens.
    """
    texts = [
        f"{pred} >> {request.target} || {request.prompt}"
        for pred, request in zip(said, requests, strict=True)
    ]
    ids = [torch.tensor(text[: config.max_condition_tokens]) for text in vlm.frozen.tokenize(texts)]
    padded = pad_sequence(ids, batch_first=True).to(vlm.device)
    return vlm.frozen.embed(padded), [len(text) for text in ids]


def root_mean_square(delta: LowRank) -> Tensor:
    """Return sqrt(mean ΔW²), averaged over the edits.

    ΔW is never formed: ||U^T V||² = Σ (U U^T) ∘ (V V^T).
    """
    squared = ((delta.u @ delta.u.mT) * (delta.v @ delta.v.mT)).sum((-2, -1))
    out, in_ = delta.shape
    return (squared.clamp(min=0) / (out * in_) + 1e-24).sqrt().mean()
