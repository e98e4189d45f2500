"""One file by HTTP: resumed if it was cut off, checked, and only then put in its place.

The bytes so far are in NAME.partial beside the file. A Range header asks for the rest. If the hash
of the file is not known, the download is resumed only if the server still has the same version
(ETag or Last-Modified), which is noted in NAME.partial.version.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import httpx2

from mmedit.errors import DownloadError
from mmedit.progress import Progress, silent
from mmedit.storage import sha256

TRIES = 5
"""Number of tries in a row that bring nothing new, before the download fails."""
WAIT = 0.5
"""Seconds before the second try; doubled with each further one."""
TIMEOUT = 30.0
AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
"""HTTP statuses after which another try may succeed."""


class _CutOff(Exception):
    """The file did not come whole; another try may succeed."""


@dataclass(frozen=True, kw_only=True)
class _Partial:
    """The part of a file that was downloaded, and the version it is of."""

    file: Path
    version: Path

    @staticmethod
    def of(target: Path) -> _Partial:
        file = target.with_name(f"{target.name}.partial")
        return _Partial(file=file, version=file.with_name(f"{file.name}.version"))

    @property
    def size(self) -> int:
        return self.file.stat().st_size if self.file.is_file() else 0

    def remove(self) -> None:
        self.file.unlink(missing_ok=True)
        self.version.unlink(missing_ok=True)


def download(
    url: str,
    target: Path,
    *,
    sha256_wanted: str | None = None,
    progress: Progress = silent,
) -> bool:
    """Fetch a file, unless it is there; return whether it was fetched. Redirects are followed.

    `progress` gets bytes so far and in all (0 if the server does not say).

    Raises DownloadError: an address that is neither http nor https, a file there that is not the
    wanted one, an answer of the server that is an error, a connection lost `TRIES` times in a row
    without anything new, a wrong hash, a full disk, a folder that cannot be written.
    """
    if not re.match(r"https?://[^/]", url):
        raise DownloadError(
            f"{url!r} cannot be fetched; expected an address that begins with http:// or https://"
        )
    try:
        if target.is_file():
            require_hash(target, sha256_wanted)
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = _Partial.of(target)
        resumed = _fetch(url, partial, sha256_wanted is not None, progress)
        if resumed and sha256_wanted not in (None, sha256(partial.file)):
            partial.remove()  # the beginning was of another file
            _fetch(url, partial, sha256_wanted is not None, progress)
        _put(partial, target, url, sha256_wanted)
    except OSError as error:  # httpx2's own are caught where the connection is
        raise DownloadError(_no_room(error, target)) from error
    return True


def require_hash(file: Path, wanted: str | None) -> None:
    """Raise DownloadError if a file that is there does not have the expected hash."""
    if wanted is not None and (found := sha256(file)) != wanted:
        raise DownloadError(
            f"{file} is there and is not the released file: SHA-256 {found}, expected {wanted}. "
            "Move it away, or name another folder: --root DIR"
        )


def _fetch(url: str, partial: _Partial, hashed: bool, progress: Progress) -> bool:
    """Fetch the whole file into `partial`; return whether a part of it was there before."""
    begun = partial.size
    failed, most = 0, begun
    with httpx2.Client(follow_redirects=True, timeout=TIMEOUT) as client:
        while True:
            try:
                _try(client, url, partial, hashed, progress)
                return bool(begun)
            except (_CutOff, httpx2.HTTPError, httpx2.StreamError) as error:
                failed = 0 if partial.size > most else failed + 1
                most = max(most, partial.size)
                if failed >= TRIES:
                    raise DownloadError(
                        f"{url} cannot be fetched: {error or type(error).__name__}; tried {TRIES} "
                        f"times. {partial.size:,} bytes are kept in {partial.file}: the same "
                        "command goes on from there"
                    ) from error
                time.sleep(WAIT * 2**failed)
            except httpx2.InvalidURL as error:
                raise DownloadError(f"{url!r} is not a valid address: {error}") from error


def _try(
    client: httpx2.Client, url: str, partial: _Partial, hashed: bool, progress: Progress
) -> None:
    if not hashed and partial.size and not partial.version.is_file():
        partial.remove()  # its version is not known
    there = partial.size
    # a compressed answer has other bytes than the file, and no length
    headers = {"Accept-Encoding": "identity"}
    if there:
        headers["Range"] = f"bytes={there}-"
        if not hashed:
            headers["If-Range"] = partial.version.read_text(encoding="utf-8")
    with client.stream("GET", url, headers=headers) as response:
        if response.status_code == 416 and there:
            if response.headers.get("Content-Range", "").strip() == f"bytes */{there}":
                return  # it was whole already
            partial.remove()
            raise _CutOff("the server has less than what came before")
        _require_ok(response, url)
        if response.status_code != 206 or not _continues(response, there):
            if response.status_code == 206:
                partial.remove()
                raise _CutOff("the server sent another part than was asked for")
            there = 0
            partial.remove()
            _note_version(partial, response)
        _write(response, partial, there, progress)


def _continues(response: httpx2.Response, there: int) -> bool:
    return response.headers.get("Content-Range", "").startswith(f"bytes {there}-")


def _require_ok(response: httpx2.Response, url: str) -> None:
    if response.status_code in AGAIN:
        raise _CutOff(f"the server answered {response.status_code}")
    if response.status_code not in (200, 206):
        raise DownloadError(
            f"{url} cannot be fetched: the server answered {response.status_code} "
            f"{response.reason_phrase}. Get the file by hand, or tell us that it has moved"
        )


def _note_version(partial: _Partial, response: httpx2.Response) -> None:
    tag = response.headers.get("ETag", "")
    version = tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified")
    if version:
        partial.version.write_text(version, encoding="utf-8")


def _write(response: httpx2.Response, partial: _Partial, there: int, progress: Progress) -> None:
    # a server that compresses all the same tells the length of something else
    encoded = response.headers.get("Content-Encoding", "identity") != "identity"
    length = 0 if encoded else int(response.headers.get("Content-Length", 0))
    total = there + length if length else 0
    free = shutil.disk_usage(partial.file.parent).free
    if length > free:
        raise OSError(errno.ENOSPC, f"{length:,} bytes are to come, {free:,} are free")
    progress("fetching", there, total, "")
    with partial.file.open("ab" if there else "wb") as opened:
        for chunk in response.iter_bytes():  # as they come: a size would be waited for, and lost
            opened.write(chunk)
            there += len(chunk)
            progress("fetching", there, max(total, there) if total else 0, "")
    if total and there != total:
        raise _CutOff(f"{there:,} of {total:,} bytes came")


def _put(partial: _Partial, target: Path, url: str, wanted: str | None) -> None:
    if wanted is not None and (found := sha256(partial.file)) != wanted:
        partial.remove()
        raise DownloadError(
            f"{url} is not the released file: SHA-256 {found}, expected {wanted}. Nothing was "
            "kept. Try again, and if it stays so, tell us: the file may have been replaced"
        )
    os.replace(partial.file, target)
    partial.remove()


def _no_room(error: OSError, target: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        more = f" ({error.strerror})" if error.strerror else ""
        return (
            f"the disk of {target.parent} is full{more}. What came is kept: make room, and the "
            "same command goes on from there; or name another folder: --root DIR"
        )
    return (
        f"{target.parent} cannot be written: {error.strerror or error}. Name another folder: "
        "--root DIR"
    )
