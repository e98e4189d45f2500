"""Download of one file by HTTP: resumed where it was cut off, checked, then moved into place.

The downloaded bytes are kept beside the target as NAME.partial, and a later request continues them
with a Range header. If the expected hash of the file is unknown, they are continued only if the
server still has the same version (ETag or Last-Modified), which NAME.partial.version stores.
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
"""Maximum number of successive requests that bring no new bytes."""
WAIT = 0.5
"""Wait before repeating a failed request, in seconds; doubled by each failure in a row."""
TIMEOUT = 30.0
"""Longest wait for the server, in seconds."""
RETRIED_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
"""HTTP statuses of temporary failures, after which the request is repeated."""


class _CutOff(Exception):
    """A request that did not bring the whole file but may be repeated."""


@dataclass(frozen=True, kw_only=True)
class _PartialFile:
    """The downloaded bytes of a file that is not complete."""

    file: Path
    """NAME.partial, which holds the bytes."""
    version: Path
    """NAME.partial.version, which holds the server's name of the file's version."""

    @staticmethod
    def of(target: Path) -> _PartialFile:
        """Return the partial file of a target, whether it exists or not."""
        file = target.with_name(f"{target.name}.partial")
        return _PartialFile(file=file, version=file.with_name(f"{file.name}.version"))

    @property
    def size(self) -> int:
        """Number of downloaded bytes; 0 if the file does not exist."""
        return self.file.stat().st_size if self.file.is_file() else 0

    def remove(self) -> None:
        """Delete the downloaded bytes and their version."""
        self.file.unlink(missing_ok=True)
        self.version.unlink(missing_ok=True)


def download(
    url: str,
    target: Path,
    *,
    expected_sha256: str | None = None,
    progress: Progress = silent,
) -> bool:
    """Download a file to `target`, unless it exists, and return whether it was downloaded.

    Redirects are followed. Progress counts bytes; the total is 0 if the server does not give it.

    Raises DownloadError if the address is neither http nor https, an existing or the downloaded
    file does not have the expected hash, the server answers with an error, `TRIES` successive
    requests bring no new bytes, the disk is full, or the folder cannot be written.
    """
    if not re.match(r"https?://[^/]", url):
        raise DownloadError(
            f"{url!r} cannot be downloaded; expected an address that begins with http:// or https://"
        )
    try:
        if target.is_file():
            require_hash(target, expected_sha256)
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = _PartialFile.of(target)
        resumed = _fetch(url, partial, expected_sha256 is not None, progress)
        if resumed and expected_sha256 not in (None, sha256(partial.file)):
            partial.remove()  # the partial file came from another file
            _fetch(url, partial, expected_sha256 is not None, progress)
        _put(partial, target, url, expected_sha256)
    except OSError as error:  # _fetch handles the errors of httpx2
        raise DownloadError(_describe_os_error(error, target)) from error
    return True


def require_hash(file: Path, expected_sha256: str | None) -> None:
    """Raise DownloadError if an existing file does not have the expected hash; None accepts all."""
    if expected_sha256 is not None and (found := sha256(file)) != expected_sha256:
        raise DownloadError(
            f"{file} exists but is not the released file: SHA-256 {found}, expected "
            f"{expected_sha256}. Move it away, or name another folder with --root DIR"
        )


def _fetch(url: str, partial: _PartialFile, hashed: bool, progress: Progress) -> bool:
    """Complete `partial` and return whether some of its bytes existed before this call."""
    size_before = partial.size
    failures, most = 0, size_before
    with httpx2.Client(follow_redirects=True, timeout=TIMEOUT) as client:
        while True:
            try:
                _request(client, url, partial, hashed, progress)
                return bool(size_before)
            except (_CutOff, httpx2.HTTPError, httpx2.StreamError) as error:
                failures = 0 if partial.size > most else failures + 1
                most = max(most, partial.size)
                if failures >= TRIES:
                    raise DownloadError(
                        f"{url} cannot be downloaded: {error or type(error).__name__}; tried "
                        f"{TRIES} times. {_describe_resuming(partial)}"
                    ) from error
                time.sleep(WAIT * 2**failures)
            except httpx2.InvalidURL as error:
                raise DownloadError(f"{url!r} is not a valid address: {error}") from error


def _describe_resuming(partial: _PartialFile) -> str:
    """Return what to do after a failed download, and which bytes are kept, if any."""
    if not partial.size:
        return "Check the network connection, then run the same command again"
    return f"{partial.size:,} bytes are kept in {partial.file}: run the same command to resume"


def _request(
    client: httpx2.Client, url: str, partial: _PartialFile, hashed: bool, progress: Progress
) -> None:
    """Request the missing bytes of a file once and append them to `partial`.

    Raises _CutOff if the file is not complete but the request may be repeated, and DownloadError.
    """
    if not hashed and partial.size and not partial.version.is_file():
        partial.remove()  # its version is unknown
    there = partial.size
    # a compressed answer has other bytes and another length than the file
    headers = {"Accept-Encoding": "identity"}
    if there:
        headers["Range"] = f"bytes={there}-"
        if not hashed:
            headers["If-Range"] = partial.version.read_text(encoding="utf-8")
    with client.stream("GET", url, headers=headers) as response:
        if response.status_code == 416 and there:
            if response.headers.get("Content-Range", "").strip() == f"bytes */{there}":
                return  # it was complete already
            partial.remove()
            raise _CutOff("the server's file is shorter than the partial file")
        _require_ok(response, url)
        if response.status_code != 206 or not _is_continuation(response, there):
            if response.status_code == 206:
                partial.remove()
                raise _CutOff("the server sent another part of the file than the requested one")
            there = 0
            partial.remove()
            _note_version(partial, response)
        _write(response, partial, there, progress)


def _is_continuation(response: httpx2.Response, there: int) -> bool:
    """Return whether an answer begins at byte `there`."""
    return response.headers.get("Content-Range", "").startswith(f"bytes {there}-")


def _require_ok(response: httpx2.Response, url: str) -> None:
    """Raise _CutOff after a temporary failure and DownloadError after any other."""
    if response.status_code in RETRIED_STATUSES:
        raise _CutOff(f"the server answered {response.status_code}")
    if response.status_code not in (200, 206):
        raise DownloadError(
            f"{url} cannot be downloaded: the server answered {response.status_code} "
            f"{response.reason_phrase}. Download the file by hand, or open an issue if it has moved"
        )


def _note_version(partial: _PartialFile, response: httpx2.Response) -> None:
    """Store the version of the server's file: a strong ETag, else Last-Modified."""
    tag = response.headers.get("ETag", "")
    version = tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified")
    if version:
        partial.version.write_text(version, encoding="utf-8")


