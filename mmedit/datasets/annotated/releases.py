"""The datasets that are read from annotation files: E-VQA and E-IC (MMEdit, Cheng et al. 2023),
VLKEB (Huang et al. 2024), MMKE-Bench (Du et al. 2025), ComprehendEdit, FGVEdit, CCKEB, ADS-Edit
(their modules), and your own file in MMEdit's keys (docs/datasets.md).
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from mmedit.cases import Cases, Split
from mmedit.datasets.annotated.cases import MMEDIT, OnMissing, Source, load
from mmedit.datasets.annotated.comprehendedit import Neighbours
from mmedit.datasets.annotated.files import RELEASES
from mmedit.datasets.annotated.mmke import KNOWLEDGE
from mmedit.datasets.base import DatasetSettings, Folders, existing_folder, one_of
from mmedit.datasets.fetch.origins import how_to_get
from mmedit.errors import DataError
from mmedit.progress import Progress

PORTABILITY = ("none", "onehop", "multihop")


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
        images = self.images or tuple(folder / place for place in release.images)
        advice = how_to_get(self.release)
        return Source(
            name=found.cases,
            file=next(filter(os.path.isfile, places), places[0]),
            images=images,
            rephrase_images=self.rephrase_images or images,
            template=self.template,
            locality_template=self.locality_template or self.template,
            required=found.required,
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


class ComprehendEdit(ReleaseSettings):
    """ComprehendEdit; `root` holds its three JSON files. Prompts are those of the datasets that the
    records are from, unless `template` is set.
    """

    release: ClassVar[str] = "comprehendedit"
    template: Template = MMEDIT
    per_group: int = Field(default=4, ge=0)
    """Number of near and far records, of each group, that KGI and KPI ask after a test edit."""

    def read(self, split: Split, *, limit: int | None, seed: int, progress: Progress) -> Cases:
        """Read the file, and for test cases the files of their neighbours. Raises DataError."""
        source = self.source(split)
        if split == "test" and self.per_group:
            found = Neighbours.read(self.per_group, source, self.source_of("right"))
            source = replace(source, case=found.case)
        skipping = self.on_missing_image
        return load(source, on_missing_image=skipping, limit=limit, progress=progress)


class FGVEdit(ReleaseSettings):
    """FGVEdit; `root` holds train_data.json, test_data.json and images."""

    release: ClassVar[str] = "fgvedit"
    template: Template = MMEDIT


class CCKEB(ReleaseSettings):
    """CCKEB; `root` holds CCKEB_train.json, CCKEB_eval.json and CCKEB_images."""

    release: ClassVar[str] = "cckeb"


class ADSEdit(ReleaseSettings):
    """ADS-Edit's records about a single image; `root` holds train.json, test.json and images."""

    release: ClassVar[str] = "adsedit"


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
    settings.release: settings
    for settings in (EVQA, EIC, VLKEB, MMKE, ComprehendEdit, FGVEdit, CCKEB, ADSEdit)
}
"""The settings of the published datasets, by name."""
