"""The datasets that are read from annotation files: E-VQA and E-IC (MMEdit, Cheng et al. 2023),
VLKEB (Huang et al. 2024), MMKE-Bench (Du et al. 2025), and your own file in MMEdit's keys
(docs/datasets.md).
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator

from mmedit.cases import Cases, Split
from mmedit.datasets.annotated.annotations import Annotation
from mmedit.datasets.annotated.cases import CaseMaker, OnMissing, Source, load
from mmedit.datasets.annotated.mmke import KNOWLEDGE, MMKERecord, mmke_case
from mmedit.datasets.base import DatasetSettings, Folders, existing_folder, one_of
from mmedit.datasets.fetch.origins import how_to_get
from mmedit.errors import DataError
from mmedit.progress import Progress

MMEDIT = "Question: {} Short answer:"
"""MMEdit's template of visual questions."""
PORTABILITY = ("none", "onehop", "multihop")


@dataclass(frozen=True)
class ReleasedFile:
    """One annotation file of a release."""

    cases: str
    """The beginning of its cases' ids."""
    places: tuple[str, ...]
    """Places under the dataset's folder where it may be; the first place is the usual one."""
    published: int | None = None
    """Number of records in the paper."""


@dataclass(frozen=True, kw_only=True)
class Release:
    """A published dataset: its files, by split or by split and kind, and what is in them."""

    files: Mapping[str, ReleasedFile]
    images: str
    """The image folder under the dataset's folder."""
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
        images="images",
    ),
    "eic": Release(
        files={
            "train": ReleasedFile("eic-train", ("caption/caption_train_edit.json",), 2849),
            "test": ReleasedFile("eic-test", ("caption/caption_eval_edit.json",), 1000),
        },
        images="images",
    ),
    "vlkeb": Release(
        files={
            "train": ReleasedFile("vlkeb-train", ("train.json",), 5000),
            "test": ReleasedFile("vlkeb-test", ("eval.json",), 3174),
            "test-onehop": ReleasedFile("vlkeb-test", ("eval_edit_onehop.json",)),
            "test-multihop": ReleasedFile("vlkeb-test", ("eval_multihop.json",)),
        },
        images="VLKEB_images",
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
        images="data_image",
        form=MMKERecord,
        case=mmke_case,
    ),
}
"""The published datasets by name. The second places of mmke are those of its first release."""


def _require_slot(template: Any) -> Any:
    if template is None or (isinstance(template, str) and template.count("{}") == 1):
        return template
    raise ValueError(
        f"the template {template!r} must be a text that holds {{}} once, for the question; YAML "
        "needs quotes around a colon: --set 'dataset.template=\"Q: {} A:\"'"
    )


Template = Annotated[str, BeforeValidator(_require_slot)]
Missing = Annotated[OnMissing, one_of("way with missing images", ("error", "skip"))]


class AnnotatedSettings(DatasetSettings, ABC):
    """The settings of every dataset that is read from annotation files."""

    template: Template = "{}"
    """The prompt of a question about an image; {} is the question."""
    locality_template: Template | None = None
    """The prompt of an image-locality question; None stands for `template`."""
    on_missing_image: Missing = "error"
    """"error": stop if an image is missing; "skip": leave its record out."""

    @abstractmethod
    def source(self, split: Split) -> Source:
        """Return the annotation file of a split, which need not be there. Raises DataError."""

    def read(self, split: Split, *, limit: int | None, seed: int, progress: Progress) -> Cases:
        """Read the file; the order is the file's, whatever the seed. Raises DataError."""
        return load(
            self.source(split),
            on_missing_image=self.on_missing_image,
            limit=limit,
            progress=progress,
        )


