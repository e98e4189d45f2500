"""The addresses and hashes of the released files, for `mmedit data get`; and the files that must be
fetched by hand. This module uses no network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

GIGABYTE = 1 << 30
LIVEEDIT = "https://raw.githubusercontent.com/qizhou000/LiveEdit/b46217b/data/easy-edit-mm"
"""MMEdit's annotations, as LiveEdit's repository (MIT) has them."""


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file with a public address."""

    url: str
    path: str
    """Its place under the dataset's folder."""
    sha256: str
    size: int
    """Bytes."""


@dataclass(frozen=True, kw_only=True)
class RemoteArchive:
    """A zip file with a public address. Its hash is not known."""

    url: str
    inside: str
    """The folder of the archive whose content goes to `path`."""
    path: str
    max_bytes: int
    """Maximum size when unpacked, in bytes."""
    sha256: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of files, by path under `inside`."""
    files: int
    """Minimum number of files under `path` when all are there."""
    images: bool = False
    """True if it is fetched only with --images."""
    size: str = ""
    """Its size as a text, for instance "6.2 GB"."""


@dataclass(frozen=True, kw_only=True)
class ByHand:
    """Files without an address that a program may fetch from."""

    what: str
    where: str
    """The source."""
    path: str
    """Its place under the dataset's folder."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The source of a dataset."""

    root: str
    """Its default folder."""
    files: tuple[RemoteFile, ...] = ()
    archives: tuple[RemoteArchive, ...] = ()
    hub: str | None = None
    """A dataset's id on the Hugging Face hub."""
    by_hand: tuple[ByHand, ...] = ()
    released: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of files that are fetched by hand, by path under the folder."""

    @property
    def has_address(self) -> bool:
        """Whether a program can fetch some of its files."""
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
_REPHRASED = ByHand(
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
            ByHand(
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
    "mmke": Origin(root="MMKE", hub="kailinjiang/MMKE-Bench-dataset"),
    "grocery": Origin(
        root="GroceryStoreDataset/dataset",
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
"""Sources by the name of the dataset."""


def how_to_get(name: str) -> str:
    """Return what to do if files of a dataset are missing; DIR is its folder."""
    origin = ORIGINS[name]
    said = []
    if origin.has_address:
        said.append(f"Get it with: mmedit data get {name} --root DIR")
        said += [
            f"the same with --images fetches {archive.url} ({archive.size})"
            for archive in origin.archives
            if archive.images
        ]
    said += [f"by hand: {in_words(one, Path('DIR'))}" for one in origin.by_hand]
    if not origin.has_address:
        said.append(f"mmedit data get {name} --root DIR then says whether it is what was released")
    text = "; ".join(said)
    return f"{text[0].upper()}{text[1:]}."


def in_words(one: ByHand, root: Path) -> str:
    """Return the sentence "files, from source, to place"."""
    return f"{one.what}, from {one.where}, to {root / one.path}"
