"""The settings of a causal tracing run."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field, field_validator

from mmedit.settings import MAX_SEED, Settings

Corruption = Literal["image_noise", "image_swap", "text_noise"]
Component = Literal["block", "mlp", "attention"]
CORRUPTIONS: tuple[Corruption, ...] = get_args(Corruption)
COMPONENTS: tuple[Component, ...] = get_args(Component)
GROUPS = ("text before", "image", "question", "subject", "text after", "last prompt token")
"""The groups other than image cells, in the order in which they stand."""


class TraceSettings(Settings):
    """How a run is corrupted, and what is restored in it."""

    corruption: Corruption = "image_swap"
    """image_noise: noise on the image's features; image_swap: the features of another image with
    which the base model answers otherwise; text_noise: noise on the embeddings of the subject, or
    of the whole question if it has no subject.
    """
    components: tuple[Component, ...] = COMPONENTS
    """The outputs that are restored: those of a whole layer (block), of its MLP or attention."""
    draws: int = Field(default=10, ge=1, le=1000)
    """Number of noise draws per item. A swap has one."""
    noise: float = Field(default=3.0, gt=0)
    """Standard deviation of the noise, in standard deviations of what it is added to."""
    window: int | None = Field(default=None, ge=1)
    """Number of layers in which MLP or attention is restored together; None: 10, up to 32 layers 6,
    and at most a third of the layers.
    """
    cells: int = Field(default=4, ge=0, le=16)
    """Number of cells along each side of the image whose block outputs are restored one cell at a
    time, in some layers; below 2 none.
    """
    cell_layers: int = Field(default=6, ge=1, le=1000)
    """Number of layers, evenly spread from the first one on, in which cells are restored."""
    rows: int = Field(default=128, ge=1, le=100_000)
    """Largest number of rows (restored runs) in one forward. No rate depends on it."""
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    """Seed of the noise, and of the choice of other images."""

    @field_validator("components")
    @classmethod
    def _distinct(cls, components: tuple[Component, ...]) -> tuple[Component, ...]:
        if not components:
            raise ValueError(f"expected at least one of {', '.join(COMPONENTS)}")
        return tuple(one for one in COMPONENTS if one in components)

    def window_of(self, layers: int) -> int:
        """Return the width of a window in a model of so many layers."""
        usual = min(10 if layers > 32 else 6, max(1, layers // 3))
        return min(self.window or usual, layers)

    def cell_layers_of(self, layers: int) -> tuple[int, ...]:
        """Return the layers in which cells are restored, in a model of so many layers."""
        if "block" not in self.components:
            return ()
        chosen = min(self.cell_layers, layers)
        return tuple(number * layers // chosen for number in range(chosen))

    @property
    def needs_image(self) -> bool:
        """Whether the corruption is one of the image."""
        return self.corruption != "text_noise"


def window_at(layer: int, width: int, layers: int) -> range:
    """Return the layers of the window around a layer, cut off at both ends of the model.

    >>> window_at(5, 4, 12), window_at(0, 4, 12), window_at(5, 1, 12)
    (range(3, 7), range(0, 2), range(5, 6))
    """
    begin = layer - width // 2
    return range(max(0, begin), min(layers, begin + width))
