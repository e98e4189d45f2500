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
from typing import Any, ClassVar, Literal, cast

import torch
from accelerate.utils import reduce
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from mmedit.cases import EditCase, Example
from mmedit.deltas import LowRank
from mmedit.editors.base import DeltaEditor
from mmedit.editors.config import EditorConfig, SitesConfig
from mmedit.editors.learned import LearnedEditor
from mmedit.editors.objective import ObjectiveConfig, asked, outcome, require_probes
from mmedit.training.learner import Learner
from mmedit.training.settings import TrainingConfig
from mmedit.vlm.interface import VLM
from mmedit.vlm.outputs import Captured, SiteTokens
from mmedit.vlm.prepared import Asked

EPSILON = 1e-7
"""Added to σ before the division."""
DEAD = 1e-6
"""A unit is dead if its σ is below this share of the largest σ, or of its own mean."""


class MENDConfig(SitesConfig, ObjectiveConfig):
    """Settings of MEND. Defaults are MMEdit's for BLIP-2 (hparams/TRAINING/MEND/blip2.yaml)."""

    rank: int = Field(default=1920, ge=1)
    """Maximum rank of the weight matrices of g. MMEdit: 1920."""
    hidden_layers: int = Field(default=1, ge=0)
    """Layers of g before its last one. MMEdit: 1."""
    norm: bool = True
    """Normalise x and δ with running statistics. MMEdit: true."""
    shared: bool = True
    """Share one g among all sites of a shape; false: one g per site. MMEdit: true."""
    combine: bool = True
    """Use one g on x and δ together; false: one network for x and one for δ. MMEdit: true."""
    sides: Literal["both", "x", "delta", "smaller"] = "both"
    """Sides that are transformed if `combine` is false; the other one is only normalised.
    "smaller" is the narrower one at each site (the paper's one-sided variant). MMEdit: both.
    """
    lr: float = Field(default=1e-6, gt=0)
    """Learning rate of g. MMEdit: 1e-6."""
    edit_lr: float = Field(default=1e-4)
    """Initial step size of every site. MMEdit: 1e-4."""
    lr_lr: float = Field(default=1e-4, ge=0)
    """Learning rate of the step sizes. MMEdit: 1e-4."""
    training: TrainingConfig = TrainingConfig(batch_size=2)
    """Settings of the training loop."""

    @model_validator(mode="after")
    def _combine_needs_both(self) -> MENDConfig:
        if self.combine and self.sides != "both":
            raise ValueError(f"combine transforms both sides; with sides={self.sides} set it false")
        return self


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


class EditNetwork(nn.Module):
    """Everything that MEND learns: the transforms g, and a step size per site."""

    def __init__(self, shapes: Mapping[str, tuple[int, int]], config: MENDConfig) -> None:
        super().__init__()
        self.sites = tuple(shapes)
        sharing: dict[str, list[str]] = {}
        for site, (out, in_) in shapes.items():
            # names of modules must not hold dots
            key = f"{in_}x{out}" if config.shared else site.replace(".", "-")
            sharing.setdefault(key, []).append(site)
        self.sharing = sharing
        self.transforms = nn.ModuleDict(
            {
                key: GradientTransform(in_, out, config, modes=len(sites) if config.shared else 0)
                for key, sites in sharing.items()
                for out, in_ in [shapes[sites[0]]]
            }
        )
        self.edit_lrs = nn.Parameter(torch.full((len(shapes),), config.edit_lr))

    def forward(self, captured: Captured, *, update: bool) -> dict[str, LowRank]:
        """Return one low-rank delta per row and site, with a rank per token that the loss reaches.
        `update` adds the tokens to the running statistics.
        """
        packed, transformed = captured.packed(), {}
        for key, sites in self.sharing.items():
            tokens = {mode: packed[site] for mode, site in enumerate(sites)}
            transformed |= zip(sites, self.transforms[key](tokens, update=update), strict=True)
        deltas = {}
        for site, lr in zip(self.sites, self.edit_lrs, strict=True):
            (x, delta), by_row = transformed[site], packed[site].by_row
            deltas[site] = LowRank(u=by_row(lr * delta), v=by_row(x))
        return deltas


