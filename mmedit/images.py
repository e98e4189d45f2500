"""Images from files: opened with limits, named by their content."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from mmedit.errors import ImageError
from mmedit.progress import Progress

MAX_PIXELS = 50_000_000
"""Maximum number of pixels. A larger image is refused before it is decoded."""


def open_image(image: Path | Image.Image) -> Image.Image:
    """Return the image in RGB, upright (EXIF orientation), fully decoded.

    Raises ImageError if the file is missing, is not an image, is cut off, or has more than
    `MAX_PIXELS` pixels or more than 8 bits per pixel and channel.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if isinstance(image, Image.Image):
                return _decode(image, "the given image")
            with Image.open(image) as opened:
                return _decode(opened, str(image))
    except FileNotFoundError:
        raise ImageError(f"image not found: {image}. Check the path.") from None
    except IsADirectoryError:
        raise ImageError(f"{image} is a folder; expected an image file.") from None
    except UnidentifiedImageError:
        raise ImageError(
            f"{image} is not an image that Pillow can read (PNG, JPEG, ...)."
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(
            f"{image} has too many pixels; expected at most {MAX_PIXELS:,}: scale it down."
        ) from None
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{image} is broken and cannot be decoded: {error}") from error


def image_key(image: Path | Image.Image) -> str:
    """Return a hash of the content: of the pixels in memory, or of the bytes of a file."""
    if isinstance(image, Image.Image):
        seen = open_image(image)  # palette and orientation count, not only the stored numbers
        header = f"{seen.size}".encode()
        return hashlib.blake2b(header + seen.tobytes(), digest_size=16).hexdigest()
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


def _decode(image: Image.Image, name: str) -> Image.Image:
    _check_size(image, name)
    if image.mode.startswith(("I", "F")):
        raise ImageError(
            f"{name} has more than 8 bits per pixel (mode {image.mode!r}), which would be clipped "
            "to white: scale its values to 0 to 255 and save it as an 8-bit image."
        )
    return ImageOps.exif_transpose(image).convert("RGB")


def _check_size(image: Image.Image, name: str) -> None:
    pixels = image.width * image.height
    if pixels > MAX_PIXELS:
        raise ImageError(
            f"{name} has {image.width} x {image.height} = {pixels:,} pixels; expected "
            f"at most {MAX_PIXELS:,}: scale it down."
        )


def corrupt_images(name: str, paths: Sequence[Path], progress: Progress) -> tuple[str, ...]:
    """Return the errors of the images that cannot be opened."""
    faults = []
    for number, path in enumerate(paths):
        try:
            open_image(path)
        except ImageError as error:
            faults.append(str(error))
        progress(f"opening images of {name}", number + 1, len(paths), "")
    return tuple(faults)
