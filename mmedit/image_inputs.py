"""The forms that an image may be given in: a path, a PIL image, an array, a tensor, bytes, a file
object, a row of a column of images.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

from PIL import Image

from mmedit.errors import ImageError, shortened
from mmedit.images import check_pixels, decoded
from mmedit.storage import broken_text

if TYPE_CHECKING:
    import numpy as np

CHANNELS = (1, 3, 4)
"""Numbers of channels of an array: grey, RGB, RGB with opacity."""
ADDRESS = re.compile(r"(https?|ftp|s3|gs|hf):/|data:", re.IGNORECASE)


@runtime_checkable
class Array(Protocol):
    """An array or a tensor."""

    def __array__(self) -> Any: ...


@runtime_checkable
class Readable(Protocol):
    """A file that was opened, or anything that is read like one."""

    def read(self) -> bytes: ...

    def seekable(self) -> bool: ...

    def seek(self, offset: int, /) -> object: ...


ImageInput: TypeAlias = (
    str | os.PathLike[str] | Image.Image | Array | bytes | Readable | Mapping[str, Any]
)
"""The forms of an image that `as_image` reads."""


def as_image(image: Any) -> Path | Image.Image:
    """Return an image as a path or a PIL image, whatever form it was given in.

    A path stays a path: its file is not touched. Arrays and tensors hold one image, height x width
    x channels or channels x height x width, as uint8 or as floats from 0 to 1; bytes and file
    objects hold the content of an image file, and so does the dictionary of a column of images
    (`datasets`): {"bytes": ..., "path": ...}. These are decoded now. Raises ImageError.

    >>> import numpy
    >>> as_image(numpy.zeros((30, 40, 3), numpy.uint8)).size
    (40, 30)
    """
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, str | os.PathLike):
        path = os.fsdecode(image)
        _require_path(path)
        return image if isinstance(image, Path) else Path(path)
    if (pixels := _pixels_of(image)) is not None:
        return pixels
    if isinstance(image, bytes | bytearray | memoryview):
        return _of_bytes(bytes(image), "the image given as bytes")
    if isinstance(image, Mapping) and image.keys() <= {"bytes", "path"}:
        return _of_row(image)
    if isinstance(image, Readable):
        return _of_bytes(_content_of(image), "the image given as a file object")
    if isinstance(image, list | tuple):
        found = "a list of 1 image was" if len(image) == 1 else f"{len(image)} images were"
        raise ImageError(
            f"{found} given; an example has one image or none. Give the image itself; join several "
            "into one picture, or make an example of each."
        )
    raise ImageError(
        f"the image is of type {type(image).__name__}; expected a path, a PIL image, an array or a "
        "tensor of one image, the bytes of an image file, a file object, or a dictionary with "
        '"bytes" and "path"'
    )


def _pixels_of(image: Any) -> Image.Image | None:
    """Return a tensor or an array as a PIL image, and None for anything else."""
    # Whoever has a tensor or an array has imported its package; the import takes time.
    torch: Any = sys.modules.get("torch")
    numpy: Any = sys.modules.get("numpy")
    if torch is not None and isinstance(image, torch.Tensor):
        tensor = image.detach().cpu()
        array = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
        return _of_array(array, "tensor", channels_first=True)
    if numpy is not None and isinstance(image, numpy.ndarray):
        return _of_array(image, "array", channels_first=False)
    return None


def _require_path(path: str) -> None:
    """Raise ImageError if no file can have this path. The file is not touched."""
    if not path.strip():
        raise ImageError("the path of an image is empty; leave the image out, or name a file")
    if "\0" in path:
        raise ImageError(f"the path {shortened(path)} contains a NUL; expected the path of a file")
    if fault := broken_text(path):
        raise ImageError(f"the path {shortened(path)} {fault}; rename the file")
    if ADDRESS.match(path):
        raise ImageError(
            f"{shortened(path)} is an address; expected a file: download the image first"
        )


def _of_row(row: Mapping[Any, Any]) -> Path | Image.Image:
    """Return the image of a dictionary with "bytes" and "path", the bytes first."""
    content, path = row.get("bytes"), row.get("path")
    if content is not None:
        return _of_bytes(content, "the image given as bytes")
    if path is not None:
        return as_image(path)
    raise ImageError(
        'the dictionary of an image has neither "bytes" nor "path"; expected the content of an '
        "image file, or its path"
    )


def _of_bytes(content: object, name: str) -> Image.Image:
    if not isinstance(content, bytes):
        raise ImageError(
            f"{name} is of type {type(content).__name__}; expected bytes: open the file with "
            'mode "rb"'
        )
    return decoded(lambda: Image.open(io.BytesIO(content)), name)


def _content_of(file: Readable) -> object:
    """Return what a file object holds, from its start if it can go back there."""
    try:
        if file.seekable():
            file.seek(0)
        return file.read()
    except (OSError, ValueError) as error:  # closed; text of another encoding
        raise ImageError(f"the image given as a file object cannot be read: {error}") from None


def _of_array(array: np.ndarray, kind: str, *, channels_first: bool) -> Image.Image:
    """Return an array or a tensor of one image as a PIL image.

    If the first and the last axis could both be channels, `channels_first` decides.
    """
    first, last = (array.ndim == 3 and array.shape[axis] in CHANNELS for axis in (0, -1))
    pixels = array
    if first and (channels_first or not last):
        pixels = array.transpose(1, 2, 0)
    if not (array.ndim == 2 or first or last) or 0 in array.shape:
        raise ImageError(
            f"the {kind} of the image has shape {list(array.shape)}; expected one image: [height, "
            "width, 3], [3, height, width] or [height, width]"
        )
    size = pixels.shape[1], pixels.shape[0]
    check_pixels(size, f"the {kind} of the image")
    whole = _as_bytes(pixels, kind)
    return Image.fromarray(whole[..., 0] if whole.shape[2:] == (1,) else whole)


def _as_bytes(pixels: np.ndarray, kind: str) -> np.ndarray:
    """Return pixels as uint8; floats from 0 to 1 become 0 to 255."""
    if pixels.dtype == "uint8":
        return pixels
    if pixels.dtype.kind != "f":
        raise ImageError(
            f"the {kind} of the image is of dtype {pixels.dtype}; expected uint8 from 0 to 255, or "
            "floats from 0 to 1"
        )
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0 and high <= 1):  # NaN included
        raise ImageError(
            f"the {kind} of the image has values from {low:.4g} to {high:.4g}; expected floats "
            "from 0 to 1, or uint8 from 0 to 255: give the picture as it is before a processor "
            "normalises it"
        )
    return (pixels * 255).round().astype("uint8")
