"""Fetching the files of a dataset that have an address, and naming those that have none."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from httpx2 import HTTPError
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError

from mmedit.datasets.fetch.archives import names, unpack
from mmedit.datasets.fetch.download import download
from mmedit.datasets.fetch.origins import GIGABYTE, ORIGINS, Origin, RemoteArchive, in_words
from mmedit.errors import ConfigError, DownloadError, UnknownNameError
from mmedit.progress import Progress, named, silent
from mmedit.storage import sha256

MAX_BYTES = 64 * GIGABYTE
"""Maximum size of an unpacked archive from the hub, in bytes."""
FOLDERS = ("data_json", "data_image")
"""The folders of MMKE-Bench."""


@dataclass
class Got:
    """The files of a dataset's folder after `get`."""

    root: Path
    fetched: list[str] = field(default_factory=list)
    there: list[str] = field(default_factory=list)
    """Files that were there before."""
    missing: list[str] = field(default_factory=list)
    """Things left to do, each a sentence."""


def get(
    name: str,
    root: Path | None = None,
    *,
    images: bool = False,
    progress: Progress = silent,
) -> Got:
    """Fetch the files that have an address and are not there; check the files that are there.

    Raises UnknownNameError, ConfigError, DownloadError.
    """
    if name not in ORIGINS:
        raise UnknownNameError("dataset to get", name, ORIGINS)
    origin = ORIGINS[name]
    if images and not any(archive.images for archive in origin.archives):
        raise ConfigError(f"{name} has no images that are fetched apart: leave --images out")
    got = Got(root=(root or Path(origin.root)).expanduser())
    for file in origin.files:
        fetched = download(
            file.url,
            got.root / file.path,
            sha256_wanted=file.sha256,
            progress=named(progress, f"fetching {Path(file.path).name}"),
        )
        (got.fetched if fetched else got.there).append(file.path)
    for archive in origin.archives:
        _get_archive(name, archive, got, images, progress)
    if origin.hub:
        _get_from_hub(origin.hub, got, progress)
    _look_for_what_is_fetched_by_hand(origin, got)
    return got


def _get_archive(
    name: str, archive: RemoteArchive, got: Got, images: bool, progress: Progress
) -> None:
    folder = got.root / archive.path
    what = archive.path or "the photographs and their lists"
    if _whole(archive, folder):
        got.there.append(what)
        return
    if archive.images and not images:
        got.missing.append(
            f"{archive.path} ({archive.size}): mmedit data get {name} --root {got.root} --images"
        )
        return
    packed = got.root / f"{archive.inside.partition('/')[0]}.zip"
    download(archive.url, packed, progress=named(progress, f"fetching {packed.name}"))
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


def _whole(archive: RemoteArchive, folder: Path) -> bool:
    """Return whether an archive was unpacked before."""
    if not all(
        (folder / name).is_file() and sha256(folder / name) == wanted
        for name, wanted in archive.sha256.items()
    ):
        return False
    return sum(path.is_file() for path in folder.rglob("*")) >= archive.files


def _get_from_hub(repository: str, got: Got, progress: Progress) -> None:
    """Fetch all files of a dataset on the hub, which resumes and checks, and unpack zip files."""
    before = _files(got.root)
    try:
        snapshot_download(repository, repo_type="dataset", local_dir=got.root)
    except (HTTPError, HFValidationError, OSError) as error:
        raise DownloadError(
            f"the dataset {repository} cannot be fetched from the hub into {got.root}: "
            f"{str(error) or type(error).__name__}. What came is kept: the same command goes on "
            "from there"
        ) from error
    for packed in sorted(got.root.rglob("*.zip")):
        if (place := _place(packed, got.root)) is None:
            got.missing.append(
                f"{packed} holds neither {' nor '.join(FOLDERS)}: unpack it yourself"
            )
            continue
        inside, folder = place
        unpack(
            packed,
            folder,
            inside=inside,
            max_bytes=MAX_BYTES,
            progress=named(progress, f"unpacking {packed.name}"),
        )
    after = _files(got.root)
    got.fetched += _by_folder(after - before)
    got.there += _by_folder(before)
    got.missing += [
        f"{got.root / folder} is not among the files of {repository}: look at its page"
        for folder in FOLDERS
        if not (got.root / folder).is_dir()
    ]


def _place(packed: Path, root: Path) -> tuple[str, Path] | None:
    """Return which folder of an archive goes where, so that `root` holds `FOLDERS`, or None."""
    inside = {tuple(Path(name).parts) for name in names(packed)}
    tops = {parts[0] for parts in inside}
    if tops <= set(FOLDERS):
        return "", root
    if len(tops) == 1 and {parts[1] for parts in inside if len(parts) > 2} & set(FOLDERS):
        return tops.pop(), root
    for folder in FOLDERS:
        if folder in packed.stem or packed.parent.name == folder:
            return "", root / folder
    return None


def _look_for_what_is_fetched_by_hand(origin: Origin, got: Got) -> None:
    for path, wanted in origin.released.items():
        if not (file := got.root / path).is_file():
            continue
        found = sha256(file)
        if found == wanted:
            got.there.append(f"{path}, as released")
        else:
            got.missing.append(
                f"{file} is not the released file: SHA-256 {found}, expected {wanted}"
            )
    for one in origin.by_hand:
        if origin.released:
            there = all((got.root / path).is_file() for path in origin.released)
        else:
            there = (got.root / one.path).is_dir()
        if there:
            got.there += [one.path] if one.path else []
        else:
            got.missing.append(f"by hand: {in_words(one, got.root)}")


def _files(root: Path) -> set[str]:
    """Return the files below the folder, without the hub's own bookkeeping."""
    found = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    return {str(path) for path in found if path.parts[0] != ".cache"}


def _by_folder(files: set[str]) -> list[str]:
    """Return the files at the top by name, and the folders with their number of files."""
    below: dict[str, int] = {}
    for file in sorted(files):
        top, slash, _ = file.partition("/")
        below[f"{top}{slash}"] = below.get(f"{top}{slash}", 0) + 1
    return [f"{top} ({n:,} files)" if top.endswith("/") else top for top, n in below.items()]
