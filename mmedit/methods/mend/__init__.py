"""MEND: a small network turns the gradient of a request into an edit (Mitchell et al. 2022, Fast
Model Editing at Scale), for VLMs as in MMEdit (Cheng et al. 2023).

From a request to an edit:

1. A forward and a backward of the request's answer NLL give, at every edited Linear weight W and
   for each token t, the input x_t and the gradient δ_t of the output. Σ_t δ_t x_t^T is the gradient
   of W.
2. Both are normalised with running statistics and transformed by a network g:
       (x~_t, δ~_t) = g((x_t - μ_x) / σ_x, (δ_t - μ_δ) / σ_δ)
3. The edit is the same sum over the transformed vectors, with a learnt step size lr for each site:
       ΔW = lr · Σ_t δ~_t x~_t^T
   It is stored as its two factors: a LowRank delta with one rank per token.

g is an MLP that starts as the identity and takes x and δ together. Sites of the same shape share
one g, with a learnt scale and shift for each site. `shared`, `combine` and `sides` choose the other
variants of the paper. The outer loss is in `mmedit.editors.objective`.

Differences from the published code:

- δ is the gradient of the sum over rows of each row's mean NLL, so it does not depend on the batch.
- Units that were dead while the statistics were collected (σ = 0) give 0; there they are divided by
  1e-7.
- The step sizes are trained, with a learning rate of their own; there they stay where they start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmedit.cases import EditCase, Example
from mmedit.deltas import LowRank
from mmedit.editors.base import DeltaEditor
from mmedit.editors.config import EditorConfig
from mmedit.editors.learned import LearnedEditor
from mmedit.editors.objective import asked, outcome, require_probes
from mmedit.methods.mend.config import MENDConfig
from mmedit.methods.mend.network import EditNetwork
from mmedit.training.learner import Learner
from mmedit.vlm.interface import VLM
from mmedit.vlm.prepared import Asked


class MEND(DeltaEditor[MENDConfig], LearnedEditor[MENDConfig]):
    """MEND. `apply` costs one capture. A training step costs one capture, and one forward and
    backward over the probes, all from the first edited layer on.
    """

    method: ClassVar[str] = "mend"
    paper: ClassVar[str] = "Mitchell et al. 2022, Fast Model Editing at Scale"
    config_class: ClassVar[type[EditorConfig]] = MENDConfig

    @torch.no_grad()
    def deltas(self, vlm: VLM, requests: Sequence[Example]) -> dict[str, LowRank]:
        network = self.network_on(vlm)
        return network(vlm.capture(requests, network.sites), update=False)

    def facts(self, vlm: VLM) -> dict[str, Any]:
        return {"shapes": {site: list(vlm.shape(site)) for site in self.config.sites_of(vlm)}}

    def build(self, facts: Mapping[str, Any]) -> EditNetwork:
        shapes = {site: (int(out), int(in_)) for site, (out, in_) in facts["shapes"].items()}
        return EditNetwork(shapes, self.config)

    def asked(self, vlm: VLM, cases: Sequence[EditCase]) -> Asked:
        return asked(cases, list(self.config.probe_weights), self.config.sites_of(vlm))

    def learner(self, vlm: VLM, network: EditNetwork, cases: Sequence[EditCase]) -> MENDLearner:
        require_probes(cases, list(self.config.probe_weights), self.method)
        return MENDLearner(vlm, network, self.config)


class MENDLearner(Learner):
    """The outer loss: per batch one capture, and one forward and backward over the probes."""

    def __init__(self, vlm: VLM, network: EditNetwork, config: MENDConfig) -> None:
        super().__init__()
        self.network = network
        self._vlm = vlm
        self._config = config

    def forward(self, cases: Sequence[EditCase]) -> tuple[Tensor, dict[str, Tensor]]:
        vlm, weights = self._vlm, self._config.probe_weights
        edited = vlm.with_deltas(
            self.network(  # what is captured is freed before the probes need memory
                vlm.capture([case.request for case in cases], self.network.sites),
                update=self.training,
            )
        )
        found = outcome(vlm, edited, cases, list(weights))
        return found.total(weights), found.figures

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(
            [
                {"params": list(self.network.transforms.parameters()), "lr": self._config.lr},
                {"params": [self.network.edit_lrs], "lr": self._config.lr_lr},
            ]
        )
