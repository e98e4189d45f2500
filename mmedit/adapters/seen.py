"""One image during one call: its tokens in the text, and its pixels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import final

import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from mmedit.cases import Example
from mmedit.errors import ImageError, one_line
from mmedit.images import image_key, open_image, require_header, shown

LAYOUTS = 4096
"""Number of images whose layout an adapter remembers."""
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


class Sees(ABC):
    """A network with its processor, as far as images of examples need them."""

    layouts: OrderedDict[str, Layout]
    """The layouts of the latest images, by their keys."""

    @abstractmethod
    def prepare(self, image: Image.Image) -> tuple[Layout, Pixels]:
        """Preprocess one image: return its layout in the text, and its pixels."""

    def see(self, example: Example) -> SeenImage:
        """Return the example's image.

        It is decoded now if its layout is not known yet, else when its pixels are needed.
        """
        if example.image is None:
            raise ValueError("an example without image was given as one with image")
        image, key = example.image, image_key(example.image)
        if (layout := self._known_layout(key)) is not None:
            return SeenImage(example, key, layout, lambda: self._prepared(image)[1])
        layout, pixels = self._prepared(image)
        self.layouts[key] = layout
        if len(self.layouts) > LAYOUTS:
            self.layouts.popitem(last=False)
        return SeenImage(example, key, layout, lambda: pixels)

    def _prepared(self, image: Path | Image.Image) -> tuple[Layout, Pixels]:
        return prepared(self.prepare, open_image(image), shown(image))

    def _known_layout(self, key: str) -> Layout | None:
        """Return the layout of an image that was prepared before, or that all images share."""
        layout = self.layouts.get(key)
        if layout is not None:
            self.layouts.move_to_end(key)
        return layout

    def layout_of(self, image: Path | Image.Image) -> Layout:
        """Return the layout of an image, of whose file only the header is read. Raises ImageError.

        Images of one size have one layout, so the image processor sees a blank one of each size.
        """
        size = require_header(image)
        key = "{} x {}".format(*size)
        if (layout := self._known_layout(key)) is None:
            layout, _ = prepared(self.prepare, Image.new("RGB", size), shown(image))
            self.layouts[key] = layout
        return layout
