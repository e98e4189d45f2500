"""What an editor is: it takes a VLM and requests, and gives back an edited VLM. It never changes
the one it was given.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from mmedit.adapters.base import Stage
from mmedit.cases import EditCase, Example
from mmedit.deltas import LowRank, together
from mmedit.editors import saved
from mmedit.editors.saved import Origin
from mmedit.errors import EditorError, SiteError
from mmedit.progress import Progress, silent
from mmedit.vlm.interface import VLM


class EditorConfig(BaseModel):
    """Settings of one editing method; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SitesConfig(EditorConfig):
    """Settings of a method that edits weights."""

    where: Stage = "language"
    """The part of the VLM that is edited."""
    sites: tuple[str, ...] = ()
    """Names of the Linear weights to edit; none: the family's default sites of `where`."""

    def sites_of(self, vlm: VLM) -> tuple[str, ...]:
        """The sites on this VLM; raises SiteError for a name it does not have."""
        for site in self.sites:
            vlm.shape(site)
        sites = self.sites or vlm.sites(self.where)
        if not sites:
            raise SiteError(
                f"this VLM has no Linear in its {self.where} that could be edited; edit another "
                "part (editor.where), or name sites (editor.sites)"
            )
        return sites


Config = TypeVar("Config", bound=EditorConfig)


class Editor(ABC, Generic[Config]):
    """One editing method with its settings and, where it learns, what it has learnt."""

    method: ClassVar[str]
    config_class: ClassVar[type[EditorConfig]]

    def __init__(self, config: Config) -> None:
        self.config = config
        self.origin: Origin | None = None
        """What it was fitted on; None before, and where there is nothing to fit."""

    def fit(
        self,
        vlm: VLM,
        cases: Sequence[EditCase],
        *,
        validation: Sequence[EditCase] = (),
        seed: int = 0,
        progress: Progress = silent,
        folder: Path | None = None,
    ) -> None:
        """Learn from (MEND, KE, SERAC) or index (IKE) training cases; FT has nothing to do. Leaves
        the VLM as it is.

        `validation` cases choose the best checkpoint, and stop training early. In `folder`,
        training leaves checkpoints, and goes on from the last one there.
        """

    @property
    def needs_fit(self) -> bool:
        """Whether `fit` must come before `apply`."""
        return False

    @property
    def is_fitted(self) -> bool:
        """Whether `fit` was called, or a fitted editor loaded."""
        return self.origin is not None

    @abstractmethod
    def apply(self, vlm: VLM, requests: Sequence[Example]) -> VLM:
        """The VLM with all requests edited in together; the VLM itself where there is none."""

    @abstractmethod
    def apply_each(self, vlm: VLM, requests: Sequence[Example]) -> VLM:
        """B separate edits in one pass: row i of a batch of B is answered under edit i alone (see
        `VLM.select`).

        Equals `apply(vlm, [request])` row by row.
        """

    def state(self) -> dict[str, Tensor]:
        """The learnt tensors, by name."""
        return {}

    def notes(self) -> dict[str, Any]:
        """What `load_state` must know besides settings and tensors; plain JSON."""
        return {}

    def load_state(self, tensors: dict[str, Tensor], notes: Mapping[str, Any]) -> None:
        """The inverse of `state` and `notes`."""

    def require_fitted_on(self, vlm: VLM) -> None:
        """Raise EditorError where `fit` is missing, or was called with another VLM."""
        if self.origin is None:
            raise EditorError(
                f"{self.method.upper()} has not been fitted: call fit(vlm, cases), or load a "
                "fitted editor"
            )
        saved.require_same_vlm(vlm, self.origin, self.method)

    def save(self, path: Path) -> None:
        """Write a folder: `editor.json` (method, settings, what it was fitted on) and
        `editor.safetensors`. Raises EditorError where it cannot be written.
        """
        saved.write_editor(
            path,
            self.state(),
            method=self.method,
            config=self.config.model_dump(mode="json"),
            origin=self.origin,
            notes=self.notes(),
        )

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote. Raises EditorError where the folder is none of this method's."""
        described = saved.read_description(path)
        if described.method != cls.method:
            raise EditorError(f"{path} holds a {described.method!r} editor, not {cls.method!r}")
        tensors = saved.read_tensors(path, described)
        try:
            editor = cls(cls.config_class(**described.config))  # pyright: ignore[reportArgumentType]
            editor.origin = described.origin
            editor.load_state(tensors, described.notes)
        except (ValidationError, KeyError, TypeError) as error:
            raise saved.other_version(path, error) from error
        return editor

    def push_to_hub(self, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
        """Save to a model repository of the Hugging Face hub, with a model card; the address of the
        commit. Raises EditorError.
        """
        with TemporaryDirectory() as folder:
            self.save(Path(folder))
            return saved.push(Path(folder), repo_id, private=private, token=token)

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, revision: str | None = None, token: str | None = None
    ) -> Self:
        """Load from a folder, or from a repository of the hub. Raises EditorError."""
        return cls.load(saved.pull(name, revision=revision, token=token))


class DeltaEditor(Editor[Config]):
    """An editor whose edit of a request is a low-rank delta at each site, whatever else is edited
    with it.
    """

    @abstractmethod
    def deltas(self, vlm: VLM, requests: Sequence[Example]) -> Mapping[str, LowRank]:
        """Separate edits, by site: u [batch, rank, out], v [batch, rank, in]."""

    def apply(self, vlm: VLM, requests: Sequence[Example]) -> VLM:
        return vlm.with_deltas(together(self.deltas(vlm, requests))) if requests else vlm

    def apply_each(self, vlm: VLM, requests: Sequence[Example]) -> VLM:
        return vlm.with_deltas(self.deltas(vlm, requests)) if requests else vlm
