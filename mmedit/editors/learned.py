"""Editors that train a network of their own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor, nn

from mmedit.cases import EditCase, dataset_hash
from mmedit.editors.base import Editor
from mmedit.editors.checks import at_most_parts, require_same_tensors
from mmedit.editors.config import EditorConfig, SitesConfig
from mmedit.editors.fitting import Fitting
from mmedit.editors.saved import Origin, origin_of
from mmedit.processes import number_of_processes, process_number
from mmedit.training.accelerator import autocast
from mmedit.training.batches import used_indices
from mmedit.training.loop import Learner, train
from mmedit.training.settings import TrainingConfig
from mmedit.vlm.interface import VLM
from mmedit.vlm.prepared import Asked


class LearnedConfig(EditorConfig):
    """Settings of a method that trains a network."""

    training: TrainingConfig = TrainingConfig()
    """Settings of the training loop."""


@dataclass(frozen=True, eq=False)
class TrainedNetwork:
    """Result of training: the network, and the facts that it was built from."""

    facts: Mapping[str, Any]
    module: nn.Module


Learned = TypeVar("Learned", bound=LearnedConfig)


class LearnedEditor(Editor[Learned]):
    """An editor that trains a network of its own.

    A subclass gives `facts` (what the network is built from), `build` (the network) and `learner`
    (the outer loss).
    """

    learns: ClassVar[bool] = True

    @abstractmethod
    def facts(self, vlm: VLM) -> dict[str, Any]:
        """Return what `build` must know about the VLM, as plain JSON."""

    @abstractmethod
    def build(self, facts: Mapping[str, Any]) -> nn.Module:
        """Return the network with fresh parameters."""

    @abstractmethod
    def learner(self, vlm: VLM, network: Any, cases: Sequence[EditCase]) -> Learner:
        """Return the outer loss. The network must be one of its modules. Raises DataError if the
        cases cannot train it.
        """

    def asked(self, vlm: VLM, cases: Sequence[EditCase]) -> Asked:
        """Return the examples that the outer loss asks again in every step; none by default. What
        the base model computes of them is then kept (`mmedit.vlm.prepared`).
        """
        return Asked()

    def initialise(self, vlm: VLM, network: Any) -> None:
        """Load pretrained parameters into a new network, if the method starts from some."""

    def fit(self, vlm: VLM, fitting: Fitting) -> Self:
        facts = self.facts(vlm)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(fitting.seed)
            network = self.build(facts)
            self.initialise(vlm, network)
        network = network.to(vlm.device)
        learner = self.learner(vlm, network, [*fitting.cases, *fitting.validation])
        sites = self.config.sites_of(vlm) if isinstance(self.config, SitesConfig) else ()
        origin = origin_of(vlm, sites, fitting.cases, fitting.seed)  # reads all weights
        identity = self._identity(origin, fitting)
        with ExitStack() as kept:
            with autocast(self.config.training, vlm.device):
                kept.enter_context(self._prepared(vlm, fitting))
            train(learner, self.config.training, fitting, identity=identity)
        return self.with_learnt(_frozen(facts, network), origin)

    def _prepared(self, vlm: VLM, fitting: Fitting) -> AbstractContextManager[None]:
        """Keep what the base model computes of the cases, while the context lasts."""
        asked = self.asked(vlm, self._used(fitting))
        if vlm.edits:  # its own logits are not those of the base model
            asked = replace(asked, base=())
        return vlm.frozen.prepared(asked, folder=fitting.folder, progress=fitting.progress)

    def _used(self, fitting: Fitting) -> list[EditCase]:
        """Return the cases that this process will use in the training, in their order."""
        training, cases = self.config.training, fitting.cases
        process, processes = process_number(), number_of_processes()
        used = used_indices(
            training.steps * training.accumulate,
            training.batch_size,
            len(cases),
            fitting.seed,
            process=process,
            processes=processes,
        )
        return [*(cases[index] for index in used), *fitting.validation[process::processes]]

    def _identity(self, origin: Origin, fitting: Fitting) -> dict[str, Any]:
        """Return what a checkpoint must agree with for training to resume from it."""
        return {
            "method": self.method,
            "settings": self.config.model_dump(mode="json"),
            "vlm": origin.vlm._asdict(),
            "dataset": origin.dataset,
            "validation": dataset_hash(fitting.validation),
        }

    def network_on(self, vlm: VLM) -> Any:
        """Return the trained network, on the VLM's device. Raises EditorError if the editor is not
        fitted, or was fitted on another VLM.
        """
        self.require_fitted_on(vlm)
        trained: TrainedNetwork = self.learnt
        there = next(trained.module.parameters()).device == vlm.device
        return trained.module if there else trained.module.to(vlm.device)  # `to` visits all parts

    def state(self) -> dict[str, Tensor]:
        trained: TrainedNetwork | None = self.learnt
        return dict(trained.module.state_dict()) if trained else {}

    def notes(self) -> dict[str, Any]:
        trained: TrainedNetwork | None = self.learnt
        return {"facts": dict(trained.facts) if trained else {}}

    def load_state(
        self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any], origin: Origin | None
    ) -> Self:
        facts = dict(notes["facts"])
        # Shapes alone: whatever the file says, nothing large is made.
        with torch.device("meta"), at_most_parts(len(tensors)):
            require_same_tensors(tensors, self.build(facts).state_dict(), self.method)
        network = self.build(facts)
        network.load_state_dict(tensors)
        return self.with_learnt(_frozen(facts, network), origin)


def _frozen(facts: Mapping[str, Any], network: nn.Module) -> TrainedNetwork:
    return TrainedNetwork(facts, network.requires_grad_(False).eval())
