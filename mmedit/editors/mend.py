"""MEND: a small network turns the gradient of a request into an edit (Mitchell et al. 2022), for
VLMs as in MMEdit.

At a Linear site with input x_t and output gradient δ_t of token t:

    (x~_t, δ~_t) = g((x_t - μ_x) / σ_x, (δ_t - μ_δ) / σ_δ),   ΔW = lr_site · Σ_t δ~_t x~_t^T

g is one IDMLP on the concatenation, shared by all sites of a shape, with a scale and shift of its
own for each site. Trained on

    c_edit · nll(rephrase) + i_edit · nll(image rephrase) + c_loc · (KL(text locality) + KL(image
locality))

and, where `c_base` is set, on nll(request) too. Differences from the published code: δ is the
gradient of the *sum over rows* of each row's mean NLL, so it does not depend on the batch; units
that were dead while the statistics were gathered (σ = 0) are left out instead of divided by 1e-7;
`edit_lr` is trained by its own learning rate, which the published code loses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from mmedit.cases import EditCase, Example, Probe
from mmedit.deltas import LowRank
from mmedit.editors.base import Editor, EditorConfig, Report, require_same_vlm, silent
from mmedit.errors import DataError, EditorError
from mmedit.metrics import answer_nll, exact_match, kl
from mmedit.training import TrainingConfig, train
from mmedit.vlm import VLM, Captured, Predictions

EPSILON = 1e-7
DEAD = 1e-6
"""A unit is dead when its σ is below this share of the largest σ, or of its own mean: rounding
noise, not a signal.
"""


class MENDConfig(EditorConfig):
    """Defaults are MMEdit's for BLIP-2 (hparams/TRAINING/MEND/blip2.yaml)."""

    rank: int = Field(default=1920, ge=1)
    hidden_layers: int = Field(default=1, ge=0)
    norm: bool = True
    lr: float = Field(default=1e-6, gt=0)
    edit_lr: float = Field(default=1e-4)
    """Where lr_site starts."""
    lr_lr: float = Field(default=1e-4, ge=0)
    """The learning rate of lr_site."""
    c_edit: float = Field(default=0.1, ge=0)
    i_edit: float = Field(default=0.1, ge=0)
    c_loc: float = Field(default=1.0, ge=0)
    c_base: float = Field(default=0.0, ge=0)
    training: TrainingConfig = TrainingConfig(batch_size=2)


