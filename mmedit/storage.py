"""Files of mmedit: where they lie, and writing them whole or not at all."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import resources
from io import FileIO
from pathlib import Path

from mmedit.errors import DataError, RunError


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal digits."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def config_folder() -> Path:
    """`configs/`: inside the installed package, else beside it in a checkout."""
    package = Path(str(resources.files("mmedit")))
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def is_hub_id(name: str) -> bool:
    """Tell whether a name has the form of a hub id, owner/name."""
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
        with replaced(path) as partial:
            partial.write_bytes(content)
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


def inside(roots: Sequence[Path], name: str, where: str, advice: str = "") -> Path:
    """Return the path of a file that a data file names; it lies inside one of the `roots`.

    A relative name is looked for in each root in turn; if none has the file, the result is its
    path in the first root that may hold it. An absolute path stays as it is. Links are followed
    first, so a link may lead from one root into another. `where` says where the name was found,
    and `advice` what to do if it lies outside. Raises DataError: the path lies outside of every
    root, cannot be a path, or may not be read.
    """
    try:
        paths = [root / name for root in roots]
        real = [root.resolve() for root in roots]
        held = [p for p in paths if any(p.resolve().is_relative_to(root) for root in real)]
        if held:
            return next((path for path in held if path.is_file()), held[0])
        found = paths[0].resolve()
    except (OSError, ValueError, RuntimeError) as error:  # too long; a NUL; links in a circle
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{where}: {shortened(name)} cannot be read: {reason}") from None
    folders = ", ".join(str(root) for root in roots)
    raise DataError(
        f"{where}: {shortened(name)} lies outside of the folder {folders}: it is "
        f"{shortened(str(found))}. {advice}".strip()
    )


def shortened(value: object, length: int = 60) -> str:
    """Return the repr of a value, with its middle left out if it is longer than `length`.

    >>> shortened("abcdefgh", 9)
    "'ab...gh'"
    """
    text = repr(value)
    if len(text) <= length:
        return text
    half = (length - 3) // 2
    return f"{text[:half]}...{text[-half:]}"


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
