"""The folder of a training: its log, its checkpoints, and resuming from the last of them.

folder/training.jsonl             a line of figures per report
folder/checkpoints/step-000200/   see `mmedit.training.checkpoints`
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from mmedit.errors import TrainingError
from mmedit.storage import replaced
from mmedit.training.checkpoints import (
    Checkpoint,
    Checkpoints,
    checkpoints_in,
    dotted,
    flat_state,
    nested_state,
    prefixed,
    under,
)

LOG = "training.jsonl"


def steps_done(folder: Path) -> int:
    """Return the step of the last checkpoint in the folder of a training; 0 without one."""
    return max(checkpoints_in(folder).steps(), default=0)


def seconds_spent(folder: Path) -> float:
    """Return the seconds of training up to the last checkpoint in a folder; 0 without one."""
    done = steps_done(folder)
    return checkpoints_in(folder).load(done).state["seconds"] if done else 0.0


def discard(folder: Path) -> None:
    """Delete the checkpoints of a finished training."""
    shutil.rmtree(checkpoints_in(folder).folder, ignore_errors=True)


@dataclass(frozen=True, eq=False, kw_only=True)
class Standing:
    """State of a training, without the tensors that it trains."""

    step: int = 0
    """Number of optimiser steps done."""
    seconds: float = 0.0
    """Wall time spent so far, earlier runs included."""
    best_step: int | None = None
    """Step with the best validation score."""
    best_score: float = -math.inf
    best: Mapping[str, Tensor] = field(default_factory=dict)
    """State of the learner after `best_step`; empty without validation."""
    without_better: int = 0
    """Number of validations since the best one."""


@dataclass(frozen=True, eq=False, kw_only=True)
class TrainingFolder:
    """The folder of a training. One process of `accelerate launch` writes; all must call."""

    path: Path
    identity: Mapping[str, Any]
    """Facts that a training and a checkpoint must share for resuming; plain JSON."""
    accelerator: Accelerator
    learner: nn.Module
    optimizer: Any
    """The optimiser that accelerate prepared."""

    @property
    def checkpoints(self) -> Checkpoints:
        """The checkpoints of this training."""
        return checkpoints_in(self.path)

    def append(self, line: str) -> None:
        """Add a line to the log. Raises TrainingError."""
        with self._writing(), (self.path / LOG).open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def save(self, standing: Standing) -> None:
        """Write a checkpoint. Raises TrainingError, in all processes, if it cannot be written."""
        fault: list[TrainingError | None] = [None]
        if self.accelerator.is_main_process:
            try:
                self.checkpoints.save(self._checkpoint(standing), keep=standing.best_step)
            except TrainingError as error:
                fault = [error]
        if self.accelerator.num_processes > 1:
            broadcast_object_list(fault)
        if fault[0] is not None:
            raise fault[0]

    def _checkpoint(self, standing: Standing) -> Checkpoint:
        optimizer, scalars = flat_state(self.optimizer.state_dict()["state"])
        scaler = self.accelerator.scaler
        return Checkpoint(
            step=standing.step,
            tensors={**prefixed("learner", self.learner.state_dict()), **optimizer},
            state={
                "best_step": standing.best_step,
                "best_score": standing.best_score if standing.best_step else None,
                "without_better": standing.without_better,
                "seconds": standing.seconds,
                "optimizer": scalars,
                "scaler": scaler.state_dict() if scaler is not None else None,
                "identity": self.identity,
            },
        )

    def resume(self) -> Standing:
        """Load the last checkpoint into learner and optimiser and return where the training stands;
        without a checkpoint, start a new log.

        Raises TrainingError if the checkpoint is damaged or belongs to another training.
        """
        steps = self.checkpoints.steps()
        if not steps:
            if self.accelerator.is_main_process:
                with self._writing():
                    self.path.mkdir(parents=True, exist_ok=True)
                    (self.path / LOG).unlink(missing_ok=True)
            return Standing()
        checkpoint = self.checkpoints.load(steps[-1])
        try:
            standing = self._load(checkpoint)
        except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise TrainingError(
                f"the checkpoint of step {checkpoint.step} in {self.path} does not fit this "
                f"training: {error!r}. Choose another folder, or delete that one."
            ) from error
        if self.accelerator.is_main_process:
            with self._writing():
                self._cut_log(checkpoint.step)
        return standing

    def _load(self, checkpoint: Checkpoint) -> Standing:
        state = checkpoint.state
        self._require_same(state["identity"])
        self.learner.load_state_dict(under("learner", checkpoint.tensors))
        described = self.optimizer.state_dict()
        described["state"] = nested_state(checkpoint.tensors, state["optimizer"])
        self.optimizer.load_state_dict(described)
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        standing = Standing(
            step=checkpoint.step,
            seconds=state["seconds"],
            without_better=state["without_better"],
        )
        best = state["best_step"]
        if best is None:
            return standing
        learnt = under("learner", self.checkpoints.load(best).tensors)
        return replace(standing, best_step=best, best_score=state["best_score"], best=learnt)

    def _require_same(self, earlier: Mapping[str, Any]) -> None:
        now, earlier = dotted(json.loads(json.dumps(self.identity))), dotted(earlier)
        for name in sorted(now.keys() | earlier.keys()):
            if now.get(name) != earlier.get(name):
                raise TrainingError(
                    f"{self.path} holds another training: its {name} is {earlier.get(name)!r}, "
                    f"here {now.get(name)!r}. Choose another folder, or delete that one."
                )

    def _cut_log(self, done: int) -> None:
        """Delete the lines after the checkpoint: these steps are done, and logged, again."""
        file = self.path / LOG
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        kept = [line for line in lines if _step_of(line) < done]
        with replaced(file) as partial:
            partial.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TrainingError(
                f"training cannot write to {self.path}: {error}. Free space there, or choose "
                f"another folder. {self.checkpoints.advice()}"
            ) from error


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # cut off by a kill
        return 2**63
