"""MEND: a small network turns the gradient of a request into an edit (Mitchell et al. 2022), for
VLMs as in MMEdit.

At a Linear site with input x_t and output gradient δ_t of token t:

    (x~_t, δ~_t) = g((x_t - μ_x) / σ_x, (δ_t - μ_δ) / σ_δ),   ΔW = lr_site · Σ_t δ~_t x~_t^T

g is one IDMLP on the concatenation, shared by all sites of a shape, with a scale and shift of its
own for each site; `shared`, `combine` and `sides` choose the paper's other variants. Trained on the
loss of `mmedit.editors.objective`. Differences from the published code: δ is the gradient of the
*sum over rows* of each row's mean NLL, so it does not depend on the batch; units that were dead
while the statistics were gathered (σ = 0) are left out instead of divided by 1e-7; `edit_lr` is
trained by its own learning rate, which the published code loses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, cast

import torch
from accelerate.utils import reduce
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from mmedit.cases import EditCase, Example
from mmedit.deltas import LowRank
from mmedit.editors.base import DeltaEditor, EditorConfig, SitesConfig
from mmedit.editors.learned import LearnedEditor
from mmedit.editors.objective import ObjectiveConfig, outcome, require_probes
from mmedit.training.loop import Learner
from mmedit.training.settings import TrainingConfig
from mmedit.vlm.interface import VLM, Captured, reached

EPSILON = 1e-7
DEAD = 1e-6
"""A unit is dead when its σ is below this share of the largest σ, or of its own mean: rounding
noise, not a signal.
"""


class MENDConfig(SitesConfig, ObjectiveConfig):
    """Defaults are MMEdit's for BLIP-2 (hparams/TRAINING/MEND/blip2.yaml)."""

    rank: int = Field(default=1920, ge=1)
    hidden_layers: int = Field(default=1, ge=0)
    norm: bool = True
    shared: bool = True
    """One transform for all sites of a shape, with a scale and shift for each; else one per site.
    """
    combine: bool = True
    """One IDMLP on cat(x, δ); else one for x and one for δ."""
    sides: Literal["both", "x", "delta", "smaller"] = "both"
    """What is transformed, without `combine`: "smaller" is the narrower of the two at each site
    (the paper's one-sided variant); the other one is passed on as it is, normalised.
    """
    lr: float = Field(default=1e-6, gt=0)
    edit_lr: float = Field(default=1e-4)
    """Where lr_site starts."""
    lr_lr: float = Field(default=1e-4, ge=0)
    """The learning rate of lr_site."""
    training: TrainingConfig = TrainingConfig(batch_size=2)

    @model_validator(mode="after")
    def _combine_needs_both(self) -> MENDConfig:
        if self.combine and self.sides != "both":
            raise ValueError(f"combine transforms both sides; with sides={self.sides} set it false")
        return self


