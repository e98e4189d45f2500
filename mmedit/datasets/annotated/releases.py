"""The benchmarks that are read from annotation files: E-VQA and E-IC (MMEdit, Cheng et al. 2023),
VLKEB (Huang et al. 2024), MMKE-Bench (Du et al. 2025), and your own file in MMEdit's keys
(docs/datasets.md).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from mmedit.cases import Split
from mmedit.datasets.annotated.cases import Cases, OnMissing, Source, load
from mmedit.datasets.annotated.mmke import KNOWLEDGE, MMKERecord, mmke_case
from mmedit.datasets.fetch.origins import how_to_get
from mmedit.errors import DataError, UnknownNameError
from mmedit.progress import Progress, silent

MMEDIT = "Question: {} Short answer:"
"""MMEdit's template of visual questions."""
ELSEWHERE = "Images elsewhere: --set dataset.images=DIR --set dataset.rephrase_images=DIR."
PORTABILITY = {
    "none": "eval.json",
    "onehop": "eval_edit_onehop.json",
    "multihop": "eval_multihop.json",
}


def evqa_source(
    split: Split,
    *,
    root: str | None = None,
    images: str | None = None,
    rephrase_images: str | None = None,
    template: str = MMEDIT,
    locality_template: str | None = None,
) -> Source:
    """E-VQA: `root` is MMEdit's `editing-data`; images lie in `root`/images unless named.

    Raises DataError.
    """
    folder = _root("evqa", root)
    file = folder / "vqa" / ("vqa_train.json" if split == "train" else "vqa_eval.json")
    return Source(
        name=f"evqa-{split}",
        file=file,
        images=Path(images) if images else folder / "images",
        rephrase_images=Path(rephrase_images or images or folder / "images"),
        template=template,
        locality_template=locality_template or template,
        fetch=f"{how_to_get('evqa')} {ELSEWHERE}",
    )


def eic_source(
    split: Split,
    *,
    root: str | None = None,
    images: str | None = None,
    rephrase_images: str | None = None,
    template: str = "{}",
    locality_template: str = MMEDIT,
) -> Source:
    """E-IC: as E-VQA; the prompt is "a photo of", and image locality asks E-VQA's questions."""
    folder = _root("eic", root)
    name = "caption_train_edit.json" if split == "train" else "caption_eval_edit.json"
    return Source(
        name=f"eic-{split}",
        file=folder / "caption" / name,
        images=Path(images) if images else folder / "images",
        rephrase_images=Path(rephrase_images or images or folder / "images"),
        template=template,
        locality_template=locality_template,
        fetch=f"{how_to_get('eic')} {ELSEWHERE}",
    )


def vlkeb_source(
    split: Split,
    *,
    root: str | None = None,
    images: str | None = None,
    portability: Literal["none", "onehop", "multihop"] = "none",
    template: str = "{}",
    locality_template: str | None = None,
) -> Source:
    """VLKEB: `root` holds train.json and eval.json; `portability` chooses the test file."""
    folder = _root("vlkeb", root)
    if portability not in PORTABILITY:
        raise UnknownNameError("portability of vlkeb", str(portability), PORTABILITY)
    where = Path(images) if images else folder / "VLKEB_images"
    return Source(
        name=f"vlkeb-{split}",
        file=folder / ("train.json" if split == "train" else PORTABILITY[portability]),
        images=where,
        rephrase_images=where,
        template=template,
        locality_template=locality_template or template,
        fetch=how_to_get("vlkeb"),
    )


def own_source(
    split: Split,
    *,
    train: str | None = None,
    test: str | None = None,
    images: str | None = None,
    template: str = "{}",
    locality_template: str | None = None,
) -> Source:
    """Your own files in MMEdit's keys; only src, alt and image must be there."""
    chosen = train if split == "train" else test
    if chosen is None:
        raise DataError(
            f"the {split} file is not named: --set dataset.{split}=FILE.json (docs/datasets.md)"
        )
    where = Path(images) if images else Path(chosen).parent
    return Source(
        name=f"{Path(chosen).stem}-{split}",
        file=Path(chosen),
        images=where,
        rephrase_images=where,
        template=template,
        locality_template=locality_template or template,
        required=(),
        fetch="Name the folder that the paths begin in: --set dataset.images=DIR.",
    )


def mmke_source(
    split: Split,
    *,
    root: str | None = None,
    images: str | None = None,
    knowledge: Literal["entity", "visual", "user"] = "entity",
    template: str = "{}",
    locality_template: str | None = None,
) -> Source:
    """MMKE-Bench: `root` holds data_json and data_image; `knowledge` is one of three types."""
    folder = _root("mmke", root)
    if knowledge not in KNOWLEDGE:
        raise UnknownNameError("type of knowledge of mmke", str(knowledge), KNOWLEDGE)
    name = "train" if split == "train" else "eval"
    flat = folder / "data_json" / f"{knowledge}_{name}.json"
    nested = folder / "data_json" / knowledge / f"{name}.json"  # as the first release had it
    where = Path(images) if images else folder / "data_image"
    return Source(
        name=f"mmke-{knowledge}-{split}",
        file=nested if nested.is_file() and not flat.is_file() else flat,
        images=where,
        rephrase_images=where,
        template=template,
        locality_template=locality_template or template,
        fetch=how_to_get("mmke"),
        form=MMKERecord,
        case=mmke_case,
    )


SOURCES: dict[str, Callable[..., Source]] = {
    "evqa": evqa_source,
    "eic": eic_source,
    "vlkeb": vlkeb_source,
    "mmke": mmke_source,
    "json": own_source,
}


def loader(name: str) -> Callable[..., Cases]:
    """The loader of a source: what it does not know of its settings goes to the source."""

    def load_named(
        split: Split,
        *,
        on_missing_image: OnMissing = "error",
        limit: int | None = None,
        seed: int = 0,
        progress: Progress = silent,
        **settings: Any,
    ) -> Cases:
        source = SOURCES[name](split, **settings)
        return load(source, on_missing_image=on_missing_image, limit=limit, progress=progress)

    return load_named


def _root(name: str, root: str | None) -> Path:
    if root is None:
        raise DataError(f"{name} needs its folder: --set dataset.root=ROOT. {how_to_get(name)}")
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise DataError(f"{name}: there is no folder {folder}. {how_to_get(name)}")
    return folder
