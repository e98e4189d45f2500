"""The outer loop for editors that learn: batches of training cases, a loss, an optimiser.

Accelerate does devices, mixed precision, gradient accumulation, data parallelism and trackers.
Under `accelerate launch` with P processes a step takes P batches. What is random depends on (seed,
step, process) alone, so that a training continued from a checkpoint ends bit for bit where an
uninterrupted one does.
"""

from __future__ import annotations

import json
import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn

from mmedit.cases import EditCase
from mmedit.errors import DataError, TrainingError
from mmedit.progress import Progress, silent
from mmedit.training.accelerator import accelerator_for, cuda_devices
from mmedit.training.batches import batch_indices, mixed_seed
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
from mmedit.training.settings import TrainingConfig, lr_share

log = logging.getLogger(__name__)

LOG = "training.jsonl"
SCORE = "score"
"""The figure that validation maximises."""


class Learner(nn.Module, ABC):
    """What is trained: its parameters and buffers are all that it learns."""

    @abstractmethod
    def forward(self, cases: Sequence[EditCase]) -> tuple[Tensor, dict[str, Tensor]]:
        """The outer loss of a batch, a mean over its cases, and figures to show (0-d, without
        graph). In evaluation mode it changes no buffer; `SCORE` is then the figure that the best
        checkpoint has most of.
        """

    @abstractmethod
    def optimizer(self) -> torch.optim.Optimizer:
        """A new optimiser over all parameters."""

    def after_step(self) -> None:
        """Called after every optimiser step, without gradient."""

    def after_check(self, figures: Mapping[str, float]) -> None:
        """Called every `check_every` steps with the figures of the validation, or, without
        validation cases, with the means of those of the training steps since the last call.
        """


def train(
    learner: Learner,
    cases: Sequence[EditCase],
    config: TrainingConfig,
    *,
    seed: int,
    validation: Sequence[EditCase] = (),
    device: torch.device | None = None,
    progress: Progress = silent,
    folder: Path | None = None,
    identity: Mapping[str, Any] | None = None,
) -> int:
    """Run the outer loop and return the number of steps done; the learner is then as after the last
    step or, where there are validation cases, as it was when it scored best.

    Per step one forward and one backward of `learner` for each accumulated batch, and one host
    sync. With a `folder`, checkpoints go to `folder/checkpoints` and a line per report to
    `training.jsonl`; training goes on from the last checkpoint there, if that is of the same
    `identity`, settings and seed.

    Raises TrainingError with step and case ids when the loss or a gradient is NaN or infinite, or
    the loss has exploded (the parameters are then those of the step before), and where a checkpoint
    cannot be written or belongs to another training.
    """
    return _Run(
        learner=learner,
        cases=cases,
        config=config,
        seed=seed,
        validation=validation,
        accelerator=accelerator_for(config, device or torch.device("cpu"), folder),
        progress=progress,
        folder=folder,
        identity={"seed": seed, "training": config.model_dump(mode="json"), **(identity or {})},
    ).go()


