"""Safe unpacking of downloaded zip files.

An archive is refused as a whole, before anything is written, if one of its members would lie
outside of the target folder, is a link or is encrypted, or if its content is larger than expected.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from zipfile import BadZipFile, ZipFile, ZipInfo

from mmedit.errors import DownloadError
from mmedit.progress import Progress, silent

MAX_FILES = 1_000_000
"""Maximum number of members of an archive."""
CHUNK = 1 << 20
"""Size of one read, in bytes."""
IGNORED_PREFIXES = ("__MACOSX/",)
"""Beginnings of the names of members that are not unpacked: macOS adds them."""


def list_files(archive: Path) -> list[str]:
    """Return the names of the files in a zip file. Raises DownloadError if it cannot be read."""
    try:
        with ZipFile(archive) as opened:
            return [info.filename for info in _list_members(opened)]
    except (BadZipFile, OSError) as error:
        raise DownloadError(_describe_damage(archive, error)) from error


def unpack(
    archive: Path,
    folder: Path,
    *,
    max_bytes: int,
    inside: str = "",
    sha256: Mapping[str, str] | None = None,
    progress: Progress = silent,
) -> int:
    """Unpack the files under `inside` into `folder` and return their number.

    `inside` is a folder of the archive; "" unpacks the whole archive. Files that exist already with
    the same content are not written again. `max_bytes` limits the size of the unpacked content.
    `sha256` gives the expected hashes of files, by their path under `inside`.

    Raises DownloadError if the file is not a valid zip file, a member would lie outside of
    `folder`, is a link or is encrypted, the content is larger than `max_bytes`, a hash differs, a
    file exists with another content, or the files cannot be written.
    """
    try:
        with ZipFile(archive) as opened:
            chosen = _choose_members(archive, opened, inside)
            _require_small(archive, opened, max_bytes)
            for name, expected in (sha256 or {}).items():
                _require_hash(archive, opened, chosen.get(name), name, expected)
            for name in chosen:
                _require_inside(archive, folder, name)
            for number, (name, info) in enumerate(chosen.items()):
                _extract(opened, info, folder / name)
                progress("unpacking", number + 1, len(chosen), "")
    except (BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise DownloadError(_describe_damage(archive, error)) from error
    except OSError as error:
        raise DownloadError(
            f"{archive.name} cannot be unpacked into {folder}: {error.strerror or error}. "
            "Correct that and run the same command again; it skips files that are already unpacked"
        ) from error
    return len(chosen)


def _list_members(opened: ZipFile) -> list[ZipInfo]:
    """Return the members that are files to unpack."""
    return [
        info
        for info in opened.infolist()
        if not info.is_dir() and not info.filename.startswith(IGNORED_PREFIXES)
    ]


def _choose_members(archive: Path, opened: ZipFile, inside: str) -> dict[str, ZipInfo]:
    """Check every member of the archive and return those under `inside`, by their path there."""
    prefix = f"{inside}/" if inside else ""
    chosen = {}
    for info in opened.infolist():
        _require_plain(archive, info)
    for info in _list_members(opened):
        if info.filename.startswith(prefix):
            chosen[info.filename.removeprefix(prefix)] = info
    if not chosen:
        raise DownloadError(
            f"{archive} contains no files{f' under {inside}' if inside else ''}. Delete it and run "
            "the same command again to download it again"
        )
    return chosen


def _require_plain(archive: Path, info: ZipInfo) -> None:
    """Raise DownloadError if a member has an unsafe path, is a link or is encrypted."""
    name = info.filename
    parts = PurePosixPath(name).parts
    if name.startswith("/") or ".." in parts or "\\" in name or ":" in (parts or ("",))[0]:
        raise DownloadError(f"{archive} is refused: {name!r} would lie outside of the folder")
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise DownloadError(f"{archive} is refused: {name!r} is a link or a special file")
    if info.flag_bits & 1:
        raise DownloadError(f"{archive} is refused: {name!r} is encrypted")


def _require_small(archive: Path, opened: ZipFile, max_bytes: int) -> None:
    """Raise DownloadError if an archive has too many members or too large a content."""
    infos = opened.infolist()
    size = sum(info.file_size for info in infos)  # zipfile never reads more than these sizes
    if size > max_bytes or len(infos) > MAX_FILES:
        raise DownloadError(
            f"{archive} is refused: it contains {len(infos):,} files of {size:,} bytes in "
            f"all; expected at most {MAX_FILES:,} files of {max_bytes:,} bytes"
        )


def _require_hash(
    archive: Path, opened: ZipFile, info: ZipInfo | None, name: str, expected: str
) -> None:
    """Raise DownloadError if a member is missing or its SHA-256 differs from the expected one."""
    if info is None:
        raise DownloadError(
            f"{archive} is not the released archive: it does not contain {name}. Nothing was "
            "unpacked; delete it and run the same command again to download it again"
        )
    with opened.open(info) as member:
        digest = hashlib.sha256()
        while chunk := member.read(CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != expected:
        raise DownloadError(
            f"{archive} is not the released archive: the SHA-256 of its {name} is "
            f"{digest.hexdigest()}, expected {expected}. Nothing was unpacked; delete it and run "
            "the same command again to download it again"
        )


def _require_inside(archive: Path, folder: Path, name: str) -> None:
    """Raise DownloadError if a link inside of `folder` would lead a file out of it."""
    if not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise DownloadError(f"{archive} is refused: {name!r} would lie outside of {folder}")


def _extract(opened: ZipFile, info: ZipInfo, target: Path) -> None:
    """Write one member to `target`, unless it exists. Raises DownloadError if it differs."""
    if target.is_file():
        if target.stat().st_size == info.file_size and _compute_crc(target) == info.CRC:
            return
        raise DownloadError(
            f"{target} exists but is not the released file. Move it away, or name another folder "
            "with --root DIR"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.partial")
    with opened.open(info) as source, partial.open("wb") as written:
        shutil.copyfileobj(source, written, CHUNK)
    os.replace(partial, target)


def _compute_crc(file: Path) -> int:
    """Return the CRC-32 of a file's content, as zip files store it."""
    value = 0
    with file.open("rb") as opened:
        while chunk := opened.read(CHUNK):
            value = zlib.crc32(chunk, value)
    return value


def _describe_damage(archive: Path, error: Exception) -> str:
    return (
        f"{archive} is not a valid zip file: {error}. Delete it and run the same command again to "
        "download it again"
    )
