"""Zip files from the network, unpacked safely: no path outside of the folder, no link, no file that
is larger than stated. An archive with one bad name is refused whole, before anything is written.
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
CHUNK = 1 << 20
LEFT_OUT = ("__MACOSX/",)
"""Folders that macOS adds to archives."""


def names(archive: Path) -> list[str]:
    """Return the names of the files in an archive. Raises DownloadError if it is not a zip file."""
    try:
        with ZipFile(archive) as opened:
            return [info.filename for info in _files(opened)]
    except (BadZipFile, OSError) as error:
        raise DownloadError(_broken(archive, error)) from error


def unpack(
    archive: Path,
    folder: Path,
    *,
    max_bytes: int,
    inside: str = "",
    sha256: Mapping[str, str] | None = None,
    progress: Progress = silent,
) -> int:
    """Unpack the folder `inside` of an archive (or all of it) into `folder`; return the number of
    files. Files that are there already and equal those of the archive are left alone.

    `sha256` are hashes that files must have, by path under `inside`. Raises DownloadError: not a
    zip file or a damaged one, a path outside of the folder, a link, encryption, more than
    `max_bytes` when unpacked, a wrong hash, a file that is there and differs, a full disk.
    """
    try:
        with ZipFile(archive) as opened:
            chosen = _chosen(archive, opened, inside)
            _require_small(archive, opened, max_bytes)
            for name, wanted in (sha256 or {}).items():
                _require_hash(archive, opened, chosen.get(name), name, wanted)
            for name in chosen:
                _require_inside(archive, folder, name)
            for number, (name, info) in enumerate(chosen.items()):
                _extract(opened, info, folder / name)
                progress("unpacking", number + 1, len(chosen), "")
    except (BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise DownloadError(_broken(archive, error)) from error
    except OSError as error:
        raise DownloadError(
            f"{archive.name} cannot be unpacked into {folder}: {error.strerror or error}; the same "
            "command goes on from there"
        ) from error
    return len(chosen)


def _files(opened: ZipFile) -> list[ZipInfo]:
    return [
        info
        for info in opened.infolist()
        if not info.is_dir() and not info.filename.startswith(LEFT_OUT)
    ]


def _chosen(archive: Path, opened: ZipFile, inside: str) -> dict[str, ZipInfo]:
    """Return the files by path under `inside`; check every entry of the archive."""
    prefix = f"{inside}/" if inside else ""
    chosen = {}
    for info in opened.infolist():
        _require_plain(archive, info)
    for info in _files(opened):
        if info.filename.startswith(prefix):
            chosen[info.filename.removeprefix(prefix)] = info
    if not chosen:
        raise DownloadError(f"{archive} holds no file{f' under {inside}' if inside else ''}")
    return chosen


def _require_plain(archive: Path, info: ZipInfo) -> None:
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
    infos = opened.infolist()
    size = sum(info.file_size for info in infos)  # zipfile reads no more than that
    if size > max_bytes or len(infos) > MAX_FILES:
        raise DownloadError(
            f"{archive} is refused: it holds {len(infos):,} files of {size:,} bytes; at most "
            f"{MAX_FILES:,} of {max_bytes:,} were expected"
        )


def _require_hash(
    archive: Path, opened: ZipFile, info: ZipInfo | None, name: str, wanted: str
) -> None:
    if info is None:
        raise DownloadError(f"{archive} is not the expected archive: it does not hold {name}")
    with opened.open(info) as member:
        digest = hashlib.sha256()
        while chunk := member.read(CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != wanted:
        raise DownloadError(
            f"{archive} is not the expected archive: the SHA-256 of its {name} is "
            f"{digest.hexdigest()}, expected {wanted}. Nothing was unpacked; delete it to "
            "fetch it again"
        )


def _require_inside(archive: Path, folder: Path, name: str) -> None:
    """Raise DownloadError if a link in the folder would lead outside of it."""
    if not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise DownloadError(f"{archive} is refused: {name!r} would lie outside of {folder}")


def _extract(opened: ZipFile, info: ZipInfo, target: Path) -> None:
    if target.is_file():
        if target.stat().st_size == info.file_size and _crc(target) == info.CRC:
            return
        raise DownloadError(
            f"{target} is there and is not the released file. Move it away, or name another "
            "folder: --root DIR"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.partial")
    with opened.open(info) as source, partial.open("wb") as written:
        shutil.copyfileobj(source, written, CHUNK)
    os.replace(partial, target)


def _crc(file: Path) -> int:
    value = 0
    with file.open("rb") as opened:
        while chunk := opened.read(CHUNK):
            value = zlib.crc32(chunk, value)
    return value


def _broken(archive: Path, error: Exception) -> str:
    return (
        f"{archive} is not a zip file, or is damaged: {error}. Delete it; the same command fetches "
        "it again"
    )
