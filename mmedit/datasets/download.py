"""Fetching a benchmark's files: an interrupted download goes on where it stopped, and what has a
known SHA-256 is checked before it takes its place.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import time
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from tempfile import mkdtemp

import httpx2

from mmedit.datasets.origins import Release, Remote
from mmedit.errors import DataError

Report = Callable[[str, int, int], None]
"""Called with (what is fetched, bytes there, bytes in all; 0 where that is not known)."""

TRIES = 5
WAIT_SECONDS = 1.0
"""Before the second try; twice as long before each further one."""
BLOCK = 1 << 20
MAX_UNPACKED = 64 << 30
"""Bytes that an archive may hold: more is no benchmark of this field."""


def fetch(release: Release, root: Path, *, images: bool, report: Report) -> list[Path]:
    """Fetch what has a public address into `root`, except what is there already; the paths of what
    is new. Raises DataError.
    """
    _make(root)
    new = []
    for remote in release.files:
        if remote.images and not images:
            continue
        place = root / remote.path
        if remote.strip is None:
            if not is_released(place, remote.sha256):
                _download(remote.url, place, remote.sha256, report)
                new.append(place)
        elif not (marker := _marker(root, remote)).exists():
            archive = root / f".{remote.url.rsplit('/', 1)[-1]}.zip"
            _download(remote.url, archive, remote.sha256, report)
            unpack(archive, place, remote.strip)
            marker.write_text(remote.url + "\n", encoding="utf-8")
            archive.unlink()
            new.append(place)
    if release.hub:
        new.append(_fetch_hub(release.hub, root))
    return new


def is_released(file: Path, sha256: str | None) -> bool:
    """Whether a file is there, and, where that is known, is the released one."""
    return file.is_file() and (sha256 is None or hash_of(file) == sha256)


def hash_of(file: Path) -> str:
    """SHA-256."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _marker(root: Path, remote: Remote) -> Path:
    """Says that an archive was unpacked whole."""
    return root / f".{hashlib.sha256(remote.url.encode()).hexdigest()[:12]}.unpacked"


def _download(url: str, place: Path, sha256: str | None, report: Report) -> None:
    """Into `place`, whole and with the right hash, or not at all."""
    if not url.startswith(("http://", "https://")):
        raise DataError(f"{url} is no http address")
    partial = place.with_name(f"{place.name}.partial")
    _make(place.parent)
    problem = ""
    for attempt in range(TRIES):
        if attempt:
            time.sleep(WAIT_SECONDS * 2 ** (attempt - 1))
        try:
            _transfer(url, partial, place.name, report)
        except httpx2.HTTPStatusError as error:
            code = error.response.status_code
            problem = f"the server answered {code}"
            if code not in (408, 416, 429) and code < 500:
                break
            if code == 416:  # the part is longer than the file: of another one
                partial.unlink(missing_ok=True)
        except httpx2.HTTPError as error:
            problem = f"{type(error).__name__}: {error}"
        except OSError as error:
            raise DataError(
                f"cannot write {partial}: {error.strerror}; what was fetched is kept, so the same "
                "command goes on from there once there is room and permission"
            ) from error
        else:
            if sha256 is None or (found := hash_of(partial)) == sha256:
                partial.replace(place)
                return
            partial.unlink()
            problem = f"its SHA-256 is {found}, and {sha256} was wanted: it is another file"
            break
    raise DataError(
        f"{url} could not be fetched: {problem}. Try again later: the same command goes on where "
        f"it stopped; or put the file at {place} by hand."
    )


def _transfer(url: str, partial: Path, name: str, report: Report) -> None:
    """Append what is missing of the partial file; from the beginning where the server cannot."""
    there = partial.stat().st_size if partial.exists() else 0
    headers = {"Range": f"bytes={there}-"} if there else {}
    with httpx2.stream("GET", url, headers=headers, follow_redirects=True, timeout=30) as answer:
        answer.raise_for_status()
        resumed = answer.status_code == httpx2.codes.PARTIAL_CONTENT
        there = there if resumed else 0
        length = int(answer.headers.get("Content-Length", 0))
        total = there + length if length else 0
        with partial.open("ab" if resumed else "wb") as file:
            for block in answer.iter_raw(BLOCK):
                file.write(block)
                there += len(block)
                report(name, there, total)
            file.flush()
            os.fsync(file.fileno())
    if total and there < total:
        raise httpx2.RemoteProtocolError(f"the connection ended after {there:,} of {total:,} bytes")


def unpack(archive: Path, place: Path, strip: str) -> None:
    """The contents of a folder in a zip file ("" for all) into `place`, merged with what is there.

    Raises DataError where it is no zip file, would write outside of `place`, holds a link, or
    unpacks to more than `MAX_UNPACKED` bytes.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = _members(opened, archive, PurePosixPath(strip))
            partial = Path(mkdtemp(dir=archive.parent, prefix=".unpacking-"))
            try:
                for member, path in members:
                    target = partial / path
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with opened.open(member) as source, target.open("wb") as file:
                        shutil.copyfileobj(source, file, BLOCK)
                shutil.copytree(partial, place, dirs_exist_ok=True, copy_function=shutil.move)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except zipfile.BadZipFile as error:
        archive.unlink()
        raise DataError(f"{archive} is no whole zip file ({error}); fetch it again") from error
    except OSError as error:
        raise DataError(
            f"cannot unpack {archive}: {error.strerror}; it is kept, so the same command goes on "
            "from there once there is room and permission"
        ) from error


def _members(
    opened: zipfile.ZipFile, archive: Path, strip: PurePosixPath
) -> list[tuple[zipfile.ZipInfo, PurePosixPath]]:
    found, size = [], 0
    for member in opened.infolist():
        path = PurePosixPath(member.filename)
        if path.is_absolute() or ".." in path.parts or "\\" in member.filename:
            raise DataError(f"{archive}: {member.filename!r} lies outside of the archive's folder")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise DataError(f"{archive}: {member.filename!r} is a link")
        size += member.file_size
        if not member.is_dir() and path.is_relative_to(strip):
            found.append((member, path.relative_to(strip)))
    if size > MAX_UNPACKED:
        raise DataError(f"{archive} unpacks to {size:,} bytes; at most {MAX_UNPACKED:,} are taken")
    if not found:
        raise DataError(f"{archive} holds nothing in {strip}")
    return found


def _fetch_hub(name: str, root: Path) -> Path:
    """A dataset repository; huggingface_hub goes on with what is there, and checks it."""
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(name, repo_type="dataset", local_dir=root)
    except (OSError, ValueError) as error:  # hub errors are OSErrors
        raise DataError(
            f"the dataset {name} could not be fetched from the hub: {error}. Try again later, or "
            f"download it by hand to {root}"
        ) from error
    for archive in sorted(root.rglob("*.zip")):
        unpack(archive, archive.parent, "")
        archive.unlink()
    return root


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"cannot make the folder {folder}: {error.strerror}; choose another --root"
        ) from error
