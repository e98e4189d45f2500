"""An image may be given in any form that people hold one in, or is refused in one line."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import random_image

from mmedit.cases import Example
from mmedit.errors import ImageError
from mmedit.images import MAX_PIXELS, image_key, open_image

IMAGE = random_image(0)
ARRAY = np.array(IMAGE)


def content() -> bytes:
    file = io.BytesIO()
    IMAGE.save(file, "PNG")
    return file.getvalue()


def file_at_its_end() -> io.BytesIO:
    file = io.BytesIO(content())
    file.read()
    return file


FORMS = {
    "a PIL image": IMAGE,
    "an array": ARRAY,
    "an array, channels first": ARRAY.transpose(2, 0, 1),
    "an array of floats": ARRAY / 255,
    "an array with opacity": np.dstack([ARRAY, np.full(ARRAY.shape[:2], 255, np.uint8)]),
    "a tensor": torch.from_numpy(ARRAY).permute(2, 0, 1) / 255,
    "a tensor of bytes, channels last": torch.from_numpy(ARRAY),
    "a tensor with a gradient": (torch.from_numpy(ARRAY) / 255).requires_grad_(),
    "bytes": content(),
    "a buffer": memoryview(content()),
    "a file object at its end": file_at_its_end(),
    "a row of a column of images": {"bytes": content(), "path": None},
    "a row that names no path": {"bytes": content()},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_an_image_gives_its_pixels(form: str):
    image = Example(prompt="which color?", target="red", image=FORMS[form]).image
    assert isinstance(image, Image.Image)
    assert open_image(image).tobytes() == IMAGE.tobytes()
    assert image_key(image) == image_key(IMAGE)


def test_grey_arrays_have_one_channel_or_no_axis_for_it():
    for array in (ARRAY[..., 0], ARRAY[..., :1], ARRAY[None, ..., 0]):
        image = Example(prompt="a", target="b", image=array).image
        assert isinstance(image, Image.Image)
        assert np.array(image).tobytes() == ARRAY[..., 0].tobytes()


def test_a_path_stays_a_path_and_its_file_is_not_touched():
    for given in (
        "pictures/7.png",
        Path("pictures/7.png"),
        {"bytes": None, "path": "pictures/7.png"},
    ):
        assert Example(prompt="a", target="b", image=given).image == Path("pictures/7.png")


def test_an_opened_file_is_read(tmp_path: Path):
    (tmp_path / "image.png").write_bytes(content())
    with (tmp_path / "image.png").open("rb") as file:
        image = Example(prompt="a", target="b", image=file).image
    assert isinstance(image, Image.Image)  # and stays readable when the file is closed
    assert open_image(image).tobytes() == IMAGE.tobytes()


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (5, "is of type int; expected a path, a PIL image, an array or a tensor of one image"),
        ([IMAGE, IMAGE], "2 images were given; an example has one image or none"),
        ([IMAGE], "a list of 1 image was given; .* Give the image itself"),
        (b"abc", "the image given as bytes is not an image that Pillow can read"),
        (io.StringIO("abc"), 'the image given as a file object is of type str; .* mode "rb"'),
        ({"bytes": None, "path": None}, 'neither "bytes" nor "path"'),
        ({"url": "x"}, "is of type dict"),
        (torch.randn(3, 8, 8), "has values from .* before a processor normalises it"),
        (np.full((8, 8), np.nan), "has values from nan to nan"),
        (np.zeros((8, 8, 3), np.int64), "is of dtype int64; expected uint8"),
        (np.zeros((2, 3, 8, 8), np.uint8), r"has shape \[2, 3, 8, 8\]; expected one image"),
        (np.zeros((0, 8, 3), np.uint8), r"has shape \[0, 8, 3\]"),
        (np.zeros((8_000, 8_000), bool), f"expected at most {MAX_PIXELS:,}: scale it down"),
        ("", "the path of an image is empty"),
        ("a\0.png", "contains a NUL"),
        ("a\udcff.png", "contains half of a character .*; rename the file"),
        ("https://example.org/cat.png", "is an address; .* download the image first"),
    ],
    ids=lambda value: None if isinstance(value, str) else type(value).__name__,
)
def test_what_is_not_one_image_is_refused_when_the_example_is_made(image: Any, said: str):
    with pytest.raises(ImageError, match=said) as raised:
        Example(prompt="a", target="b", image=image)
    assert "\n" not in str(raised.value)
