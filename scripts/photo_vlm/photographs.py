"""Photographs of the Grocery Store Dataset in changed views, and the tower's output for each.

The tower is frozen, so each view goes through it once. The features are kept in the run's folder,
in parts, so a killed run goes on where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmedit.datasets.grocery.files import read_classes, read_list
from mmedit.progress import Progress
from mmedit.storage import replaced

PART = 512
"""Number of images whose features are one file."""
BATCH = 16
"""Number of images that go through the tower together, with all their views."""


@dataclass(frozen=True, kw_only=True)
class Photograph:
    """A photograph or iconic picture, and the name of the class it shows."""

    path: Path
    shown: str


def read_photographs(root: Path, *lists: str, iconic: bool = False) -> list[Photograph]:
    """Return the photographs of lists ("train", "val", "test"), and the iconic pictures last."""
    classes = read_classes(root)
    found = [
        Photograph(path=path, shown=classes[number].name)
        for name in lists
        for path, number in read_list(root / f"{name}.txt", root, len(classes))
    ]
    if iconic:
        found += [Photograph(path=c.iconic, shown=c.name) for c in classes if c.iconic]
    return found


def change_view(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return a part of an image as another photographer would have taken it.

    A crop of 40 to 100 % of the area, turned by up to 15 degrees, mirrored or not, in other light.
    """
    width, height = image.size
    share, aspect = rng.uniform(0.4, 1.0), np.exp(rng.uniform(-0.25, 0.25))
    w = min(width, round(width * np.sqrt(share * aspect)))
    h = min(height, round(height * np.sqrt(share / aspect)))
    x, y = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
    image = image.rotate(rng.uniform(-15, 15), Image.Resampling.BICUBIC, fillcolor=(128, 128, 128))
    image = image.crop((x, y, x + w, y + h))
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(rng.uniform(0.7, 1.3))
    return image


def load_features(
    network: Any,
    processor: Any,
    photographs: Sequence[Photograph],
    folder: Path,
    *,
    views: int,
    seed: int,
    progress: Progress,
) -> Tensor:
    """Return the tower's output for every view [image, view, cells, 1280] in half precision.

    The first view is the photograph itself. Parts that `folder` has are read from there. Costs one
    pass of the tower for each view.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for first in range(0, len(photographs), PART):
        file = folder / f"{first:05}.safetensors"
        if not file.exists():
            chosen = photographs[first : first + PART]
            made = [
                _encode(network, processor, chosen[at : at + BATCH], first + at, views, seed)
                for at in range(0, len(chosen), BATCH)
            ]
            with replaced(file) as partial:
                save_file({"features": torch.cat(made)}, partial)
        parts.append(load_file(file)["features"])
        progress(folder.name, min(first + PART, len(photographs)), len(photographs), "")
    return torch.cat(parts)


@torch.no_grad()
def _encode(
    network: Any,
    processor: Any,
    photographs: Sequence[Photograph],
    first: int,
    views: int,
    seed: int,
) -> Tensor:
    """Return the features [image, view, cells, 1280] of a few images; `first` is the place of the
    first one, from which its views are drawn.
    """
    images = []
    for place, photograph in enumerate(photographs, start=first):
        rng = np.random.default_rng([seed, 0, place])
        plain = Image.open(photograph.path).convert("RGB")
        images += [plain, *(change_view(plain, rng) for _ in range(views - 1))]
    pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"]
    map_ = network.model.vision_tower(pixels).last_hidden_state
    return map_.flatten(2).transpose(1, 2).half().unflatten(0, (len(photographs), views))
