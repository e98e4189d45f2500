"""Images of requests: data URIs, and, where the server allows it, addresses and files."""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from PIL import Image

from mmedit.errors import DataError, ImageError, one_line, shortened
from mmedit.images import decoded
from mmedit.serve.fetching import fetched
from mmedit.serve.refusals import Refusal
from mmedit.storage import inside

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""The formats that are read. Pillow knows more, some of which start other programs."""
DATA = re.compile(r"data:[\w.+-]+/[\w.+-]+(?:;[\w.+-]+=[\w.+-]+)*;base64,", re.IGNORECASE)


@dataclass(frozen=True)
class Picture:
    """The content of an image file, decoded only when it is asked about: waiting requests hold
    bytes, not pixels.
    """

    content: bytes
    most_pixels: int

    def require_sound(self) -> None:
        """Raise Refusal if the first bytes are not those of an image, or it has too many pixels."""
        try:
            with Image.open(io.BytesIO(self.content), formats=FORMATS) as opened:
                width, height = opened.size
        except Image.DecompressionBombError:
            raise _refused(f"the image has more than {self.most_pixels:,} pixels") from None
        except (OSError, SyntaxError, ValueError, TypeError):
            known = ", ".join(FORMATS)
            raise _refused(f"the image cannot be read; expected a file of {known}") from None
        if width * height > self.most_pixels:
            raise _refused(
                f"the image has {width} x {height} = {width * height:,} pixels; expected at most "
                f"{self.most_pixels:,}: scale it down"
            )

    def decode(self) -> Image.Image:
        """Return the image in RGB. Raises Refusal."""
        try:
            return decoded(
                lambda: Image.open(io.BytesIO(self.content), formats=FORMATS), "the image"
            )
        except ImageError as error:
            raise _refused(one_line(error)) from None


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """The places that images may come from, and their limits."""

    most_pixels: int
    most_bytes: int
    allow_urls: bool = False
    """Whether images are fetched from the web."""
    root: Path | None = None
    """Folder of images that requests may name; None: they may name none."""

    async def read(self, url: str) -> Picture:
        """Return the image at an address. It may take seconds. Raises Refusal."""
        if scheme_of(url) in ("http", "https"):
            content = await self._of_web(url)
        else:
            content = await asyncio.to_thread(self._content, url)
        picture = Picture(content, self.most_pixels)
        await asyncio.to_thread(picture.require_sound)
        return picture

    async def _of_web(self, url: str) -> bytes:
        if not self.allow_urls:
            raise _refused(
                "this server fetches no images; send the image as a data URI "
                "(data:image/png;base64,...), or start the server with --allow-image-urls"
            )
        return await fetched(url, most_bytes=self.most_bytes)

    def _content(self, url: str) -> bytes:
        scheme = scheme_of(url)
        if scheme == "data":
            return _of_data(url)
        if scheme in ("", "file"):
            return self._of_file(unquote(urlsplit(url).path) if scheme else url)
        raise _refused(
            f"{shortened(url)} is not the address of an image; expected a data URI "
            "(data:image/png;base64,...)"
        )

    def _of_file(self, name: str) -> bytes:
        if self.root is None:
            raise _refused(
                "this server reads no files; send the image as a data URI "
                "(data:image/png;base64,...), or start the server with --image-root"
            )
        try:
            path = inside([self.root], name, "the image")
            if not path.is_file():
                raise _refused(f"no image file {shortened(name)} in the folder of images")
            if path.stat().st_size > self.most_bytes:
                raise _refused(f"the image file {shortened(name)} is larger than this server takes")
            return path.read_bytes()
        except DataError:  # its text would tell where links lead
            raise _refused(f"{shortened(name)} lies outside of the folder of images") from None
        except (OSError, ValueError):
            raise _refused(f"the image file {shortened(name)} cannot be read") from None


def scheme_of(url: str) -> str:
    """Return the scheme of an address in small letters; "" for a path."""
    found = re.match(r"([a-z][a-z0-9+.-]*):", url, re.IGNORECASE)
    return found.group(1).lower() if found else ""


def _of_data(url: str) -> bytes:
    found = DATA.match(url)
    if found is None:
        raise _refused("the data URI of the image is not of the form data:image/png;base64,...")
    try:
        return base64.b64decode(url[found.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise _refused("the data URI of the image is not valid base64") from None


def _refused(message: str) -> Refusal:
    return Refusal(400, message, code="invalid_image", param="messages")
