"""Images from files: opened with limits, named by their content."""

from __future__ import annotations

import hashlib
import warnings
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from mmedit.errors import ImageError

MAX_PIXELS = 50_000_000
"""More than a 50-megapixel photograph is refused before it is decoded."""


def open_image(image: Path | Image.Image) -> Image.Image:
    """The image in RGB, upright (EXIF orientation), fully decoded.

    Raises ImageError: the file is missing, is no image, is cut off, or has more than `MAX_PIXELS` pixels.
    """
    if isinstance(image, Image.Image):
        _check_size(image, "the given image")
        return image.convert("RGB")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(image) as opened:
                _check_size(opened, str(image))
                return ImageOps.exif_transpose(opened).convert("RGB")
    except FileNotFoundError:
        raise ImageError(f"image not found: {image}. Check the path.") from None
    except IsADirectoryError:
        raise ImageError(f"{image} is a folder; an image file was wanted.") from None
    except UnidentifiedImageError:
        raise ImageError(
            f"{image} is not an image that Pillow can read (PNG, JPEG, ...)."
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(
            f"{image} has too many pixels; at most {MAX_PIXELS:,}: scale it down."
        ) from None
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{image} is broken and cannot be decoded: {error}") from error


def image_key(image: Path | Image.Image) -> str:
    """A hash of the content: equal pixels in memory, or equal bytes in a file, have equal keys."""
    if isinstance(image, Image.Image):
        header = f"{image.mode} {image.size}".encode()
        return hashlib.blake2b(header + image.tobytes(), digest_size=16).hexdigest()
    try:
        status = image.stat()
        return _file_key(image, status.st_mtime_ns, status.st_size)
    except FileNotFoundError:
        raise ImageError(f"image not found: {image}. Check the path.") from None
    except OSError as error:
        raise ImageError(f"{image} cannot be read: {error}") from error


@lru_cache(maxsize=100_000)
def _file_key(path: Path, modified_ns: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _check_size(image: Image.Image, name: str) -> None:
    pixels = image.width * image.height
    if pixels > MAX_PIXELS:
        raise ImageError(
            f"{name} has {image.width} x {image.height} = {pixels:,} pixels; at most {MAX_PIXELS:,}: scale it down."
        )