@dataclass(eq=False, kw_only=True)
class _Run:
    """One training under way."""

    learner: Learner
    cases: Sequence[EditCase]
    config: TrainingConfig
    seed: int
    validation: Sequence[EditCase]
    accelerator: Accelerator
    progress: Progress
    folder: Path | None
    identity: dict[str, Any]
    best_step: int | None = None
    best_score: float = -math.inf
    best: dict[str, Tensor] = field(default_factory=dict)
    without_better: int = 0
    earlier_seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    summed: int = 0

    def go(self) -> int:
        processes = self.accelerator.num_processes
        if not self.cases:
            raise DataError("training needs cases; none were given")
        if 0 < len(self.validation) < processes:
            raise DataError(
                f"{len(self.validation)} validation cases cannot be shared by {processes} "
                "processes; give at least one each"
            )
        self.identity["processes"] = processes
        self.model, self.optimizer = self.accelerator.prepare(
            self.learner, self.learner.optimizer()
        )
        self.base_lrs = [group["lr"] for group in self.optimizer.param_groups]
        if self.config.trackers:
            self.accelerator.init_trackers("mmedit", config={"seed": self.seed})
        with torch.random.fork_rng(devices=cuda_devices()):
            done = self._steps(self._resumed())
        if self.best:
            self.learner.load_state_dict(self.best)
        if self.config.trackers:
            self.accelerator.end_training()
        return done

    def _steps(self, start: int) -> int:
        self.learner.train()
        self.started = begun = time.perf_counter()
        steps_then = checked = start
        for step in range(start, self.config.steps):
            if self._stopped_early():
                return step
            share = self._share_done(step)
            if share >= 1:  # time is up
                if checked < step:
                    self._check(step)
                return step
            for group, lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
                group["lr"] = lr * lr_share(step, share, self.config)
            figures = self._step(step)
            check = (step + 1) % self.config.check_every == 0 or step + 1 == self.config.steps
            if step % self.config.report_every == 0 or check:
                now = time.perf_counter()
                seconds = (now - begun) / (step + 1 - steps_then)
                self._tell(step, {**self._floats(figures), "s/step": seconds})
                begun, steps_then = now, step + 1
            if check:
                self._check(step + 1)
                begun, steps_then, checked = time.perf_counter(), step + 1, step + 1
        return self.config.steps

    def _step(self, step: int) -> dict[str, Tensor]:
        """One optimiser step; the figures of its last batch."""
        parts = self.config.accumulate
        total, figures = torch.zeros(()), {}
        ids: list[str] = []
        for part in range(parts):
            torch.manual_seed(mixed_seed(self.seed, step, part, self.accelerator.process_index))
            batch = self._batch(step * parts + part)
            ids += [case.id for case in batch]
            with self.accelerator.accumulate(self.model):
                loss, figures = self.model(batch)
                self.accelerator.backward(loss)
                total = total.to(loss.device) + loss.detach() / parts
                if self.accelerator.sync_gradients:
                    self._require_sound(step, total, ids)
                self.optimizer.step()
                self.optimizer.zero_grad()
        with torch.no_grad():
            self.learner.after_step()
        return {"loss": total, **figures}

    def _require_sound(self, step: int, total: Tensor, ids: list[str]) -> None:
        """Clip the gradient; raise where it or the loss is no use, before the optimiser sees it."""
        norm = self.accelerator.clip_grad_norm_(self.learner.parameters(), self.config.grad_clip)
        mean = self.accelerator.reduce(total, "mean")
        assert isinstance(norm, Tensor)
        assert isinstance(mean, Tensor)
        loss, size = torch.stack([mean, norm.to(mean)]).tolist()
        scaled = self.accelerator.scaler is not None  # fp16 skips such a step by itself
        if math.isfinite(loss) and loss <= self.config.max_loss and (scaled or math.isfinite(size)):
            return
        everyone = gather_object(ids)
        raise TrainingError(
            f"step {step}: loss {loss}, gradient norm {size} on cases {', '.join(everyone)}. Lower "
            f"the learning rate; the weights are those before that step. {self._advice()}"
        )

    def _batch(self, number: int) -> list[EditCase]:
        """This process's share of the batch of that number."""
        size, processes = self.config.batch_size, self.accelerator.num_processes
        indices = batch_indices(number, size * processes, len(self.cases), self.seed)
        mine = self.accelerator.process_index * size
        return [self.cases[index] for index in indices[mine : mine + size]]

    def _check(self, done: int) -> None:
        """Validate, and write a checkpoint."""
        if self.validation:
            figures = self._validate()
            self._tell(done - 1, figures, of="validation")
            if SCORE not in figures:
                raise TypeError(f"{type(self.learner).__name__} gives no figure {SCORE!r}")
            self.without_better += 1
            if figures[SCORE] > self.best_score:
                self.best_step, self.best_score = done, figures[SCORE]
                self.without_better = 0
        else:
            figures = {name: value / max(1, self.summed) for name, value in self.sums.items()}
        self.sums, self.summed = {}, 0
        with torch.no_grad():
            self.learner.after_check(figures)
        if done == self.best_step:  # as its checkpoint has it
            self.best = {k: t.detach().clone() for k, t in self.learner.state_dict().items()}
        self._save(done)

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """The mean of every figure over all validation cases."""
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        mine = self.validation[rank::processes]
        self.learner.eval()
        sums: dict[str, Tensor] = {}
        for start in range(0, len(mine), self.config.batch_size):
            batch = mine[start : start + self.config.batch_size]
            with self.accelerator.autocast():
                loss, figures = self.learner(batch)
            for name, value in {"loss": loss, **figures}.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value.detach() * len(batch)
        self.learner.train()
        values = torch.stack([sums[name].float() for name in sums])
        together = self.accelerator.reduce(values, "sum")
        assert isinstance(together, Tensor)
        return dict(zip(sums, (together / len(self.validation)).tolist(), strict=True))

    def _floats(self, figures: Mapping[str, Tensor]) -> dict[str, float]:
        """Means over the processes; one host sync for all."""
        values = torch.stack([value.detach().float() for value in figures.values()])
        mean = self.accelerator.reduce(values, "mean")
        assert isinstance(mean, Tensor)
        shown = dict(zip(figures, mean.tolist(), strict=True))
        for name, value in shown.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.summed += 1
        return shown

    def _tell(self, step: int, shown: Mapping[str, float], of: str = "") -> None:
        """To the trackers, the logger, the file and the progress bar."""
        named = {f"{of}/{name}" if of else name: value for name, value in shown.items()}
        self.accelerator.log(named, step=step)
        if not self.accelerator.is_main_process:
            return
        line = json.dumps({"step": step, **named})
        log.info(line)
        if self.folder is not None:
            with self._writing(), (self.folder / LOG).open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        figures = " ".join(f"{name} {value:.3f}" for name, value in shown.items())
        shown_as = f"{of}: {figures}" if of else figures
        self.progress("training", step + 1, self.config.steps, shown_as)

    def _share_done(self, step: int) -> float:
        """How far along training is, from 0 to 1."""
        share = step / self.config.steps
        if self.config.max_seconds is None:
            return share
        seconds = self._seconds()
        if self.accelerator.num_processes > 1:  # all must stop at the same step
            seconds = broadcast_object_list([seconds])[0]
        return max(share, seconds / self.config.max_seconds)

    def _seconds(self) -> float:
        return self.earlier_seconds + time.perf_counter() - self.started

    def _stopped_early(self) -> bool:
        return self.config.patience is not None and self.without_better >= self.config.patience

    @property
    def _checkpoints(self) -> Checkpoints | None:
        return None if self.folder is None else checkpoints_in(self.folder)

    def _advice(self) -> str:
        return self._checkpoints.advice() if self._checkpoints else ""

    def _save(self, done: int) -> None:
        if self._checkpoints is None:
            return
        fault: list[TrainingError | None] = [None]
        if self.accelerator.is_main_process:
            optimizer, scalars = flat_state(self.optimizer.state_dict()["state"])
            scaler = self.accelerator.scaler
            try:
                self._checkpoints.save(
                    Checkpoint(
                        step=done,
                        tensors={**prefixed("learner", self.learner.state_dict()), **optimizer},
                        state={
                            "best_step": self.best_step,
                            "best_score": self.best_score if self.best_step else None,
                            "without_better": self.without_better,
                            "seconds": self._seconds(),
                            "optimizer": scalars,
                            "scaler": scaler.state_dict() if scaler is not None else None,
                            "identity": self.identity,
                        },
                    ),
                    keep=self.best_step,
                )
            except TrainingError as error:
                fault = [error]
        if self.accelerator.num_processes > 1:
            broadcast_object_list(fault)
        if fault[0] is not None:
            raise fault[0]

    def _resumed(self) -> int:
        """Take up the last checkpoint, if there is one; the number of steps done."""
        if self._checkpoints is None or not (steps := self._checkpoints.steps()):
            if self.folder is not None and self.accelerator.is_main_process:
                with self._writing():
                    self.folder.mkdir(parents=True, exist_ok=True)
                    (self.folder / LOG).unlink(missing_ok=True)
            return 0
        checkpoint = self._checkpoints.load(steps[-1])
        try:
            self._take_up(checkpoint)
        except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise TrainingError(
                f"the checkpoint of step {checkpoint.step} in {self.folder} does not fit this "
                f"training: {error!r}. Choose another folder, or delete that one."
            ) from error
        if self.accelerator.is_main_process:
            with self._writing():
                self._cut_log(checkpoint.step)
        return checkpoint.step

    def _take_up(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.state
        self._require_same(state["identity"])
        self.learner.load_state_dict(under("learner", checkpoint.tensors))
        described = self.optimizer.state_dict()
        described["state"] = nested_state(checkpoint.tensors, state["optimizer"])
        self.optimizer.load_state_dict(described)
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.without_better, self.earlier_seconds = state["without_better"], state["seconds"]
        if (best := state["best_step"]) is not None:
            self.best_step, self.best_score = best, state["best_score"]
            assert self._checkpoints is not None
            self.best = under("learner", self._checkpoints.load(best).tensors)

    def _require_same(self, earlier: Mapping[str, Any]) -> None:
        now, earlier = dotted(json.loads(json.dumps(self.identity))), dotted(earlier)
        for name in sorted(now.keys() | earlier.keys()):
            if now.get(name) != earlier.get(name):
                raise TrainingError(
                    f"{self.folder} holds another training: its {name} is {earlier.get(name)!r}, "
                    f"here {now.get(name)!r}. Choose another folder, or delete that one."
                )

    def _cut_log(self, done: int) -> None:
        """Drop what was logged after the checkpoint: it is logged again."""
        assert self.folder is not None
        file = self.folder / LOG
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        kept = [line for line in lines if _logged_step(line) < done]
        partial = file.with_name(f".{LOG}.partial")
        partial.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        partial.replace(file)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TrainingError(
                f"training cannot write to {self.folder}: {error}. Free space there, or choose "
                f"another folder. {self._advice()}"
            ) from error


def _logged_step(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # torn by a kill
        return 2**63
