"""What an editor is: it takes a VLM and requests, and gives back an edited VLM. It never changes
the one it was given.
"""

from __future__ import annotations

import hashlib
import json
import platform
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from mmedit.adapters import Stage
from mmedit.cases import EditCase, Example
from mmedit.deltas import LowRank, together
from mmedit.editors import files
from mmedit.editors.files import Origin
from mmedit.errors import EditorError, SiteError
from mmedit.training import Learner, Report, TrainingConfig, silent, train
from mmedit.vlm import VLM


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
        report: Report = silent,
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
        files.require_same_vlm(vlm, self.origin, self.method)

    def save(self, path: Path) -> None:
        """Write a folder: `editor.json` (method, settings, what it was fitted on) and
        `editor.safetensors`. Raises EditorError where it cannot be written.
        """
        files.write_editor(
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
        described = files.read_description(path)
        if described.method != cls.method:
            raise EditorError(f"{path} holds a {described.method!r} editor, not {cls.method!r}")
        tensors = files.read_tensors(path, described)
        try:
            editor = cls(cls.config_class(**described.config))  # pyright: ignore[reportArgumentType]
            editor.origin = described.origin
            editor.load_state(tensors, described.notes)
        except (ValidationError, KeyError, TypeError) as error:
            raise files.other_version(path, error) from error
        return editor

    def push_to_hub(self, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
        """Save to a model repository of the Hugging Face hub, with a model card; the address of the
        commit. Raises EditorError.
        """
        with TemporaryDirectory() as folder:
            self.save(Path(folder))
            return files.push(Path(folder), repo_id, private=private, token=token)

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, revision: str | None = None, token: str | None = None
    ) -> Self:
        """Load from a folder, or from a repository of the hub. Raises EditorError."""
        return cls.load(files.pull(name, revision=revision, token=token))


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


class LearnedConfig(EditorConfig):
    """Settings of a method with an outer loop."""

    training: TrainingConfig = TrainingConfig()


Learned = TypeVar("Learned", bound=LearnedConfig)


class LearnedEditor(Editor[Learned]):
    """An editor that trains a network of its own: `facts` say how it is built, on a VLM or from a
    file; `learner` is its outer loss.
    """

    def __init__(self, config: Learned) -> None:
        super().__init__(config)
        self._facts: dict[str, Any] = {}
        self._network: nn.Module | None = None

    @abstractmethod
    def facts(self, vlm: VLM) -> dict[str, Any]:
        """What `build` must know of the VLM; plain JSON."""

    @abstractmethod
    def build(self, facts: Mapping[str, Any]) -> nn.Module:
        """The network, with fresh parameters."""

    @abstractmethod
    def learner(self, vlm: VLM, network: Any, cases: Sequence[EditCase]) -> Learner:
        """The outer loss over the network, which must be among its modules. Raises DataError where
        the cases cannot train it.
        """

    def initialise(self, vlm: VLM, network: Any) -> None:
        """Give a freshly built network what it starts training from."""

    def edited_sites(self, vlm: VLM) -> tuple[str, ...]:
        """The weights that its edits change, if they do; noted in saved editors."""
        return self.config.sites_of(vlm) if isinstance(self.config, SitesConfig) else ()

    @property
    def needs_fit(self) -> bool:
        return True

    def fit(
        self,
        vlm: VLM,
        cases: Sequence[EditCase],
        *,
        validation: Sequence[EditCase] = (),
        seed: int = 0,
        report: Report = silent,
        folder: Path | None = None,
    ) -> None:
        facts = self.facts(vlm)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = self.build(facts)
            self.initialise(vlm, network)
        network = network.to(vlm.device)
        learner = self.learner(vlm, network, [*cases, *validation])
        origin = origin_of(vlm, self.edited_sites(vlm), cases, seed)  # reads all weights
        train(
            learner,
            cases,
            self.config.training,
            seed=seed,
            validation=validation,
            device=vlm.device,
            report=report,
            folder=folder,
            identity={
                "method": self.method,
                "settings": self.config.model_dump(mode="json"),
                "vlm": origin.vlm._asdict(),
                "dataset": origin.dataset,
                "validation": dataset_hash(validation),
            },
        )
        self._facts, self._network = facts, network.requires_grad_(False).eval()
        self.origin = origin

    def network_on(self, vlm: VLM) -> Any:
        """The trained network, on the VLM's device. Raises EditorError where it is not trained, or
        was on another VLM.
        """
        self.require_fitted_on(vlm)
        assert self._network is not None
        return self._network.to(vlm.device)

    def state(self) -> dict[str, Tensor]:
        return dict(self._network.state_dict()) if self._network else {}

    def notes(self) -> dict[str, Any]:
        return {"facts": self._facts}

    def load_state(self, tensors: dict[str, Tensor], notes: Mapping[str, Any]) -> None:
        self._facts = dict(notes["facts"])
        network = self.build(self._facts)
        try:
            network.load_state_dict(tensors)
        except RuntimeError as error:
            raise EditorError(
                f"the tensors do not fit the {self.method} network of these settings: {error}"
            ) from error
        self._network = network.requires_grad_(False).eval()


def origin_of(vlm: VLM, sites: Sequence[str], cases: Sequence[EditCase], seed: int) -> Origin:
    """What is noted of a fit."""
    packages = ("mmedit", "torch", "transformers", "accelerate")
    return Origin(
        vlm=vlm.identity,
        sites=tuple(sites),
        dataset=dataset_hash(cases),
        cases=len(cases),
        seed=seed,
        versions={
            "python": platform.python_version(),
            **{name: version(name) for name in packages},
        },
    )


def dataset_hash(cases: Iterable[EditCase]) -> str:
    """A hash of everything that cases say, in their order; of images, their names (a file's last
    three parts), or their size where they were made in memory.
    """
    digest = hashlib.blake2b(digest_size=16)
    for case in cases:
        texts = [case.id]
        for probe, examples in case.probes.items():
            for example in examples:
                texts += [probe, example.prompt, example.target, _image_name(example)]
        digest.update(json.dumps(texts).encode() + b"\n")
    return digest.hexdigest()


def _image_name(example: Example) -> str:
    if isinstance(example.image, Path):
        return "/".join(example.image.parts[-3:])
    return "" if example.image is None else f"in memory, {example.image.size}"
