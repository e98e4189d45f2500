"""Renderings of easy-VQA's pictures that keep the answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

LARGE_FROM_PIXELS = 22
"""Length of the longer side, in pixels, from which a shape is called large: the median of the
training images.
"""


@dataclass(frozen=True, kw_only=True)
class Box:
    """The place of the shape, in pixels, and the colour behind it."""

    left: int
    top: int
    right: int
    bottom: int
    background: tuple[int, int, int]

    @property
    def size(self) -> str:
        longer = max(self.right - self.left, self.bottom - self.top)
        return "large" if longer >= LARGE_FROM_PIXELS else "small"


def find_shape(image: Image.Image) -> Box:
    """Return the bounding box of the one shape: the pixels that differ from the usual colour."""
    image = image.convert("RGB")
    twice = _twice_median(image)  # whole numbers, as a median may lie between two values
    distance = np.abs(np.asarray(image).astype(np.int16) * 2 - twice)
    is_shape = distance[..., 0] + distance[..., 1] + distance[..., 2] > 240  # faster than sum(-1)
    rows, columns = np.flatnonzero(is_shape.any(1)), np.flatnonzero(is_shape.any(0))
    if len(rows) == 0:
        raise ValueError("the image shows no shape: every pixel is near the background colour")
    red, green, blue = (int(value) // 2 for value in twice)
    return Box(
        left=int(columns[0]),
        top=int(rows[0]),
        right=int(columns[-1]) + 1,
        bottom=int(rows[-1]) + 1,
        background=(red, green, blue),
    )


def _twice_median(image: Image.Image) -> np.ndarray:
    """Return twice the median of every colour channel, from its histogram."""
    pixels = image.width * image.height
    counts = np.asarray(image.histogram()).reshape(3, 256).cumsum(1)
    middle = [(pixels - 1) // 2, pixels // 2]
    return np.asarray([c.searchsorted(middle, side="right").sum() for c in counts], np.int16)


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """Another rendering of the same content. No setting changes the right answer to any question; a
    shape near the boundary may turn from small to large.
    """

    flip: bool = False
    degrees: float = 0.0
    scale: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)
    gain: tuple[float, float, float] = (1.0, 1.0, 1.0)
    blur: float = 0.0
    noise: float = 0.0
    seed: int = 0

    @staticmethod
    def draw(rng: np.random.Generator) -> Rendering:
        """Draw a rendering: flipped half of the time, turned by up to 12 degrees, scaled by up to
        12 %, shifted by up to 5 pixels, each colour channel changed by up to 6 %, with blur up to
        0.6 and noise up to 6/255.
        """
        gain = rng.uniform(0.94, 1.06, size=3)
        return Rendering(
            flip=bool(rng.random() < 0.5),
            degrees=float(rng.uniform(-12, 12)),
            scale=float(rng.uniform(0.88, 1.12)),
            shift=(float(rng.uniform(0, 5)), float(rng.uniform(0, 5))),
            gain=(float(gain[0]), float(gain[1]), float(gain[2])),
            blur=float(rng.uniform(0, 0.6)),
            noise=float(rng.uniform(0, 6)),
            seed=int(rng.integers(2**31)),
        )

    def apply(self, image: Image.Image, box: Box | None = None) -> Image.Image:
        """Turn and scale about the shape's centre, shift towards the middle (the shape stays in the
        picture), then the rest. `box` is the shape's, if it was found before.
        """
        image = image.convert("RGB")
        moved = self._move(image, box or find_shape(image))
        if self.flip:
            moved = moved.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.blur:
            moved = moved.filter(ImageFilter.GaussianBlur(self.blur))
        pixels = np.asarray(moved).astype(np.float32) * np.asarray(self.gain, dtype=np.float32)
        pixels += np.random.default_rng(self.seed).normal(0, self.noise, pixels.shape)
        return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))

    def _move(self, image: Image.Image, box: Box) -> Image.Image:
        center = ((box.left + box.right) / 2, (box.top + box.bottom) / 2)
        toward = [
            shift if middle < side / 2 else -shift
            for shift, middle, side in zip(self.shift, center, image.size, strict=True)
        ]
        angle = np.deg2rad(self.degrees)
        cos, sin = np.cos(angle) / self.scale, np.sin(angle) / self.scale
        x, y = center[0] + toward[0], center[1] + toward[1]
        matrix = (
            cos, sin, center[0] - cos * x - sin * y,
            -sin, cos, center[1] + sin * x - cos * y,
        )  # fmt: skip
        return image.transform(
            image.size,
            Image.Transform.AFFINE,
            matrix,
            resample=Image.Resampling.BICUBIC,
            fillcolor=box.background,
        )
