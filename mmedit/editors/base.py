"""What an editor is: it takes a VLM and requests, and gives back an edited VLM. It never changes
the one it was given.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmedit.adapters import Stage
from mmedit.cases import EditCase, Example
from mmedit.errors import EditorError, SiteError
from mmedit.vlm import VLM

Report = Callable[[int, int, str], None]
"""Called with (done, total, figures) while an editor is fitted."""


def silent(done: int, total: int, figures: str) -> None:
    """The report that says nothing."""


class EditorConfig(BaseModel):
    """Settings of one editing method; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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

    def fit(
        self,
        vlm: VLM,
        cases: Sequence[EditCase],
        *,
        validation: Sequence[EditCase] = (),
        seed: int = 0,
        report: Report = silent,
    ) -> None:
        """Learn from (MEND, KE, SERAC) or index (IKE) training cases; FT has nothing to do. Leaves
        the VLM as it is.
        """

    @property
    def needs_fit(self) -> bool:
        """Whether `fit` must come before `apply`."""
        return False

    @property
    def is_fitted(self) -> bool:
        """Whether `fit` was called, or a fitted editor loaded."""
        return False

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

    def load_state(self, tensors: dict[str, Tensor], notes: dict[str, object]) -> None:
        """The inverse of `state` and `notes`."""

    def notes(self) -> dict[str, object]:
        """What a saved editor must know besides tensors: the VLM it belongs to, its sites; plain
        JSON.
        """
        return {}

    def save(self, path: Path) -> None:
        """Write a folder: `editor.json` (method, settings, notes) and `editor.safetensors`."""
        path.mkdir(parents=True, exist_ok=True)
        save_file(
            {k: t.detach().cpu().contiguous() for k, t in self.state().items()},
            path / "editor.safetensors",
        )
        described = {
            "method": self.method,
            "config": self.config.model_dump(mode="json"),
            "notes": self.notes(),
        }
        (path / "editor.json").write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote. Raises EditorError where the folder is none of this method's."""
        described = read_description(path)
        if described["method"] != cls.method:
            raise EditorError(f"{path} holds a {described['method']!r} editor, not {cls.method!r}")
        editor = cls(cls.config_class(**described["config"]))  # pyright: ignore[reportArgumentType]
        try:
            tensors = load_file(path / "editor.safetensors")
        except (OSError, SafetensorError) as error:
            raise EditorError(f"{path}/editor.safetensors cannot be read: {error}") from error
        editor.load_state(tensors, described["notes"])
        return editor


def read_description(path: Path) -> dict:
    """The `editor.json` of a saved editor."""
    file = path / "editor.json"
    try:
        described = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EditorError(
            f"{path} has no editor.json; a folder written by `mmedit fit` was wanted"
        ) from None
    except json.JSONDecodeError as error:
        raise EditorError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(described, dict) or described.keys() != {"method", "config", "notes"}:
        raise EditorError(
            f"{file} must hold method, config and notes; it was not written by `mmedit fit`"
        )
    return described


def require_same_vlm(vlm: VLM, fingerprint: str, method: str) -> None:
    """A learnt editor works on the network it was fitted on, edited or not, and on no other."""
    if vlm.fingerprint != fingerprint:
        raise EditorError(
            f"this {method} editor was fitted on another VLM (weights {fingerprint[:12]}, here "
            f"{vlm.fingerprint[:12]}); fit it on this one: mmedit fit --editor {method} --vlm ..."
        )
