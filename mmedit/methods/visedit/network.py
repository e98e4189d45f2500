"""Everything that VisEdit learns: the adaptor of the image's states, and the influence map."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from mmedit.adapters.inputs import side_by_side
from mmedit.editors.attention import Attention
from mmedit.editors.blocks import BlockOutput
from mmedit.editors.shifts import Shift
from mmedit.methods.visedit.config import VisEditConfig

EPSILON = 1e-8
"""Added to probabilities before the logarithm, as published."""
States = Float[Tensor, "rows tokens hidden"]


class Signal(NamedTuple):
    """The signals of edits, a row for each."""

    states: States
    """E; behind its last token zeros."""
    end: Float[Tensor, "rows hidden"]
    """E at the last prompt token."""

    @property
    def real(self) -> Bool[Tensor, "rows tokens"]:
        """The tokens of each edit."""
        return self.states.any(-1)


class Packed(NamedTuple):
    """Some states of each row of a batch, side by side."""

    states: States
    real: Bool[Tensor, "rows tokens"]
    """False behind the last token of a row."""
    place: Int[Tensor, "rows tokens"]
    """Positions in the batch."""


class Residual(nn.Module):
    """R(x) = x + W₂ relu(W₁ x)."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.l_in, self.l_out = nn.Linear(hidden, width), nn.Linear(width, hidden)

    def forward(self, x: Float[Tensor, "*rows hidden"]) -> Float[Tensor, "*rows hidden"]:
        return x + self.l_out(F.relu(self.l_in(x)))


class InfluenceMap(nn.Module):
    """How much each image token matters to an edit."""

    def __init__(self, hidden: int, config: VisEditConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.image_norm, self.edit_norm = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.image_map = Residual(hidden, config.influence)
        self.edit_map = Residual(hidden, config.influence)

    def forward(self, image: States, end: Float[Tensor, "rows hidden"]) -> Tensor:
        """Return s, [rows, tokens]: the mean over heads of their products / √width of a head."""
        wanted = self.edit_map(self.edit_norm(end)).unsqueeze(-1)
        found = (self.image_map(self.image_norm(image)) @ wanted).squeeze(-1)
        return found / (self.heads * image.shape[-1]) ** 0.5


class Adaptor(nn.Module):
    """Everything that VisEdit learns."""

    def __init__(self, hidden: int, config: VisEditConfig) -> None:
        super().__init__()
        self.image_norm, self.edit_norm = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.begin = nn.Linear(hidden, config.module)
        self.attention = Attention(config.module, hidden, config.module, config.heads)
        self.end = nn.Linear(config.module, hidden)
        self.influence = InfluenceMap(hidden, config)

    def forward(self, image: States, signal: Signal) -> tuple[States, Float[Tensor, "rows tokens"]]:
        """Return what is added to the image's states, and s."""
        asking = self.begin(self.image_norm(image))
        read = self.attention(asking, self.edit_norm(signal.states), signal.real)
        s = self.influence(image, signal.end)
        return s.sigmoid().unsqueeze(-1) * self.end(read), s


def signal_of(block: BlockOutput) -> Signal:
    """Return the signals of edits, from what the layer gives for them."""
    tokens, real, _ = packed(block.states, block.places.is_real)
    rows = torch.arange(len(real), device=real.device)
    end = block.states[rows, block.places.last_prompt]
    return Signal(tokens.masked_fill(~real.unsqueeze(-1), 0), end)


def image_shift(adaptor: Adaptor, block: BlockOutput, signal: Signal) -> tuple[Shift, Tensor]:
    """Return what is added to the image's states of each row, and s at its image tokens. Nothing is
    added to a row without image.
    """
    image = packed(block.states, block.places.is_image)
    value, s = adaptor(image.states, signal)
    rows, tokens, hidden = block.states.shape
    writes = value.new_zeros(rows, tokens, value.shape[1])
    writes.scatter_(1, image.place.unsqueeze(1), image.real.to(writes).unsqueeze(1))
    return Shift(value, writes, hidden), s


def packed(states: States, chosen: Bool[Tensor, "rows tokens"]) -> Packed:
    """Return the states at the chosen tokens side by side, in their order."""
    place = side_by_side(chosen)
    found = states.gather(1, place.unsqueeze(-1).expand(-1, -1, states.shape[-1]))
    return Packed(found, chosen.gather(1, place), place)


def influence_losses(near: Tensor, far: Tensor) -> tuple[Tensor, Tensor]:
    """Return the losses of s: it rises on images of the edit, and falls on others."""
    up = -(near.sigmoid() + EPSILON).log().mean()
    return up, -(1 - far.sigmoid() + EPSILON).log().mean()