class ReleaseSettings(AnnotatedSettings, ABC):
    """The settings of a published dataset."""

    release: ClassVar[str]
    """Its name in `RELEASES`."""
    root: Path | None = None
    """The dataset's folder."""
    images: Folders = ()
    """Image folders; if none is named, the one under `root`."""
    rephrase_images: Folders = ()
    """Folders of the rephrased images; if none is named, `images`."""

    def kind(self, split: Split) -> str:
        """Return the key of a split's file in `Release.files`."""
        return split

    def source(self, split: Split) -> Source:
        return self.source_of(self.kind(split))

    def source_of(self, kind: str) -> Source:
        """Return one file of the release, by its key. Raises DataError."""
        release, folder = RELEASES[self.release], self._folder()
        found = release.files[kind]
        places = [folder / place for place in found.places]
        images = self.images or (folder / release.images,)
        advice = how_to_get(self.release)
        return Source(
            name=found.cases,
            file=next(filter(os.path.isfile, places), places[0]),
            images=images,
            rephrase_images=self.rephrase_images or images,
            template=self.template,
            locality_template=self.locality_template or self.template,
            without_file=advice,
            without_image=f"{advice} If they are in other folders: --set dataset.images=DIR, and "
            "--set dataset.rephrase_images=DIR for image_rephrase.",
            form=release.form,
            case=release.case,
            binding="binding" in self.probes,
        )

    def _folder(self) -> Path:
        if self.root is None:
            raise DataError(
                f"{self.release} needs its folder: --set dataset.root=ROOT. "
                f"{how_to_get(self.release)}"
            )
        return existing_folder(self.root, self.release, how_to_get(self.release))


class EVQA(ReleaseSettings):
    """E-VQA; `root` is MMEdit's `editing-data`."""

    release: ClassVar[str] = "evqa"
    template: Template = MMEDIT


class EIC(ReleaseSettings):
    """E-IC: its prompt is "a photo of", and image locality asks E-VQA's questions."""

    release: ClassVar[str] = "eic"
    locality_template: Template | None = MMEDIT


class VLKEB(ReleaseSettings):
    """VLKEB; `root` holds train.json and eval.json, and `portability` chooses the test file."""

    release: ClassVar[str] = "vlkeb"
    portability: Annotated[
        Literal["none", "onehop", "multihop"], one_of("portability of vlkeb", PORTABILITY)
    ] = "none"

    def kind(self, split: Split) -> str:
        chosen = split == "test" and self.portability != "none"
        return f"test-{self.portability}" if chosen else split

    @property
    def has_binding(self) -> bool:
        return self.portability == "onehop"

    def shows(self, image: Path) -> str:
        """Return the entity: its images are in a folder of their own."""
        return image.parent.name


class MMKE(ReleaseSettings):
    """MMKE-Bench; `root` holds data_json and data_image, and `knowledge` chooses the files."""

    release: ClassVar[str] = "mmke"
    knowledge: Annotated[
        Literal["entity", "visual", "user"], one_of("type of knowledge of mmke", KNOWLEDGE)
    ] = "entity"

    def kind(self, split: Split) -> str:
        return f"{split}-{self.knowledge}"


class OwnFiles(AnnotatedSettings):
    """Your own files in MMEdit's keys; a record needs only src, alt and image."""

    train: Path | None = None
    """The file that editors learn from."""
    test: Path | None = None
    """The file that is tested."""
    images: Folders = ()
    """Image folders; if none is named, the folder of the file."""

    def source(self, split: Split) -> Source:
        file = self.train if split == "train" else self.test
        if file is None:
            raise DataError(
                f"the {split} file is not named: --set dataset.{split}=FILE.json (docs/datasets.md)"
            )
        file = Path(os.path.expanduser(file))
        images = self.images or (file.parent,)
        return Source(
            name=f"{file.stem}-{split}",
            file=file,
            images=images,
            rephrase_images=images,
            template=self.template,
            locality_template=self.locality_template or self.template,
            required=(),
            without_file=f"Check the path in --set dataset.{split}=FILE.json.",
            without_image="Name the folder that the paths begin in: --set dataset.images=DIR.",
        )


PUBLISHED: dict[str, type[ReleaseSettings]] = {
    settings.release: settings for settings in (EVQA, EIC, VLKEB, MMKE)
}
"""The settings of the published datasets, by name."""
