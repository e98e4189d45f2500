"""Editors that train a network of their own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mmedit.cases import EditCase, dataset_hash
from mmedit.editors.base import Editor, EditorConfig, SitesConfig
from mmedit.editors.saved import origin_of
from mmedit.errors import EditorError
from mmedit.progress import Progress, silent
from mmedit.training.loop import Learner, train
from mmedit.training.settings import TrainingConfig
from mmedit.vlm.interface import VLM


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
        progress: Progress = silent,
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
            progress=progress,
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
