"""Files of mmedit: where they lie, and writing them whole or not at all."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import resources
from io import FileIO
from pathlib import Path

from mmedit.errors import DataError, RunError


def sha256(file: Path) -> str:
    """Of a file's content, in hexadecimal digits."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def config_folder() -> Path:
    """`configs/`: inside the installed package, else beside it in a checkout."""
    package = Path(str(resources.files("mmedit")))
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def is_hub_id(name: str) -> bool:
    """Whether a name may be one of the Hugging Face hub, owner/name."""
    return bool(HUB_ID.fullmatch(name))


def make_folder(directory: Path) -> None:
    """Make a folder for results; RunError, before anything is computed, where that cannot be."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"cannot make the folder {directory}: {error.strerror}; choose another --out"
        ) from error


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Give a file beside `path` to write; it replaces `path`, on disk, when the block ends.

    Where the block or the replacing fails, the file is deleted and `path` stays as it was. Raises
    what the block raises, and OSError.

    >>> with replaced(Path("table.md")) as partial:  # doctest: +SKIP
    ...     partial.write_text("| editor |")
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        flush(partial)
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by `content`, whole or not at all; RunError when it cannot be written."""
    try:
        with replaced(path) as partial, partial.open("wb", buffering=0) as file:
            write_durably(file, content)
    except OSError as error:
        raise RunError(
            f"cannot write {path}: {error.strerror}; what was there before is unchanged"
        ) from error


def write_durably(file: FileIO, content: bytes) -> None:
    """Write all of it, and wait until it is on the disk."""
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]
    os.fsync(file.fileno())


def under(root: Path, name: str, file: Path, row: int) -> Path:
    """The path of an image, which must lie under its root. Raises DataError."""
    path = root / name
    if Path(name).is_absolute() or not path.resolve().is_relative_to(root.resolve()):
        raise DataError(f"{file}, row {row}: the image {name!r} lies outside of {root}")
    return path


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
