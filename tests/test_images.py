from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import random_image

from mmedit import images
from mmedit.errors import ImageError
from mmedit.images import MAX_PIXELS, image_key, open_image, require_header

UPSIDE_DOWN, LYING, ORIENTATION = 3, 6, 0x0112


def saved(image: Image.Image, path: Path) -> Path:
    image.save(path)
    return path


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"")


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def test_image_file_comes_back_with_its_pixels_in_rgb(tmp_path: Path):
    image = random_image(0)
    opened = open_image(saved(image, tmp_path / "image.png"))
    assert opened.mode == "RGB"
    assert opened.tobytes() == image.tobytes()


def test_missing_image_is_an_error_that_names_the_path(tmp_path: Path):
    path = tmp_path / "nowhere.png"
    for read in (open_image, image_key):
        with pytest.raises(ImageError) as raised:
            read(path)
        assert str(raised.value) == f"image not found: {path}. Check the path."


READERS = (open_image, image_key, require_header)


@pytest.mark.parametrize("read", READERS)
def test_folder_in_place_of_an_image_is_an_error(tmp_path: Path, read: Callable[[Path], object]):
    with pytest.raises(ImageError) as raised:
        read(tmp_path)
    assert str(raised.value) == f"{tmp_path} is a folder; expected an image file."


@pytest.mark.parametrize("read", READERS)
def test_pipe_or_device_is_refused_and_not_waited_for(
    tmp_path: Path, read: Callable[[Path], object]
):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", Path("/dev/zero")):
        with pytest.raises(ImageError, match=f"^{path} is not a regular file"):
            read(path)


@pytest.mark.parametrize("read", READERS)
def test_path_that_no_file_can_have_is_one_short_line(read: Callable[[Path], object]):
    for path in (Path("a" * 5_000), Path("a\0.png")):
        with pytest.raises(ImageError, match=r"cannot be read: .*Check the path\.") as raised:
            read(path)
        assert len(str(raised.value)) < 200
        assert "\n" not in str(raised.value)


def test_locked_image_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = saved(random_image(0), tmp_path / "image.png")

    def locked(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Image, "open", locked)
    monkeypatch.setattr(Path, "open", locked)
    for read in READERS:
        with pytest.raises(ImageError, match=f"{path} cannot be read: Permission denied"):
            read(path)


def test_size_is_read_without_decoding_the_pixels(tmp_path: Path):
    path = tmp_path / "torn.png"
    path.write_bytes(png_header(40, 30))
    assert require_header(path) == require_header(random_image(0)) == (40, 30)
    exif = Image.Exif()
    exif[ORIENTATION] = LYING
    random_image(0).save(tmp_path / "lying.jpg", exif=exif)
    assert require_header(tmp_path / "lying.jpg") == open_image(tmp_path / "lying.jpg").size
    (tmp_path / "giant.png").write_bytes(png_header(10_000, 10_000))
    with pytest.raises(ImageError, match="scale it down"):
        require_header(tmp_path / "giant.png")


def test_the_header_of_a_file_is_read_once_until_the_file_changes(tmp_path, monkeypatch):
    path, opened, opening = saved(random_image(0), tmp_path / "a.png"), [], Image.open
    monkeypatch.setattr(images.Image, "open", lambda file: opened.append(file) or opening(file))
    assert require_header(path) == require_header(path) == (40, 30)
    assert len(opened) == 1
    saved(random_image(0, width=50, height=30), path)
    os.utime(path, ns=(1, 1))
    assert require_header(path) == (50, 30)


def test_file_that_is_no_image_is_an_error(tmp_path: Path):
    path = tmp_path / "image.png"
    path.write_text("a shopping list")
    with pytest.raises(ImageError) as raised:
        open_image(path)
    assert str(raised.value) == f"{path} is not an image that Pillow can read (PNG, JPEG, ...)."


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_image_that_is_cut_off_is_an_error_not_a_half_grey_picture(tmp_path: Path, suffix: str):
    path = saved(random_image(0), tmp_path / f"image.{suffix}")
    path.write_bytes(path.read_bytes()[:-600])
    with pytest.raises(ImageError) as raised:
        open_image(path)
    assert str(raised.value).startswith(f"{path} is broken and cannot be decoded: ")


