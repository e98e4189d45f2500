"""The folder of an export: it appears whole, with its report, or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from mmedit.errors import RunError, one_line
from mmedit.storage import replaced_folder, require_path

WRITING_ERRORS = (OSError, SafetensorError)
"""Errors of writing a file; safetensors has one of its own for a full disk."""


def require_new(out: Path) -> None:
    """Raise RunError unless `out` is a new or an empty folder."""
    require_path(out)
    try:
        is_taken = out.exists() and (not out.is_dir() or any(out.iterdir()))
    except OSError as error:
        raise RunError(f"{out} cannot be read: {error.strerror}; choose another --out") from error
    if is_taken:
        raise RunError(f"{out} exists already; choose another --out, or remove it first")


def require_space(folder: Path, size: int) -> None:
    """Raise RunError unless the disk of a folder has room for `size` bytes."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise RunError(
            f"the export takes {_gigabytes(size)}, and {folder.parent} has {_gigabytes(free)} "
            "free; choose an --out on another disk, or a smaller --dtype"
        )


@contextmanager
def appearing(out: Path) -> Iterator[Path]:
    """Give a folder beside `out` to write into; it becomes `out`, on disk, when the block ends.

    If the block fails, the folder is removed, so that no half of an export is taken for a whole
    one. Raises RunError if it cannot be written, and what the block raises.
    """
    try:
        with replaced_folder(out.expanduser().absolute()) as unfinished:
            yield unfinished
    except WRITING_ERRORS as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise RunError(
            f"cannot write {out}: {one_line(reason or error)}; nothing of it was kept. Choose "
            "another --out, or make room"
        ) from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object to a file."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
