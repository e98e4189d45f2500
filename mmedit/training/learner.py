"""The interface between the training loop and what it trains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from mmedit.cases import EditCase
from mmedit.progress import Progress

SCORE = "score"
"""Name of the figure that validation maximises."""


class Learner(nn.Module, ABC):
    """A module to train: its parameters and buffers are all that is learnt."""

    @abstractmethod
    def forward(self, cases: Sequence[EditCase]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the outer loss of a batch, a mean over its cases, and figures to show (0-d,
        without graph). In evaluation mode it changes no buffer, and the figures hold `SCORE`: the
        best checkpoint is the one with the highest.
        """

    @abstractmethod
    def optimizer(self) -> torch.optim.Optimizer:
        """Return a new optimiser over all parameters."""

    def after_step(self) -> None:
        """Adjust parameters after an optimiser step; called without gradient."""

    def after_check(self, figures: Mapping[str, float]) -> None:
        """Adjust buffers every `check_every` steps. The figures are those of the validation or,
        without validation cases, means over the training steps since the last call.
        """


class TrainingInput(Protocol):
    """Input of a training; `mmedit.editors.base.Fitting` has this form."""

    @property
    def cases(self) -> Sequence[EditCase]:
        """The training cases."""
        ...

    @property
    def validation(self) -> Sequence[EditCase]:
        """The validation cases; empty: no validation."""
        ...

    @property
    def seed(self) -> int:
        """The seed of batches and noise."""
        ...

    @property
    def progress(self) -> Progress:
        """Called with every report."""
        ...

    @property
    def folder(self) -> Path | None:
        """Folder for checkpoints and log; None: neither is written."""
        ...