class GradientTransform(nn.Module):
    """The transform (x, δ) -> (x~, δ~), for `modes` sites of one shape, or (0) for one site."""

    def __init__(self, x_width: int, delta_width: int, config: MENDConfig, modes: int) -> None:
        super().__init__()
        self.normalise = config.norm
        self.x_norm = RunningNorm(x_width)
        self.delta_norm = RunningNorm(delta_width)

        def idmlp(width: int) -> IDMLP:
            return IDMLP(width, rank=config.rank, hidden_layers=config.hidden_layers, modes=modes)

        smaller = "delta" if x_width > delta_width else "x"
        sides = smaller if config.sides == "smaller" else config.sides
        self.mlp = idmlp(x_width + delta_width) if config.combine else None
        self.x_mlp = idmlp(x_width) if not config.combine and sides != "delta" else None
        self.delta_mlp = idmlp(delta_width) if not config.combine and sides != "x" else None

    def forward(
        self, sites: Mapping[int, SiteTokens], *, update: bool
    ) -> list[tuple[Float[Tensor, "tokens in"], Float[Tensor, "tokens out"]]]:
        """Transform the tokens of sites, which are given by mode; one product for all of them.
        `update` adds the tokens of each site to the statistics before they are normalised.
        """
        normed = [self._normalised(tokens, update=update) for tokens in sites.values()]
        counts = {mode: len(tokens.x) for mode, tokens in sites.items()}
        x, delta = (torch.cat(side) for side in zip(*normed, strict=True))
        if self.mlp is not None:
            both = self.mlp(torch.cat([x, delta], dim=-1), counts)
            x, delta = both.split([x.shape[-1], delta.shape[-1]], dim=-1)
        x = x if self.x_mlp is None else self.x_mlp(x, counts)
        delta = delta if self.delta_mlp is None else self.delta_mlp(delta, counts)
        of_site = list(counts.values())
        return list(zip(x.split(of_site), delta.split(of_site), strict=True))

    def _normalised(self, tokens: SiteTokens, *, update: bool) -> tuple[Tensor, Tensor]:
        x, delta = tokens.x.float(), tokens.delta.float()
        if update:
            self.x_norm.update(x)
            self.delta_norm.update(delta)
        return (self.x_norm(x), self.delta_norm(delta)) if self.normalise else (x, delta)


class RunningNorm(nn.Module):
    """Normalisation with each unit's mean and standard deviation over all tokens counted so far
    (Welford 1962; blocks are merged as in Chan et al. 1979).
    """

    mean: Tensor
    squares: Tensor
    """Sum of squared deviations from the mean, per unit."""
    count: Tensor
    """Number of tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("squares", torch.zeros(width))
        self.register_buffer("count", torch.zeros(()))

    @torch.no_grad()
    def update(self, x: Float[Tensor, "tokens width"]) -> None:
        """Add the tokens of all processes: no loop over tokens, no host sync. A block with a NaN
        is left out, so that the statistics stay usable after the step that failed.
        """
        added, total = _sum_over_processes(x.new_full((), len(x)), x.sum(0))
        mean = total / added.clamp(min=1)
        (squares,) = _sum_over_processes(((x - mean) ** 2).sum(0))
        sound = (mean.isfinite() & squares.isfinite()).all()
        added = added.where(sound, 0)
        mean, squares = mean.where(sound, 0), squares.where(sound, 0)
        count = (self.count + added).clamp(min=1)
        away = mean - self.mean
        self.squares += squares + away**2 * (self.count * added / count)
        self.mean += away * (added / count)
        self.count += added

    @property
    def std(self) -> Float[Tensor, " width"]:
        """Standard deviation of each unit."""
        return (self.squares / (self.count - 1).clamp(min=1)).sqrt()

    def forward(self, x: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
        std = self.std
        alive = std > DEAD * self.mean.abs().clamp(min=std.max())
        return (x - self.mean) * (alive / (std + EPSILON))


def _sum_over_processes(*tensors: Tensor) -> list[Tensor]:
    """Return the sums over the processes of `accelerate launch`."""
    return [cast("Tensor", reduce(tensor, "sum")) for tensor in tensors]


class IDMLP(nn.Module):
    """The network g: `hidden_layers` + 1 low-rank layers. The identity until it is trained."""

    def __init__(self, width: int, *, rank: int, hidden_layers: int, modes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(LRLinear(width, rank, modes) for _ in range(hidden_layers + 1))

    def forward(
        self, x: Float[Tensor, "tokens width"], counts: Mapping[int, int]
    ) -> Float[Tensor, "tokens width"]:
        """Transform tokens: the first ones of one mode, then those of the next, so many of each."""
        for layer in self.layers:
            x = layer(x, counts)
        return x


class LRLinear(nn.Module):
    """A low-rank layer: x + max(0, (U V x + b) · scale + shift). It starts as the identity, U = 0.

    Each mode (a site that shares the layer) has its own scale and shift, if there are modes.
    """

    def __init__(self, width: int, rank: int, modes: int) -> None:
        super().__init__()
        mid = min(rank, width)
        self.u = nn.Parameter(torch.zeros(width, mid))
        self.v = nn.Parameter(torch.randn(mid, width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.mode_scale = nn.Parameter(torch.ones(modes, width)) if modes else None
        self.mode_shift = nn.Parameter(torch.zeros(modes, width)) if modes else None

    def forward(
        self, x: Float[Tensor, "tokens width"], counts: Mapping[int, int]
    ) -> Float[Tensor, "tokens width"]:
        z = F.linear(x @ self.v.T, self.u, self.bias)
        if self.mode_scale is not None and self.mode_shift is not None:
            scaled = [
                torch.addcmul(self.mode_shift[mode], part, self.mode_scale[mode])
                for mode, part in zip(counts, z.split(list(counts.values())), strict=True)
            ]
            z = torch.cat(scaled)
        # Every z starts at 0, where the gradients of relu and, since torch 2.14, of clamp are 0;
        # just below 0 the threshold passes it on.
        return F.threshold(z, -torch.finfo(z.dtype).tiny, 0.0) + x


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
