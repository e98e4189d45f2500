"""Everything that MEND learns: the transforms g of gradients, and a step size for each site."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from accelerate.utils import reduce
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mmedit.deltas import LowRank
from mmedit.methods.mend.config import MENDConfig
from mmedit.vlm.outputs import Captured, SiteTokens

EPSILON = 1e-7
"""Added to σ before the division."""
DEAD = 1e-6
"""A unit is dead if its σ is below this share of the largest σ, or of its own mean."""


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
