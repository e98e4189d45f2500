"""A package registry on this machine: wheels in a folder."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from pathlib import Path

from mmedit.progress import Progress
from mmedit.registry import PackageFile


def write_wheel(folder: Path, package: str, path: str, content: bytes) -> PackageFile:
    """Write a wheel that holds one file, as `pip download` takes it, and return its description."""
    name, _, version = package.partition("==")
    stem = f"{name.replace('-', '_')}-{version}"
    wheel, info = folder / f"{stem}-py3-none-any.whl", f"{stem}.dist-info"
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel, "w") as opened:
        opened.writestr(path, content)
        described = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        opened.writestr(f"{info}/METADATA", described)
        tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        opened.writestr(f"{info}/WHEEL", tags)
        opened.writestr(f"{info}/RECORD", "")
    return PackageFile(
        package=package,
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        wheel_size=wheel.stat().st_size,
        path=path,
        sha256=hashlib.sha256(content).hexdigest(),
        size=len(content),
    )


class Registry:
    """A package registry as a folder of wheels, in place of pip."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fetched: list[str] = []
        self.broken: set[str] = set()
        """Packages at which pip fails."""

    def run_pip(self, file: PackageFile, to: Path, progress: Progress) -> tuple[int, str]:
        if file.package in self.broken:
            return 1, "ERROR: no network"
        self.fetched.append(file.package)
        stem = file.package.replace("-", "_").replace("==", "-")
        shutil.copy(self.folder / f"{stem}-py3-none-any.whl", to)
        return 0, ""
