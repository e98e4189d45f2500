"""Small copies of images inside a page, so that the page is one file."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageOps

from mmedit.errors import ImageError

PIXELS = 128
"""Longer side of a thumbnail, in pixels."""
QUALITY = 80
"""Quality of a thumbnail in WebP: a photograph takes about 4 kB, as PNG 30 kB."""

Images = Callable[[str], Path | None] | Mapping[str, Path]
"""The files of images, by the image's name in records."""


@dataclass(frozen=True)
class Thumbnail:
    """A small image as a data URI, with its size in pixels."""

    uri: str
    width: int
    height: int


def thumbnails(images: Images) -> Callable[[str], Thumbnail | None]:
    """Return a function that makes the thumbnail of an image by its name in records, each once.

    It returns None for an image without a file, and raises ImageError for a file that is not an
    image.
    """
    find = images.get if isinstance(images, Mapping) else images

    @cache
    def thumbnail(name: str) -> Thumbnail | None:
        path = find(name)
        return _thumbnail(path) if path is not None and path.exists() else None

    return thumbnail


def data_uri(content: bytes, kind: str) -> str:
    """Return an image as a data URI; `kind` is its format, for example "webp"."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _thumbnail(path: Path) -> Thumbnail:
    """Make a thumbnail, turned upright."""
    try:
        with Image.open(path) as image:
            image.draft("RGB", (2 * PIXELS, 2 * PIXELS))  # a JPEG file is read at a small size
            small = ImageOps.exif_transpose(image).convert("RGBA")
        small.thumbnail((PIXELS, PIXELS))
    except (OSError, Image.DecompressionBombError) as error:
        raise ImageError(
            f"cannot show {path}: {error}; give a readable image, or no file to leave it out"
        ) from error
    written = BytesIO()
    small.save(written, "WEBP", quality=QUALITY)
    return Thumbnail(data_uri(written.getvalue(), "webp"), *small.size)
