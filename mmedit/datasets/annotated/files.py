"""The files of the published datasets: places, numbers of records, keys, and how a case is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mmedit.datasets.annotated import cckeb, comprehendedit, fgvedit
from mmedit.datasets.annotated.adsedit import ADSEditRecord
from mmedit.datasets.annotated.annotations import Annotation
from mmedit.datasets.annotated.cases import PROBES, CaseMaker
from mmedit.datasets.annotated.mmke import KNOWLEDGE, MMKERecord, mmke_case


@dataclass(frozen=True)
class ReleasedFile:
    """One annotation file of a release."""

    cases: str
    """The beginning of its cases' ids."""
    places: tuple[str, ...]
    """Places under the dataset's folder where it may be; the first place is the usual one."""
    published: int | None = None
    """Number of records in the paper."""
    required: tuple[str, ...] = PROBES
    """Fields that each record has, beside src, alt and image."""


@dataclass(frozen=True, kw_only=True)
class Release:
    """A published dataset: its files, by split or by split and kind, and what is in them."""

    files: Mapping[str, ReleasedFile]
    images: tuple[str, ...]
    """The image folders under the dataset's folder."""
    form: type[Annotation] = Annotation
    """The keys of a record."""
    case: CaseMaker | None = None
    """Makes a case of a record; None stands for the usual one."""


RELEASES: dict[str, Release] = {
    "evqa": Release(
        files={
            "train": ReleasedFile("evqa-train", ("vqa/vqa_train.json",), 6346),
            "test": ReleasedFile("evqa-test", ("vqa/vqa_eval.json",), 2093),
        },
        images=("images",),
    ),
    "eic": Release(
        files={
            "train": ReleasedFile("eic-train", ("caption/caption_train_edit.json",), 2849),
            "test": ReleasedFile("eic-test", ("caption/caption_eval_edit.json",), 1000),
        },
        images=("images",),
    ),
    "vlkeb": Release(
        files={
            "train": ReleasedFile("vlkeb-train", ("train.json",), 5000),
            "test": ReleasedFile("vlkeb-test", ("eval.json",), 3174),
            "test-onehop": ReleasedFile("vlkeb-test", ("eval_edit_onehop.json",)),
            "test-multihop": ReleasedFile("vlkeb-test", ("eval_multihop.json",)),
        },
        images=("VLKEB_images",),
    ),
    "mmke": Release(
        files={
            f"{split}-{kind}": ReleasedFile(
                f"mmke-{kind}-{split}",
                (f"data_json/{kind}_{name}.json", f"data_json/{kind}/{name}.json"),
            )
            for kind in KNOWLEDGE
            for split, name in (("train", "train"), ("test", "eval"))
        },
        images=("data_image",),
        form=MMKERecord,
        case=mmke_case,
    ),
    "comprehendedit": Release(
        files={
            split: ReleasedFile(
                f"comprehendedit-{split}", (f"ComprehendEdit_{name}.json",), records, required
            )
            for split, name, records, required in (
                ("train", "train", 13450, comprehendedit.REQUIRED),
                ("test", "test", 4482, comprehendedit.REQUIRED),
                ("right", "ori_right", None, ()),
            )
        },
        images=(".", "ComprehendEdit"),
        form=comprehendedit.ComprehendEditRecord,
        case=comprehendedit.comprehendedit_case,
    ),
    "fgvedit": Release(
        files={
            split: ReleasedFile(
                f"fgvedit-{split}",
                (f"{split}_data.json", f"FGVEdit/{split}_data.json"),
                records,
                fgvedit.REQUIRED,
            )
            for split, records in (("train", 8334), ("test", 2778))
        },
        images=("images",),
        form=fgvedit.FGVEditRecord,
        case=fgvedit.fgvedit_case,
    ),
    "cckeb": Release(
        files={
            split: ReleasedFile(f"cckeb-{split}", (f"CCKEB_{name}.json",), None, cckeb.REQUIRED)
            for split, name in (("train", "train"), ("test", "eval"))
        },
        images=("CCKEB_images/mmkb_images", "CCKEB_images"),
        form=cckeb.CCKEBRecord,
        case=cckeb.cckeb_case,
    ),
    "adsedit": Release(
        files={
            split: ReleasedFile(f"adsedit-{split}", (f"{split}.json",))
            for split in ("train", "test")
        },
        images=("images", "image", "."),
        form=ADSEditRecord,
    ),
}
"""The published datasets by name. The second places of mmke are those of its first release."""
