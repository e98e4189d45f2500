"""Files of mmedit: where they lie, and writing them whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import resources
from io import FileIO
from pathlib import Path

from mmedit.errors import DataError, RunError, shortened


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


def user_folder() -> Path:
    """Return the folder for what mmedit makes once for a user: MMEDIT_HOME, else the folder mmedit
    in the user's cache (XDG_CACHE_HOME, else ~/.cache).
    """
    if home := os.environ.get("MMEDIT_HOME"):
        return Path(home).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mmedit"


def is_hub_id(name: str) -> bool:
    """Tell whether a name has the form of a hub id, owner/name."""
    return bool(HUB_ID.fullmatch(name))


def require_path(path: str | Path) -> None:
    """Raise RunError if a text cannot be the name of a file or folder: it is empty or too long,
    or holds a NUL or half of a surrogate pair. The path need not exist.
    """
    text = str(path)
    if not text.strip():
        raise RunError("the name of a folder is empty")
    try:
        text.encode()
        os.lstat(text)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        if isinstance(error, OSError) and error.errno != errno.ENAMETOOLONG:
            return  # another fault is that of reading or writing there
        raise RunError(f"{shortened(text)} cannot be the name of a folder: {reason}") from None


def make_folder(directory: Path) -> None:
    """Make a folder for results; RunError, before anything is computed, if that cannot be, or if
    it may not be written into.
    """
    require_path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"cannot make the folder {directory}: {error.strerror}; choose another --out"
        ) from error
    if not os.access(directory, os.W_OK | os.X_OK):
        raise RunError(
            f"the folder {directory} may not be written into (no permission); choose another --out"
        )


def reserve(descriptor: int, size: int) -> None:
    """Give a new file its size, and reserve the room on the disk where the system can. Raises
    OSError if there is too little.
    """
    if sys.platform == "linux":
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.truncate(descriptor, size)


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


@contextmanager
def replaced_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a folder beside `path` to write into; it becomes `path`, on disk, when the block ends.

    `path` must be new or an empty folder. With `overwrite` it may hold an earlier one, which is
    deleted last, so that one of the two is whole at any time; a kill between two renames leaves it
    as `.NAME.PID.before`. Where the block or the renaming fails, the new folder is deleted and
    `path` stays as it was. Raises what the block raises, and OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a killed process with this number
    try:
        partial.mkdir()
        yield partial
        for file in [*partial.rglob("*"), partial]:
            flush(file)
        if overwrite and path.exists() and any(path.iterdir()):
            _exchange(partial, path)
        else:
            partial.rename(path)  # an empty folder gives way
        flush(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _exchange(partial: Path, path: Path) -> None:
    before = path.with_name(f".{path.name}.{os.getpid()}.before")
    path.rename(before)
    try:
        partial.rename(path)
    except OSError:
        before.rename(path)
        raise
    shutil.rmtree(before, ignore_errors=True)


def size_of(folder: Path) -> int:
    """Return the size of the files in a folder, in bytes."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


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


def broken_text(text: str) -> str | None:
    """Return what makes a text useless to a tokenizer and to a file, or None if it is sound.

    A lone surrogate, half of a character such as an emoji, comes from a text that was cut off, or
    from bytes that are not UTF-8.

    >>> broken_text("cut off " + chr(0xD83D))
    "contains half of a character ('\\\\ud83d', at position 8)"
    """
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start]
        return f"contains half of a character ({half!r}, at position {error.start})"
    return None


def require_text(text: object, what: str) -> None:
    """Raise DataError unless `text` is a text that can be tokenised and written to a file."""
    if not isinstance(text, str):
        raise DataError(
            f"{what} is {shortened(text)}, of type {type(text).__name__}; expected a text (str)"
        )
    if fault := broken_text(text):
        raise DataError(f"{what} {fault}: {shortened(text)}; repair the text")


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