@pytest.mark.parametrize("side", [10_000, 60_000], ids=["too large", "a decompression bomb"])
def test_giant_image_is_refused_before_it_is_decoded(tmp_path: Path, side: int):
    path = tmp_path / "giant.png"
    path.write_bytes(png_header(side, side))
    with pytest.raises(ImageError, match=f"at most {MAX_PIXELS:,}: scale it down"):
        open_image(path)


def test_giant_image_in_memory_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 1_000)
    with pytest.raises(ImageError) as raised:
        open_image(random_image(0, width=40, height=30))
    wanted = "the given image has 40 x 30 = 1,200 pixels; expected at most 1,000: scale it down."
    assert str(raised.value) == wanted


def upside_down(tmp_path: Path) -> Path:
    exif = Image.Exif()
    exif[ORIENTATION] = UPSIDE_DOWN
    path = tmp_path / "photograph.png"
    random_image(0).save(path, exif=exif)
    return path


def test_photograph_is_turned_upright_as_its_exif_says(tmp_path: Path):
    upright = random_image(0).transpose(Image.Transpose.ROTATE_180)
    assert open_image(upside_down(tmp_path)).tobytes() == upright.tobytes()


def test_photograph_opened_by_the_caller_is_turned_upright_too(tmp_path: Path):
    path = upside_down(tmp_path)
    with Image.open(path) as image:
        assert open_image(image).tobytes() == open_image(path).tobytes()


@pytest.mark.parametrize("mode", ["RGBA", "L", "LA", "P", "1", "CMYK"])
@pytest.mark.parametrize("from_file", [True, False], ids=["file", "memory"])
def test_every_mode_becomes_the_rgb_that_pillow_makes_of_it(
    tmp_path: Path, mode: str, from_file: bool
):
    image = random_image(0).convert(mode)
    given = saved(image, tmp_path / "image.tiff") if from_file else image
    opened = open_image(given)
    assert opened.mode == "RGB"
    assert opened.tobytes() == image.convert("RGB").tobytes()


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_image_of_more_than_8_bits_is_refused_not_clipped_to_white(mode: str):
    with pytest.raises(ImageError) as raised:
        open_image(Image.new(mode, (4, 4), 40_000))
    assert str(raised.value) == (
        f"the given image has more than 8 bits per pixel (mode {mode!r}), which would be clipped "
        "to white: scale its values to 0 to 255 and save it as an 8-bit image."
    )


def test_equal_files_have_equal_keys_wherever_they_lie(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    one = saved(random_image(0), tmp_path / "one.png")
    two = saved(random_image(0), tmp_path / "folder" / "two.png")
    other = saved(random_image(1), tmp_path / "other.png")
    assert image_key(one) == image_key(two) != image_key(other)


def test_file_that_was_overwritten_has_another_key(tmp_path: Path):
    path = saved(random_image(0), tmp_path / "image.png")
    before = image_key(path)
    assert image_key(saved(random_image(1, width=41), path)) != before


def test_equal_pixels_in_memory_have_equal_keys():
    image = random_image(0)
    changed = np.array(image)
    changed[3, 4, 2] ^= 1
    assert image_key(image) == image_key(image.copy()) != image_key(Image.fromarray(changed))


def test_same_bytes_in_another_size_have_another_key():
    wide, high = (Image.new("RGB", size, "red") for size in ((8, 2), (2, 8)))
    assert image_key(wide) != image_key(high)


def test_same_indices_under_another_palette_have_another_key():
    red, green = (Image.new("P", (4, 4)) for _ in range(2))
    red.putpalette([255, 0, 0])
    green.putpalette([0, 255, 0])
    assert image_key(red) != image_key(green)
