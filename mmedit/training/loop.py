"""The training loop of editors that learn: batches of training cases, a loss, an optimiser.

Accelerate handles devices, mixed precision, gradient accumulation, data parallelism and trackers.
With P processes of `accelerate launch` a step takes P batches. Random numbers depend on (seed,
step, process) alone, so a training resumed from a checkpoint ends with the same bits as an
uninterrupted one.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from mmedit.cases import EditCase
from mmedit.errors import DataError, DivergedError
from mmedit.training.accelerator import accelerator_for, cuda_devices
from mmedit.training.batches import batch_indices, mix_seed
from mmedit.training.learner import SCORE, Learner, TrainingInput
from mmedit.training.resume import Standing, TrainingFolder
from mmedit.training.settings import TrainingConfig, lr_share

log = logging.getLogger(__name__)


def train(
    learner: Learner,
    config: TrainingConfig,
    given: TrainingInput,
    *,
    identity: Mapping[str, Any] | None = None,
) -> int:
    """Train the learner in place, on the device of its parameters, and return the number of steps
    done. The learner ends in its state after the last step or, with validation cases, in the state
    that scored best.

    Each accumulated batch costs one forward and one backward of `learner`, each step one host sync.
    With a `folder`, checkpoints go to `folder/checkpoints` and a line per report to
    `training.jsonl`; training resumes from the last checkpoint there, if that has the same
    `identity`, settings and seed.

    Raises TrainingError with step and case ids if the loss or a gradient is NaN or infinite, or the
    loss has exploded (the parameters are then those of the step before), and if a checkpoint cannot
    be written or belongs to another training.
    """
    device = next(learner.parameters()).device
    own = {"seed": given.seed, "training": config.model_dump(mode="json")}
    return _Run(
        learner=learner,
        config=config,
        given=given,
        accelerator=accelerator_for(config, device, given.folder),
        identity={**own, **(identity or {})},
    ).go()


@dataclass(eq=False, kw_only=True)
class _Run:
    """A training in progress."""

    learner: Learner
    config: TrainingConfig
    given: TrainingInput
    accelerator: Accelerator
    identity: dict[str, Any]
    standing: Standing = field(default_factory=Standing)
    sums: dict[str, float] = field(default_factory=dict)
    summed: int = 0

    def go(self) -> int:
        """Train, and return the number of steps done."""
        self._require_cases()
        self.model, self.optimizer = self.accelerator.prepare(
            self.learner, self.learner.optimizer()
        )
        self.base_lrs = [group["lr"] for group in self.optimizer.param_groups]
        self.folder = self._training_folder()
        if self.config.trackers:
            self.accelerator.init_trackers("mmedit", config={"seed": self.given.seed})
        with torch.random.fork_rng(devices=cuda_devices()):
            if self.folder is not None:
                self.standing = self.folder.resume()
            self.earlier_seconds = self.standing.seconds
            done = self._steps(self.standing.step)
        if self.standing.best:
            self.learner.load_state_dict(self.standing.best)
        if self.config.trackers:
            self.accelerator.end_training()
        return done

    def _require_cases(self) -> None:
        validation, processes = len(self.given.validation), self.accelerator.num_processes
        if not self.given.cases:
            raise DataError("training needs cases; none were given")
        if 0 < validation < processes:
            raise DataError(
                f"{validation} validation cases cannot be shared by {processes} processes; give at "
                "least one each"
            )

    def _training_folder(self) -> TrainingFolder | None:
        if self.given.folder is None:
            return None
        return TrainingFolder(
            path=self.given.folder,
            identity={**self.identity, "processes": self.accelerator.num_processes},
            accelerator=self.accelerator,
            learner=self.learner,
            optimizer=self.optimizer,
        )

    def _steps(self, start: int) -> int:
        self.learner.train()
        self.started = begun = time.perf_counter()
        if self.accelerator.is_main_process:
            self.given.progress("training", start, self.config.steps, "")
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
                self._report(step, {**self._floats(figures), "s/step": seconds})
                begun, steps_then = now, step + 1
            if check:
                self._check(step + 1)
                begun, steps_then, checked = time.perf_counter(), step + 1, step + 1
        return self.config.steps

    def _step(self, step: int) -> dict[str, Tensor]:
        """Do one optimiser step and return the figures of its last batch."""
        parts = self.config.accumulate
        total, figures = torch.zeros(()), {}
        ids: list[str] = []
        for part in range(parts):
            torch.manual_seed(mix_seed(self.given.seed, step, part, self.accelerator.process_index))
            batch = self._batch(step * parts + part)
            ids += [case.id for case in batch]
            with self.accelerator.accumulate(self.model):
                loss, figures = self.model(batch)
                self.accelerator.backward(loss)
                total = total.to(loss.device) + loss.detach() / parts
                if self.accelerator.sync_gradients:
                    self._clip_gradient(step, total, ids)
                self.optimizer.step()
                self.optimizer.zero_grad()
        with torch.no_grad():
            self.learner.after_step()
        return {"loss": total, **figures}

    def _clip_gradient(self, step: int, total: Tensor, ids: list[str]) -> None:
        """Clip the gradient's norm. Raises DivergedError, before the optimiser sees the gradient,
        if it or the loss is not a usable number.
        """
        norm = self.accelerator.clip_grad_norm_(self.learner.parameters(), self.config.grad_clip)
        mean = self.accelerator.reduce(total, "mean")
        assert isinstance(norm, Tensor)
        assert isinstance(mean, Tensor)
        loss, size = torch.stack([mean, norm.to(mean)]).tolist()
        scaled = self.accelerator.scaler is not None  # fp16 skips such a step by itself
        if math.isfinite(loss) and loss <= self.config.max_loss and (scaled or math.isfinite(size)):
            return
        everyone = gather_object(ids)
        advice = self.folder.checkpoints.advice() if self.folder is not None else ""
        raise DivergedError(
            f"step {step}: loss {loss}, gradient norm {size} on cases {', '.join(everyone)}. Lower "
            f"the learning rate; the weights are those before that step. {advice}"
        )

    def _batch(self, number: int) -> list[EditCase]:
        """Return this process's share of the batch of that number."""
        cases, size, processes = self.given.cases, self.config.batch_size, self._processes
        indices = batch_indices(number, size * processes, len(cases), self.given.seed)
        mine = self.accelerator.process_index * size
        return [cases[index] for index in indices[mine : mine + size]]

    @property
    def _processes(self) -> int:
        return self.accelerator.num_processes

    def _check(self, done: int) -> None:
        """Validate, and write a checkpoint."""
        figures = self._validated(done) if self.given.validation else self._training_means()
        self.sums, self.summed = {}, 0
        with torch.no_grad():
            self.learner.after_check(figures)
        if done == self.standing.best_step:  # as its checkpoint has it
            best = {k: t.detach().clone() for k, t in self.learner.state_dict().items()}
            self.standing = replace(self.standing, best=best)
        if self.folder is not None:
            self.folder.save(replace(self.standing, step=done, seconds=self._seconds()))

    def _training_means(self) -> dict[str, float]:
        return {name: value / max(1, self.summed) for name, value in self.sums.items()}

    def _validated(self, done: int) -> dict[str, float]:
        """Return the figures of the validation, and note whether they are the best so far."""
        figures = self._validate()
        self._report(done - 1, figures, of="validation")
        if SCORE not in figures:
            raise TypeError(f"{type(self.learner).__name__} gives no figure {SCORE!r}")
        without = self.standing.without_better + 1
        self.standing = replace(self.standing, without_better=without)
        if figures[SCORE] > self.standing.best_score:
            self.standing = replace(
                self.standing, best_step=done, best_score=figures[SCORE], without_better=0
            )
        return figures

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """Return the mean of every figure over all validation cases."""
        mine = self.given.validation[self.accelerator.process_index :: self._processes]
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
        means = (together / len(self.given.validation)).tolist()
        return dict(zip(sums, means, strict=True))

    def _floats(self, figures: Mapping[str, Tensor]) -> dict[str, float]:
        """Return means over the processes; one host sync for all figures."""
        values = torch.stack([value.detach().float() for value in figures.values()])
        mean = self.accelerator.reduce(values, "mean")
        assert isinstance(mean, Tensor)
        shown = dict(zip(figures, mean.tolist(), strict=True))
        for name, value in shown.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.summed += 1
        return shown

    def _report(self, step: int, shown: Mapping[str, float], of: str = "") -> None:
        """Give figures to the trackers, the logger, the log file and the progress."""
        named = {f"{of}/{name}" if of else name: value for name, value in shown.items()}
        self.accelerator.log(named, step=step)
        if not self.accelerator.is_main_process:
            return
        line = json.dumps({"step": step, **named})
        log.info(line)
        if self.folder is not None:
            self.folder.append(line)
        figures = " ".join(f"{name} {value:.3f}" for name, value in shown.items())
        shown_as = f"{of}: {figures}" if of else figures
        self.given.progress("training", step + 1, self.config.steps, shown_as)

    def _share_done(self, step: int) -> float:
        """Return how far training has come, from 0 to 1."""
        share = step / self.config.steps
        if self.config.max_seconds is None:
            return share
        seconds = self._seconds()
        if self._processes > 1:  # all must stop at the same step
            seconds = broadcast_object_list([seconds])[0]
        return max(share, seconds / self.config.max_seconds)

    def _seconds(self) -> float:
        return self.earlier_seconds + time.perf_counter() - self.started

    def _stopped_early(self) -> bool:
        patience = self.config.patience
        return patience is not None and self.standing.without_better >= patience
