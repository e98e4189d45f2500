"""An editor takes a VLM and requests, and returns an edited VLM. The VLM it was given stays as it
is. An editor is a value too: fitting returns a new editor.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Generic, Self, TypeVar

from torch import Tensor

from mmedit.arguments import Doors, as_requests, as_separate_requests, check_arguments
from mmedit.cases import Example
from mmedit.deltas import LowRank, together
from mmedit.editors import saved
from mmedit.editors.config import (
    EditorConfig,
    SitesConfig,
    changed_settings,
    require_settings,
)
from mmedit.editors.fitting import Fitting, as_fitting
from mmedit.editors.saved import Origin
from mmedit.errors import DataError, EditError, EditorError, shortened
from mmedit.vlm.edit import Change, DeltaChange, Edit, require_name
from mmedit.vlm.interface import VLM, as_vlm

EDITS = {"vlm": as_vlm, "requests": as_requests}
DOORS: Doors = {
    "fit": {"vlm": as_vlm, "fitting": as_fitting},
    "apply": EDITS,
    "apply_each": {"vlm": as_vlm, "requests": as_separate_requests},
    "change": EDITS,
    "edit": EDITS,
    "deltas": EDITS,
    "require_fits": {"vlm": as_vlm},
    "require_fitted_on": {"vlm": as_vlm},
}
"""Checks of the arguments of an editor, by method."""


Config = TypeVar("Config", bound=EditorConfig)


class Editor(ABC, Generic[Config]):
    """One editing method with its settings and, after fitting, what it has learnt.

    Arguments are checked before they reach a method of a subclass (`DOORS`).
    """

    method: ClassVar[str]
    """Name of the method in `mmedit.methods.EDITORS`."""
    title: ClassVar[str] = ""
    """Its name in tables; by default the name of the method in capitals."""
    paper: ClassVar[str]
    """Short citation."""
    learns: ClassVar[bool] = False
    """Whether the method trains a network before it edits."""
    config_class: ClassVar[type[EditorConfig]]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        check_arguments(cls, DOORS)

    def __init__(
        self,
        config: Config,
        *,
        label: str = "",
        origin: Origin | None = None,
        learnt: Any = None,
    ) -> None:
        require_settings(config, self.config_class, self.method)
        self.config = config
        self.label = label or self.title or self.method.upper()
        """Name of its row in tables."""
        self.origin = origin
        """VLM and data that the editor was fitted on; None if it was not fitted."""
        self.learnt = learnt
        """Result of fitting, in a form of the method's own; None if it was not fitted."""

    def __repr__(self) -> str:
        parts = [f"{name}={value!r}" for name, value in changed_settings(self.config).items()]
        if self.origin is not None:
            parts.append(f"fitted on {self.origin.cases} cases (seed {self.origin.seed})")
        elif self.needs_fit:
            parts.append("not fitted")
        heading = f"{type(self).__name__} {self.label!r}"
        return f"<{heading}: {', '.join(parts)}>" if parts else f"<{heading}>"

    def fit(self, vlm: VLM, fitting: Fitting) -> Self:
        """Return an editor that has learnt from (MEND, KE, SERAC) or indexed (IKE) the training
        cases. FT has nothing to learn and returns itself. This editor and the VLM stay as they are.
        """
        return self

    @property
    def needs_fit(self) -> bool:
        """Whether `fit` must come before `apply`."""
        return self.learns

    @property
    def is_fitted(self) -> bool:
        """Whether this editor comes from `fit`, or was loaded as a fitted one."""
        return self.origin is not None

    def require_fits(self, vlm: VLM) -> None:
        """Raise an error if this editor cannot edit this VLM; called before anything is measured.

        Raises EditorError if it was fitted on another VLM, and SiteError if the VLM does not have
        the sites. An editor that is still to be fitted passes.
        """
        if self.origin is not None:
            saved.require_same_vlm(vlm, self.origin, self.method)
            self.require_learnt(vlm)
        elif isinstance(self.config, SitesConfig):
            self.config.sites_of(vlm)

    def require_learnt(self, vlm: VLM) -> None:
        """Raise EditorError unless what the editor learnt, which may come from anyone, fits this
        VLM. By default there is nothing to check but that it is the VLM of the fit.
        """

    def edited_sites(self, vlm: VLM) -> tuple[str, ...]:
        """Return the weights of this VLM that its edits change; empty if it edits no weight."""
        if self.origin is not None:
            return self.origin.sites
        return self.config.sites_of(vlm) if isinstance(self.config, SitesConfig) else ()

    def require_fitted_on(self, vlm: VLM) -> None:
        """Raise EditorError if the editor is not fitted, or was fitted on another VLM."""
        if self.origin is None:
            raise EditorError(
                f"{self.title or self.method.upper()} has not been fitted: use the editor that "
                "fit(vlm, Fitting(cases)) returns, or load a fitted one"
            )
        saved.require_same_vlm(vlm, self.origin, self.method)
        self.require_learnt(vlm)

    def change(self, vlm: VLM, requests: Sequence[Example]) -> Change:
        """Return what all requests together, at least one, add to the VLM.

        A method that does not implement it must implement `apply`, and its edits cannot be saved.
        """
        raise EditError(f"{self.label} does not say what its edits add: implement `change`")

    def edit(self, vlm: VLM, requests: Sequence[Example], *, name: str = "") -> Edit:
        """Return one edit of all requests together, at least one, made on this VLM.

        `vlm.with_edit(edit)` is the edited VLM. It is called `name`, or else like the method.
        Raises DataError without requests.
        """
        if not requests:
            raise DataError("no requests were given; an edit needs at least one")
        begun = time.perf_counter()
        change = self.change(vlm, requests)
        require_name(name or self.method)
        return Edit(
            name=name or self.method,
            method=self.method,
            label=self.label,
            requests=tuple(requests),
            change=change,
            config=self.config.model_dump(mode="json"),
            seconds=time.perf_counter() - begun,
            on=tuple(edit.name for edit in vlm.edits),
            vlm_name=vlm.name,
            source=vlm.base,
        )

    def apply(self, vlm: VLM, requests: Sequence[Example]) -> VLM:
        """Return the VLM with all requests edited in together; without requests, the VLM itself.

        The VLM keeps each of its edits apart, so that any can be taken out (`VLM.without`); a long
        sequence of edits of whole weights should drop them (`VLM.merged`).
        """
        return vlm.with_edit(self.edit(vlm, requests)) if requests else vlm

    @abstractmethod
    def apply_each(self, vlm: VLM, requests: Sequence[Example]) -> VLM:
        """Return a VLM with B separate edits: row i of a batch of B is answered under edit i alone
        (see `VLM.select`).

        Equals `apply(vlm, [request])` row by row.
        """

    def state(self) -> dict[str, Tensor]:
        """Return the learnt tensors by name."""
        return {}

    def notes(self) -> dict[str, Any]:
        """Return what `load_state` must know besides settings and tensors, as plain JSON."""
        return {}

    def load_state(
        self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any], origin: Origin | None
    ) -> Self:
        """Return this editor with the given `state` and `notes`, as fitted on `origin`.

        Raises EditorError if they do not fit the settings.
        """
        return self.with_learnt(None, origin)

    def with_learnt(self, learnt: Any, origin: Origin | None) -> Self:
        """Return this editor with the result of fitting."""
        return type(self)(self.config, label=self.label, origin=origin, learnt=learnt)

    def save(self, path: str | Path) -> None:
        """Write a folder: `editor.json` (method, settings, what it was fitted on) and
        `editor.safetensors`. Raises EditorError if it cannot be written.
        """
        saved.write_editor(
            saved.as_folder(path),
            self.state(),
            method=self.method,
            config=self.config.model_dump(mode="json"),
            origin=self.origin,
            notes=self.notes(),
        )

    @classmethod
    def load(cls, path: str | Path, *, label: str = "") -> Self:
        """Read what `save` wrote. Raises EditorError if the folder is damaged, or holds an editor
        of another method.
        """
        path = saved.as_folder(path)
        described = saved.read_description(path)
        if described.method != cls.method:
            raise EditorError(f"{path} holds a {described.method!r} editor, not {cls.method!r}")
        config = saved.read_config(path, described, cls.config_class)
        editor = cls(config, label=label)  # pyright: ignore[reportArgumentType]
        if editor.needs_fit and described.origin is None:
            raise EditorError(
                f"{path} holds a {cls.method} editor that was never fitted (its origin is null): "
                f"fit one: mmedit fit --editor {cls.method} --out {path}"
            )
        tensors = saved.read_tensors(path, described)
        try:
            return editor.load_state(tensors, described.notes, described.origin)
        except EditorError:
            raise
        except saved.UNREADABLE as error:
            raise saved.other_version(path, error) from error

    @classmethod
    def load_change(
        cls,
        kind: str,
        tensors: Mapping[str, Tensor],
        notes: Mapping[str, Any],
        *,
        requests: Sequence[Example],
        editor: Any,
    ) -> Change:
        """Return a change from what `Change.tensors`, `notes` and `editor` gave.

        A method whose edits wrap a VLM implements it; changes of weights need none. Raises
        EditorError.
        """
        raise EditorError(f"{cls.method} makes no edits of the kind {shortened(kind)}")

    def push_to_hub(self, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
        """Save to a model repository of the Hugging Face hub, with a model card, and return the
        address of the commit. Raises EditorError.
        """
        with TemporaryDirectory() as folder:
            self.save(Path(folder))
            return saved.push(Path(folder), repo_id, private=private, token=token)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        label: str = "",
        revision: str | None = None,
        token: str | None = None,
    ) -> Self:
        """Load from a folder, or from a repository of the hub. Raises EditorError."""
        return cls.load(saved.pull(name, revision=revision, token=token), label=label)


check_arguments(Editor, DOORS)


class DeltaEditor(Editor[Config]):
    """An editor that turns every request into a low-rank delta at each site, independently of the
    other requests.
    """

    @abstractmethod
    def deltas(self, vlm: VLM, requests: Sequence[Example]) -> Mapping[str, LowRank]:
        """Return the separate edits by site: u [batch, rank, out], v [batch, rank, in]."""

    def change(self, vlm: VLM, requests: Sequence[Example]) -> Change:
        return DeltaChange(together(self.deltas(vlm, requests)))

    def apply_each(self, vlm: VLM, requests: Sequence[Example]) -> VLM:
        return vlm.with_deltas(self.deltas(vlm, requests)) if requests else vlm
