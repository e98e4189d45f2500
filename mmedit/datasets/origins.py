"""Where every benchmark is to be had: what `mmedit data get` fetches, and what nobody but you can.

Hashes are of the released files; of what is served without one, the reader's own checks count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

_LIVEEDIT = "https://raw.githubusercontent.com/qizhou000/LiveEdit/b46217b/data/easy-edit-mm"


@dataclass(frozen=True)
class Remote:
    """One file at a public address."""

    url: str
    path: str
    """Where it goes, under the benchmark's folder; an archive's contents where it is unpacked."""
    sha256: str | None = None
    strip: str | None = None
    """Of an archive: the folder in it whose contents are wanted, "" for all; None: no archive."""
    images: bool = False
    """Large: fetched where images are asked for."""


@dataclass(frozen=True)
class Release:
    """How a benchmark comes into its folder."""

    files: tuple[Remote, ...] = ()
    hub: str | None = None
    """A dataset repository of the Hugging Face hub, fetched whole."""
    by_hand: str = ""
    """What has no public address, and where it goes; ROOT is the folder."""
    known: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of released files, by their path under the folder."""


_IMAGES = Remote(
    url="http://images.cocodataset.org/zips/val2014.zip", path="images", strip="", images=True
)
_REPHRASED = (
    "the rephrased images (val2014_image_rephrase): the Google Drive folder named in EasyEdit's "
    "examples/MultimodalEdit.md, to ROOT/images/val2014_image_rephrase"
)


def _annotations(folder: str, hashes: Mapping[str, str]) -> tuple[Remote, ...]:
    return tuple(
        Remote(f"{_LIVEEDIT}/{folder}/{name}", f"{folder}/{name}", sha256)
        for name, sha256 in hashes.items()
    )


RELEASES: Mapping[str, Release] = {
    "evqa": Release(
        files=(
            *_annotations(
                "vqa",
                {
                    "vqa_train.json": (
                        "82e242bd7fd3ab855413ba7972665c33bca920ae3b0982b71cae2af1b61700b0"
                    ),
                    "vqa_eval.json": (
                        "7299743ebe2854b240c6fe6f252fdb0c2ae3993ba2e5b23f07c6fee54ed1bcc0"
                    ),
                },
            ),
            _IMAGES,
        ),
        by_hand=_REPHRASED,
    ),
    "eic": Release(
        files=(
            *_annotations(
                "caption",
                {
                    "caption_train_edit.json": (
                        "583e306d72d06ad9106544e74cbeff5cc6105720b0cdfac675754d2f08ea9a20"
                    ),
                    "caption_eval_edit.json": (
                        "7c2215a419b82249c957abd12b850ef3c962d2de0d68f092c073f10bb63c2e83"
                    ),
                },
            ),
            _IMAGES,
        ),
        by_hand=_REPHRASED,
    ),
    "vlkeb": Release(
        by_hand=(
            "annotations and images: kaggle datasets download -d hymanh/vlkeb-data (Kaggle wants "
            "an account), unpacked so that ROOT holds train.json, eval.json and VLKEB_images"
        ),
        known={
            "train.json": "6e40e0e9a28dc3e7523f8d48f032755fe050c5b5728344633f13113dbd6fbc01",
            "eval.json": "72c47efe00773bb16cd83258aff394a0894b8c29a6b02e6250717a30d1b18f13",
            "eval_edit_onehop.json": (
                "f32256e7c317d5a18c9fe480f3d373050303e93aeaedeef9c9b4afb5c024a670"
            ),
        },
    ),
    "mmke": Release(hub="kailinjiang/MMKE-Bench-dataset"),
    "grocery": Release(
        files=(
            Remote(
                url=(
                    "https://codeload.github.com/marcusklasson/GroceryStoreDataset/zip/refs/heads/"
                    "master"
                ),
                path="",
                strip="GroceryStoreDataset-master/dataset",
            ),
        ),
    ),
}


def advice(name: str) -> str:
    """What to do where a benchmark's files are missing."""
    release = RELEASES[name]
    fetched = f"Get it with: mmedit data get {name} --root ROOT"
    if any(remote.images for remote in release.files):
        fetched += " --images (COCO's, 6 GB)"
    if not (release.files or release.hub):
        fetched = f"mmedit data get {name} --root ROOT tells how to get it"
    by_hand = f" By hand: {release.by_hand}." if release.by_hand else ""
    elsewhere = " --set dataset.images=DIR, if the images lie elsewhere" if by_hand else ""
    return f"{fetched}.{by_hand} Then: --set dataset.root=ROOT{elsewhere}."