class LRLinear(nn.Module):
    """z = U(Vx) + b; with a mode z · scale[mode] + shift[mode]; then max(z, 0); plus x (the "id"
    initialisation, U = 0).
    """

    def __init__(self, width: int, rank: int, modes: int) -> None:
        super().__init__()
        mid = min(rank, width)
        self.u = nn.Parameter(torch.zeros(width, mid))
        self.v = nn.Parameter(torch.randn(mid, width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.mode_scale = nn.Parameter(torch.ones(modes, width))
        self.mode_shift = nn.Parameter(torch.zeros(modes, width))

    def forward(self, x: Float[Tensor, "*rows width"], mode: int) -> Float[Tensor, "*rows width"]:
        z = x @ self.v.T @ self.u.T + self.bias
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
    def update(self, x: Float[Tensor, "tokens width"]) -> None:
        """Add a block of tokens: no loop over tokens, no host sync."""
        if not len(x):
            return
        count = self.count + len(x)
        mean = x.mean(0)
        away = mean - self.mean
        self.squares += ((x - mean) ** 2).sum(0) + away**2 * (self.count * len(x) / count)
        self.mean += away * (len(x) / count)
        self.count.copy_(count)

    @property
    def std(self) -> Float[Tensor, " width"]:
        return (self.squares / (self.count - 1).clamp(min=1)).sqrt()

    def forward(self, x: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
        std = self.std
        alive = std > DEAD * self.mean.abs().clamp(min=std.max())
        return (x - self.mean) / (std + EPSILON) * alive


class GradientTransform(nn.Module):
    """(x, δ) to (x~, δ~) for all sites of one shape."""

    def __init__(self, x_width: int, delta_width: int, config: MENDConfig, modes: int) -> None:
        super().__init__()
        self.normalise = config.norm
        self.x_norm = RunningNorm(x_width)
        self.delta_norm = RunningNorm(delta_width)
        self.mlp = IDMLP(
            x_width + delta_width, rank=config.rank, hidden_layers=config.hidden_layers, modes=modes
        )

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
            self.x_norm.update(x[counted])
            self.delta_norm.update(delta[counted])
        if self.normalise:
            x, delta = self.x_norm(x), self.delta_norm(delta)
        both = self.mlp(torch.cat([x, delta], dim=-1), mode) * counted.unsqueeze(-1)
        new_x, new_delta = both.split([x.shape[-1], delta.shape[-1]], dim=-1)
        return new_x, new_delta


def reached(
    x: Float[Tensor, "batch tokens in"], delta: Float[Tensor, "batch tokens out"]
) -> Bool[Tensor, "batch tokens"]:
    """The tokens that bear on the edit."""
    return (x != 0).any(-1) & (delta != 0).any(-1)


class EditNetwork(nn.Module):
    """All that MEND learns: a transform per weight shape, an edit learning rate per site."""

    def __init__(self, shapes: Mapping[str, tuple[int, int]], config: MENDConfig) -> None:
        super().__init__()
        self.sites = tuple(shapes)
        by_shape: dict[str, list[str]] = {}
        for site, (out, in_) in shapes.items():
            by_shape.setdefault(f"{in_}x{out}", []).append(site)
        self.place = {
            site: (key, mode) for key, sites in by_shape.items() for mode, site in enumerate(sites)
        }
        self.transforms = nn.ModuleDict(
            {
                key: GradientTransform(in_, out, config, modes=len(sites))
                for key, sites in by_shape.items()
                for out, in_ in [shapes[sites[0]]]
            }
        )
        self.edit_lrs = nn.Parameter(torch.full((len(shapes),), config.edit_lr))

    def forward(self, captured: Captured, *, update: bool) -> dict[str, LowRank]:
        """One low-rank delta per row and site, of rank = tokens."""
        deltas = {}
        for number, site in enumerate(self.sites):
            key, mode = self.place[site]
            x, delta = self.transforms[key](
                captured.x[site], captured.delta[site], mode, update=update
            )
            deltas[site] = LowRank(u=self.edit_lrs[number] * delta, v=x)
        return deltas


class MEND(Editor[MENDConfig]):
    """`fit` costs per step one capture and one forward and backward over the probes; `apply` costs
    one capture.
    """

    method: ClassVar[str] = "mend"
    config_class: ClassVar[type[EditorConfig]] = MENDConfig

    def __init__(self, config: MENDConfig) -> None:
        super().__init__(config)
        self._network: EditNetwork | None = None
        self._shapes: dict[str, tuple[int, int]] = {}
        self._fingerprint = ""

    @property
    def needs_fit(self) -> bool:
        return True

    @property
    def is_fitted(self) -> bool:
        return self._network is not None

    def fit(
        self,
        vlm: VLM,
        cases: Sequence[EditCase],
        *,
        validation: Sequence[EditCase] = (),
        seed: int = 0,
        report: Report = silent,
    ) -> None:
        _require_probes(cases)
        self._shapes = {site: vlm.shape(site) for site in self.config.sites_of(vlm)}
        self._fingerprint = vlm.fingerprint
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = EditNetwork(self._shapes, self.config).to(vlm.device)
        optimizer = torch.optim.Adam(
            [
                {"params": list(network.transforms.parameters()), "lr": self.config.lr},
                {"params": [network.edit_lrs], "lr": self.config.lr_lr},
            ]
        )
        train(
            optimizer,
            lambda batch: self._outer_loss(vlm, network, batch),
            cases,
            self.config.training,
            seed=seed,
            report=report,
        )
        self._network = network.requires_grad_(False)

    def apply(self, vlm: VLM, requests: Sequence[Example]) -> VLM:
        if not requests:
            return vlm
        separate = self._deltas(vlm, requests)
        together = {
            site: LowRank(u=delta.u.flatten(0, 1), v=delta.v.flatten(0, 1))
            for site, delta in separate.items()
        }
        return vlm.with_deltas(together)

    def apply_each(self, vlm: VLM, requests: Sequence[Example]) -> VLM:
        return vlm.with_deltas(self._deltas(vlm, requests)) if requests else vlm

    @torch.no_grad()
    def _deltas(self, vlm: VLM, requests: Sequence[Example]) -> dict[str, LowRank]:
        if self._network is None:
            raise EditorError(
                "MEND has not been trained: call fit(vlm, cases), or load a trained editor"
            )
        require_same_vlm(vlm, self._fingerprint, self.method)
        network = self._network.to(vlm.device)
        return network(vlm.capture(requests, network.sites), update=False)

    def _outer_loss(
        self, vlm: VLM, network: EditNetwork, cases: Sequence[EditCase]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of the module docstring, a mean over the batch. All probes of all edits go in
        one forward.
        """
        captured = vlm.capture([case.request for case in cases], network.sites)
        edited = vlm.with_deltas(network(captured, update=True))
        asked = [probe for probe in self._weights() if probe in cases[0].probes]
        examples = [case.probes[probe][0] for probe in asked for case in cases]
        rows = [row for _ in asked for row in range(len(cases))]
        after = edited.select(rows).predict(examples)
        parts, right = {}, {}
        for number, probe in enumerate(asked):
            part = after[slice(number * len(cases), (number + 1) * len(cases))]
            if probe.is_locality:
                with torch.no_grad():
                    before = vlm.predict([case.probes[probe][0] for case in cases])
                parts[probe] = _divergence(before, part).mean()
            else:
                parts[probe] = answer_nll(part.logits, part.target, part.is_answer).mean()
                right[probe] = exact_match(part.logits, part.target, part.is_answer).float().mean()
        loss = torch.stack(
            [weight * parts[probe] for probe, weight in self._weights().items() if probe in parts]
        )
        figures = {
            f"{probe}/kl": part.detach() for probe, part in parts.items() if probe.is_locality
        }
        return loss.sum(), figures | {f"{probe}/exact": value for probe, value in right.items()}

    def _weights(self) -> dict[Probe, float]:
        weights = {
            Probe.RELIABILITY: self.config.c_base,
            Probe.TEXT_GENERALITY: self.config.c_edit,
            Probe.IMAGE_GENERALITY: self.config.i_edit,
            Probe.TEXT_LOCALITY: self.config.c_loc,
            Probe.IMAGE_LOCALITY: self.config.c_loc,
        }
        return {probe: weight for probe, weight in weights.items() if weight}

    def state(self) -> dict[str, Tensor]:
        return dict(self._network.state_dict()) if self._network else {}

    def notes(self) -> dict[str, object]:
        return {
            "vlm": self._fingerprint,
            "shapes": {site: list(shape) for site, shape in self._shapes.items()},
        }

    def load_state(self, tensors: dict[str, Tensor], notes: dict[str, object]) -> None:
        shapes = notes["shapes"]
        assert isinstance(shapes, dict)
        self._shapes = {site: (int(out), int(in_)) for site, (out, in_) in shapes.items()}
        self._fingerprint = str(notes["vlm"])
        self._network = EditNetwork(self._shapes, self.config)
        self._network.load_state_dict(tensors)
        self._network.requires_grad_(False)


def _divergence(before: Predictions, after: Predictions) -> Float[Tensor, " batch"]:
    """KL(before || after), mean over the text tokens of each row. `after` may be padded further
    than `before`.
    """
    text = before.target.shape[1]
    return kl(before.logits, after.logits[:, :text], before.is_text)


def _require_probes(cases: Sequence[EditCase]) -> None:
    wanted = {
        Probe.TEXT_GENERALITY,
        Probe.IMAGE_GENERALITY,
        Probe.TEXT_LOCALITY,
        Probe.IMAGE_LOCALITY,
    }
    kinds = {frozenset(case.probes) & wanted for case in cases}
    if len(kinds) != 1 or not next(iter(kinds), None):
        raise DataError(
            "MEND is trained on rephrases and locality probes; every training case must have the "
            "same kinds of "
            f"them. Found: {sorted(sorted(kind) for kind in kinds)}"
        )
