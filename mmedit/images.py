"""Images from files: opened with limits, named by their content."""

from __future__ import annotations

import hashlib
import os
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from mmedit.errors import ImageError, shortened
from mmedit.progress import Progress

MAX_PIXELS = 50_000_000
"""Maximum number of pixels. A larger image is refused before it is decoded."""
ORIENTATION, LYING = 0x0112, 5
"""The EXIF tag of the orientation, and the first value at which width and height change places."""


def open_image(image: Path | Image.Image) -> Image.Image:
    """Return the image in RGB, upright (EXIF orientation), fully decoded.

    Raises ImageError if the file is missing, is not an image, is cut off, or has more than
    `MAX_PIXELS` pixels or more than 8 bits per pixel and channel.
    """
    if isinstance(image, Image.Image):
        return decoded(lambda: nullcontext(image), shown(image))
    _require_file(image)
    return decoded(lambda: Image.open(image), shown(image))


def require_header(image: Path | Image.Image) -> tuple[int, int]:
    """Return width and height of an image, upright. Of a file, only the first bytes are read.

    Raises ImageError if the file is missing, is not an image, or has too many pixels or too many
    bits per pixel. A file that is cut off is not noticed.
    """
    if isinstance(image, Image.Image):
        return _size(image, shown(image))
    status = _require_file(image)
    return _file_size(image, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=100_000)
def _file_size(path: Path, modified_ns: int, size: int) -> tuple[int, int]:
    with _faults_of(shown(path)), Image.open(path) as opened:
        return _size(opened, shown(path))


def shown(image: Path | Image.Image) -> str:
    """Return how an error names an image: by its path, if it has one."""
    return str(image) if isinstance(image, Path) else "the given image"


def image_key(image: Path | Image.Image) -> str:
    """Return a hash of the content: of the pixels in memory, or of the bytes of a file."""
    if isinstance(image, Image.Image):
        seen = open_image(image)  # palette and orientation count, not only the stored numbers
        header = f"{seen.size}".encode()
        return hashlib.blake2b(header + seen.tobytes(), digest_size=16).hexdigest()
    status = _require_file(image)
    try:
        return _file_key(image, status.st_mtime_ns, status.st_size)
    except OSError as error:
        raise ImageError(f"{image} cannot be read: {error.strerror}. Check the file.") from error


@lru_cache(maxsize=100_000)
def _file_key(path: Path, modified_ns: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _require_file(path: Path) -> os.stat_result:
    """Return the status of an image file; ImageError unless it is a regular file.

    It stands before every opening: to open a pipe would wait for ever.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        raise ImageError(f"image not found: {path}. Check the path.") from None
    except (OSError, ValueError) as error:  # no permission; a name too long; a NUL
        reason = error.strerror if isinstance(error, OSError) else error
        raise ImageError(
            f"the image {shortened(str(path))} cannot be read: {reason}. Check the path."
        ) from None
    if stat.S_ISDIR(status.st_mode):
        raise ImageError(f"{path} is a folder; expected an image file.")
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(
            f"{path} is not a regular file (a pipe, a device or a socket); expected an image file."
        )
    return status


def decoded(source: Callable[[], AbstractContextManager[Image.Image]], name: str) -> Image.Image:
    """Open an image and decode it. Raises ImageError."""
    with _faults_of(name), source() as opened:
        return _decode(opened, name)


@contextmanager
def _faults_of(name: str) -> Iterator[None]:
    """Turn Pillow's errors into an ImageError that names the image."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except UnidentifiedImageError:
        raise ImageError(f"{name} is not an image that Pillow can read (PNG, JPEG, ...).") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(
            f"{name} has too many pixels; expected at most {MAX_PIXELS:,}: scale it down."
        ) from None
    except PermissionError as error:
        raise ImageError(f"{name} cannot be read: {error.strerror}.") from None
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{name} is broken and cannot be decoded: {error}") from error


def _size(image: Image.Image, name: str) -> tuple[int, int]:
    _check(image, name)
    if image.format == "PNG" and "exif" not in image.info:
        return image.size  # Pillow would decode all pixels to look for it behind them
    lies = image.getexif().get(ORIENTATION, 1) >= LYING
    return (image.height, image.width) if lies else image.size


def _decode(image: Image.Image, name: str) -> Image.Image:
    _check(image, name)
    return ImageOps.exif_transpose(image).convert("RGB")


def _check(image: Image.Image, name: str) -> None:
    check_pixels(image.size, name)
    if image.mode.startswith(("I", "F")):
        raise ImageError(
            f"{name} has more than 8 bits per pixel (mode {image.mode!r}), which would be clipped "
            "to white: scale its values to 0 to 255 and save it as an 8-bit image."
        )


def check_pixels(size: tuple[int, int], name: str) -> None:
    """Raise ImageError if an image of this width and height has more than `MAX_PIXELS` pixels."""
    width, height = size
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{name} has {width} x {height} = {width * height:,} pixels; expected "
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