def _write(
    response: httpx2.Response, partial: _PartialFile, there: int, progress: Progress
) -> None:
    """Write an answer after the `there` bytes of `partial`. Raises _CutOff and OSError."""
    # the length of an answer that is compressed anyway is not the length of the file
    encoded = response.headers.get("Content-Encoding", "identity") != "identity"
    length = 0 if encoded else int(response.headers.get("Content-Length", 0))
    total = there + length if length else 0
    free = shutil.disk_usage(partial.file.parent).free
    if length > free:
        raise OSError(errno.ENOSPC, f"{length:,} bytes are needed, {free:,} are free")
    progress("fetching", there, total, "")
    with partial.file.open("ab" if there else "wb") as opened:
        for chunk in response.iter_bytes():  # a chunk size would lose the last bytes at a cut off
            opened.write(chunk)
            there += len(chunk)
            progress("fetching", there, max(total, there) if total else 0, "")
    if total and there != total:
        raise _CutOff(f"received {there:,} of {total:,} bytes")


def _put(partial: _PartialFile, target: Path, url: str, expected_sha256: str | None) -> None:
    """Move a complete file to `target`. Raises DownloadError if its hash differs."""
    if expected_sha256 is not None and (found := sha256(partial.file)) != expected_sha256:
        partial.remove()
        raise DownloadError(
            f"{url} is not the released file: SHA-256 {found}, expected {expected_sha256}. The "
            "download was deleted. Run the same command again; if this error repeats, open an "
            "issue: the publisher may have replaced the file"
        )
    os.replace(partial.file, target)
    partial.remove()


def _describe_os_error(error: OSError, target: Path) -> str:
    """Return what failed while writing `target`, and what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        more = f" ({error.strerror})" if error.strerror else ""
        again = "resume" if _PartialFile.of(target).size else "try again"
        return (
            f"the disk of {target.parent} is full{more}. Make room and run the same command to "
            f"{again}, or name another folder with --root DIR"
        )
    return (
        f"{target.parent} cannot be written: {error.strerror or error}. Name another folder "
        "with --root DIR"
    )
