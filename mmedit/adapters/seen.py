"""One image during one call: its tokens in the text, and its pixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import final

import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from mmedit.cases import Example
from mmedit.errors import ImageError, one_line

UNUSABLE = (ArithmeticError, LookupError, OSError, RuntimeError, TypeError, ValueError)
"""Errors of transformers' code for images, for pictures and settings that it does not expect."""
Pixels = Mapping[str, Tensor]
"""The output of an image processor for one image: `pixel_values` and further tensors.

The first axis is that of images, tiles or patches.
"""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The tokens that an image has in the text, and the sizes that positions depend on."""

    placeholder: tuple[int, ...]
    sizes: Mapping[str, Tensor] = field(default_factory=dict)

    @cached_property
    def tokens(self) -> Int[Tensor, " tokens"]:
        """`placeholder` as a tensor, on the CPU."""
        return torch.tensor(self.placeholder, dtype=torch.long)


@final
class SeenImage:
    """The image of one example during one call: its layout, and its pixels when they are needed."""

    def __init__(
        self, example: Example, key: str, layout: Layout, pixels: Callable[[], Pixels]
    ) -> None:
        self.example = example
        self.key = key
        self.layout = layout
        self._pixels = pixels

    @cached_property
    def pixels(self) -> Pixels:
        """The preprocessed image, on the CPU, in float32."""
        return self._pixels()

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of the pixels. Images with equal shapes can be rows of one batch."""
        return tuple(tuple(tensor.shape) for tensor in self.pixels.values())


def prepared(
    prepare: Callable[[Image.Image], tuple[Layout, Pixels]], image: Image.Image, name: str
) -> tuple[Layout, Pixels]:
    """Return what an image processor makes of an image.

    Raises ImageError, which says `name`, if the processor refuses the image.
    """
    try:
        return prepare(image)
    except UNUSABLE as error:
        raise ImageError(
            f"{name} has {image.width} x {image.height} pixels, and the VLM's image processor "
            f"refuses it: {one_line(error)}. Crop it, or leave it out."
        ) from error