class LRLinear(nn.Module):
    """z = U(Vx) + b; with modes z · scale[mode] + shift[mode]; then max(z, 0); plus x (the "id"
    initialisation, U = 0).
    """

    def __init__(self, width: int, rank: int, modes: int) -> None:
        super().__init__()
        mid = min(rank, width)
        self.u = nn.Parameter(torch.zeros(width, mid))
        self.v = nn.Parameter(torch.randn(mid, width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.mode_scale = nn.Parameter(torch.ones(modes, width)) if modes else None
        self.mode_shift = nn.Parameter(torch.zeros(modes, width)) if modes else None

    def forward(self, x: Float[Tensor, "*rows width"], mode: int) -> Float[Tensor, "*rows width"]:
        z = x @ self.v.T @ self.u.T + self.bias
        if self.mode_scale is not None and self.mode_shift is not None:
            z = z * self.mode_scale[mode] + self.mode_shift[mode]
        # Every z starts at 0, where relu, and clamp since torch 2.14, have gradient 0.
        return torch.where(z < 0, 0.0, z) + x


class IDMLP(nn.Module):
    """`hidden_layers` + 1 low-rank layers; the identity until it is trained."""

    def __init__(self, width: int, *, rank: int, hidden_layers: int, modes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(LRLinear(width, rank, modes) for _ in range(hidden_layers + 1))

    def forward(self, x: Float[Tensor, "*rows width"], mode: int) -> Float[Tensor, "*rows width"]:
        for layer in self.layers:
            x = layer(x, mode)
        return x


class RunningNorm(nn.Module):
    """Mean and standard deviation over all tokens seen so far (Welford 1962; merged in blocks, Chan
    et al. 1979), per unit.
    """

    mean: Tensor
    squares: Tensor
    count: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("squares", torch.zeros(width))
        self.register_buffer("count", torch.zeros(()))

    @torch.no_grad()
    def update(self, x: Float[Tensor, "*rows width"], counted: Bool[Tensor, "*rows"]) -> None:
        """Add a block of tokens, of all processes together: no loop over tokens, no host sync. A
        block with a NaN is left out: the statistics outlive the step that failed.
        """
        there, axes = counted.unsqueeze(-1), tuple(range(x.ndim - 1))
        added, total = _over_processes(counted.sum().to(x), x.where(there, 0).sum(axes))
        mean = total / added.clamp(min=1)
        (squares,) = _over_processes(((x - mean).where(there, 0) ** 2).sum(axes))
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
        return (self.squares / (self.count - 1).clamp(min=1)).sqrt()

    def forward(self, x: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
        std = self.std
        alive = std > DEAD * self.mean.abs().clamp(min=std.max())
        return (x - self.mean) / (std + EPSILON) * alive


def _over_processes(*tensors: Tensor) -> list[Tensor]:
    """Summed over the processes of `accelerate launch`."""
    return [cast("Tensor", reduce(tensor, "sum")) for tensor in tensors]


class GradientTransform(nn.Module):
    """(x, δ) to (x~, δ~) for all sites of one shape, or for one site."""

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
        self,
        x: Float[Tensor, "batch tokens in"],
        delta: Float[Tensor, "batch tokens out"],
        mode: int,
        *,
        update: bool,
    ) -> tuple[Float[Tensor, "batch tokens in"], Float[Tensor, "batch tokens out"]]:
        """Tokens whose x or δ is zero throughout (padding, what the loss does not reach) stay zero
        and are not counted.
        """
        x, delta = x.float(), delta.float()
        counted = reached(x, delta)
        if update:
            self.x_norm.update(x, counted)
            self.delta_norm.update(delta, counted)
        if self.normalise:
            x, delta = self.x_norm(x), self.delta_norm(delta)
        if self.mlp is not None:
            both = self.mlp(torch.cat([x, delta], dim=-1), mode)
            x, delta = both.split([x.shape[-1], delta.shape[-1]], dim=-1)
        x = x if self.x_mlp is None else self.x_mlp(x, mode)
        delta = delta if self.delta_mlp is None else self.delta_mlp(delta, mode)
        return x * counted.unsqueeze(-1), delta * counted.unsqueeze(-1)


class EditNetwork(nn.Module):
    """All that MEND learns: a transform per shape or site, an edit learning rate per site."""

    def __init__(self, shapes: Mapping[str, tuple[int, int]], config: MENDConfig) -> None:
        super().__init__()
        self.sites = tuple(shapes)
        sites_of: dict[str, list[str]] = {}
        for site, (out, in_) in shapes.items():
            # names of modules must not hold dots
            key = f"{in_}x{out}" if config.shared else site.replace(".", "-")
            sites_of.setdefault(key, []).append(site)
        self.place = {
            site: (key, mode) for key, sites in sites_of.items() for mode, site in enumerate(sites)
        }
        self.transforms = nn.ModuleDict(
            {
                key: GradientTransform(in_, out, config, modes=len(sites) if config.shared else 0)
                for key, sites in sites_of.items()
                for out, in_ in [shapes[sites[0]]]
            }
        )
        self.edit_lrs = nn.Parameter(torch.full((len(shapes),), config.edit_lr))

    def forward(self, captured: Captured, *, update: bool) -> dict[str, LowRank]:
        """One low-rank delta per row and site, of rank = tokens that bear on the edit."""
        captured, deltas = captured.reached(), {}
        for number, site in enumerate(self.sites):
            key, mode = self.place[site]
            x, delta = self.transforms[key](
                captured.x[site], captured.delta[site], mode, update=update
            )
            deltas[site] = LowRank(u=self.edit_lrs[number] * delta, v=x)
        return deltas


class MENDLearner(Learner):
    """The outer loss: one capture, and one forward and backward over the probes, per batch."""

    def __init__(self, vlm: VLM, network: EditNetwork, config: MENDConfig) -> None:
        super().__init__()
        self.network = network
        self._vlm = vlm
        self._config = config

    def forward(self, cases: Sequence[EditCase]) -> tuple[Tensor, dict[str, Tensor]]:
        vlm, weights = self._vlm, self._config.probe_weights
        captured = vlm.capture([case.request for case in cases], self.network.sites)
        edited = vlm.with_deltas(self.network(captured, update=self.training))
        found = outcome(vlm, edited, cases, list(weights))
        return found.total(weights), found.figures

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(
            [
                {"params": list(self.network.transforms.parameters()), "lr": self._config.lr},
                {"params": [self.network.edit_lrs], "lr": self._config.lr_lr},
            ]
        )


class MEND(DeltaEditor[MENDConfig], LearnedEditor[MENDConfig]):
    """`fit` costs per step one capture and one forward and backward over the probes; `apply` costs
    one capture.
    """

    method: ClassVar[str] = "mend"
    config_class: ClassVar[type[EditorConfig]] = MENDConfig

    def facts(self, vlm: VLM) -> dict[str, Any]:
        return {"shapes": {site: list(vlm.shape(site)) for site in self.config.sites_of(vlm)}}

    def build(self, facts: Mapping[str, Any]) -> EditNetwork:
        shapes = {site: (int(out), int(in_)) for site, (out, in_) in facts["shapes"].items()}
        return EditNetwork(shapes, self.config)

    def learner(self, vlm: VLM, network: EditNetwork, cases: Sequence[EditCase]) -> MENDLearner:
        require_probes(cases, list(self.config.probe_weights), self.method)
        return MENDLearner(vlm, network, self.config)

    @torch.no_grad()
    def deltas(self, vlm: VLM, requests: Sequence[Example]) -> dict[str, LowRank]:
        network = self.network_on(vlm)
        return network(vlm.capture(requests, network.sites), update=False)
