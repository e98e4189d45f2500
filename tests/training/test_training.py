from __future__ import annotations

import itertools
import json
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mmedit.cases import EditCase, Example
from mmedit.editors.fitting import Fitting
from mmedit.errors import DataError, MmeditError, TrainingError
from mmedit.progress import Progress, silent
from mmedit.training import loop
from mmedit.training.learner import Learner
from mmedit.training.loop import train
from mmedit.training.settings import TrainingConfig

CASES = [EditCase(id=f"case-{n}", request=Example(prompt="p", target="t")) for n in range(7)]


class Outer(Learner):
    """A loss with one parameter vector, which notes its batches, learning rates and gradients."""

    def __init__(self, loss: Callable[[Tensor, int], Tensor] | None = None) -> None:
        super().__init__()
        self.parameter = nn.Parameter(torch.ones(3))
        self.other = nn.Parameter(torch.ones(2))
        self.register_buffer("seen_batches", torch.zeros(()))
        self.used = self.optimizer()
        self.batches: list[list[str]] = []
        self.lrs: list[list[float]] = []
        self.seen: list[Tensor] = []
        self.checks: list[dict[str, float]] = []
        self._loss = loss or (lambda parameter, step: parameter.square().sum())

    def optimizer(self) -> torch.optim.Optimizer:
        self.used = torch.optim.SGD(
            [{"params": [self.parameter], "lr": 0.1}, {"params": [self.other], "lr": 0.002}]
        )
        return self.used

    def forward(self, cases: Sequence[EditCase]) -> tuple[Tensor, dict[str, Tensor]]:
        step = len(self.batches)
        if self.training:
            self.batches.append([case.id for case in cases])
            self.lrs.append([group["lr"] for group in self.used.param_groups])
            self.seen.append(self.parameter.detach().clone())
            self.seen_batches += 1
        loss = self._loss(self.parameter, step) + self.other.square().sum()
        norm = self.parameter.detach().norm()
        return loss, {"norm": norm, "score": -((norm - 1) ** 2)}

    def after_check(self, figures: Mapping[str, float]) -> None:
        self.checks.append(dict(figures))

    def train_on(
        self,
        config: TrainingConfig,
        *,
        seed: int = 0,
        cases: Sequence[EditCase] = CASES,
        validation: Sequence[EditCase] = (),
        progress: Progress = silent,
        folder: Path | None = None,
        identity: Mapping[str, str] | None = None,
    ) -> int:
        fitting = Fitting(cases, validation=validation, seed=seed, progress=progress, folder=folder)
        return train(self, config, fitting, identity=identity)


def settings(**changes: object) -> TrainingConfig:
    return TrainingConfig.model_validate({"steps": 10, "batch_size": 3} | changes)


def batches(*, seed: int, **changes: object) -> list[list[str]]:
    outer = Outer()
    outer.train_on(settings(**changes), seed=seed)
    return outer.batches


# Batches


def test_same_seed_gives_the_same_batches_and_another_seed_others():
    assert batches(seed=3) == batches(seed=3)
    assert batches(seed=3) != batches(seed=4)


def test_batches_do_not_depend_on_the_global_generator():
    torch.manual_seed(0)
    first = batches(seed=3)
    torch.manual_seed(1)
    assert batches(seed=3) == first


@pytest.mark.parametrize("batch_size", [1, 3, 7, 10])
def test_every_case_comes_once_per_pass(batch_size: int):
    passes = 6
    steps = math.ceil(passes * len(CASES) / batch_size)
    order = [i for batch in batches(seed=0, steps=steps, batch_size=batch_size) for i in batch]
    cut = [order[n * len(CASES) : (n + 1) * len(CASES)] for n in range(passes)]
    assert all(sorted(one) == [case.id for case in CASES] for one in cut)
    assert len({tuple(one) for one in cut}) > 1  # each in its own order


# Learning rates


def test_learning_rates_are_constant_as_published():
    outer = Outer()
    assert outer.train_on(settings()) == 10
    assert outer.lrs == [[0.1, 0.002]] * 10


def test_learning_rates_fall_along_a_cosine_to_their_final_share():
    outer = Outer()
    outer.train_on(settings(steps=8, final_lr_share=0.2))
    shares = [0.2 + 0.8 * (1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)]
    assert shares[0] == 1
    assert shares[4] == pytest.approx(0.6)
    assert [lrs[0] for lrs in outer.lrs] == pytest.approx([0.1 * share for share in shares])
    assert [lrs[1] for lrs in outer.lrs] == pytest.approx([0.002 * share for share in shares])


def test_learning_rates_warm_up_linearly():
    outer = Outer()
    outer.train_on(settings(warmup_steps=4))
    shares = [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1]
    assert [lrs[0] for lrs in outer.lrs] == pytest.approx([0.1 * share for share in shares])


def test_warm_up_multiplies_the_cosine():
    outer = Outer()
    outer.train_on(settings(steps=4, warmup_steps=2, final_lr_share=0.0))
    shares = [0.5, (1 + math.cos(math.pi / 4)) / 2, 0.5, (1 + math.cos(3 * math.pi / 4)) / 2]
    assert [lrs[0] for lrs in outer.lrs] == pytest.approx([0.1 * share for share in shares])


# Time


def pass_two_seconds_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.count(2, 2)
    monkeypatch.setattr(loop._Run, "_seconds", lambda self: float(next(seconds)))


def test_training_stops_when_its_time_is_up(monkeypatch: pytest.MonkeyPatch):
    pass_two_seconds_a_step(monkeypatch)
    outer = Outer()
    assert outer.train_on(settings(steps=1000, max_seconds=9.0)) == 4  # at 2, 4, 6 and 8 seconds
    assert len(outer.batches) == 4
    assert len(outer.checks) == 1  # what was trained is validated, and kept


def test_schedule_follows_the_clock_where_that_is_further_along(monkeypatch: pytest.MonkeyPatch):
    pass_two_seconds_a_step(monkeypatch)
    outer = Outer()
    outer.train_on(settings(steps=1000, max_seconds=9.0, final_lr_share=0.0))
    shares = [(1 + math.cos(math.pi * seconds / 9)) / 2 for seconds in (2, 4, 6, 8)]
    assert [lrs[0] for lrs in outer.lrs] == pytest.approx([0.1 * share for share in shares])


def test_time_that_is_not_used_up_changes_nothing():
    timed, untimed = Outer(), Outer()
    assert timed.train_on(settings(max_seconds=3600.0, final_lr_share=0.5)) == 10
    untimed.train_on(settings(final_lr_share=0.5))
    assert [lrs[0] for lrs in timed.lrs] == pytest.approx([lrs[0] for lrs in untimed.lrs])
    torch.testing.assert_close(timed.parameter, untimed.parameter)


# Steps


def test_parameters_descend():
    outer = Outer()
    outer.train_on(settings())
    norms = [seen.norm().item() for seen in outer.seen]
    assert norms == sorted(norms, reverse=True)
    torch.testing.assert_close(outer.parameter.detach(), torch.full((3,), 0.8**10))


def test_gradients_do_not_add_up_over_steps():
    outer = Outer()
    outer.train_on(settings(steps=2))
    torch.testing.assert_close(outer.seen[1], torch.full((3,), 0.8))
    torch.testing.assert_close(outer.parameter.detach(), torch.full((3,), 0.64))


def test_gradient_of_all_groups_together_is_clipped():
    outer = Outer()
    outer.train_on(settings(steps=1, grad_clip=0.5))
    moved = torch.cat([(1 - outer.parameter) / 0.1, (1 - outer.other) / 0.002])
    assert moved.norm().item() == pytest.approx(0.5, rel=1e-3)


def test_figures_are_reported_and_logged(caplog: pytest.LogCaptureFixture):
    reports: list[tuple[int, int, str]] = []
    with caplog.at_level(logging.INFO, logger="mmedit.training.loop"):
        Outer().train_on(settings(report_every=4), progress=lambda _, *told: reports.append(told))
    assert [done for done, _, _ in reports] == [0, 1, 5, 9, 10]
    assert {total for _, total, _ in reports} == {10}
    assert re.fullmatch(r"loss 5\.000 norm 1\.732 score -0\.536 s/step \d\.\d{3}", reports[1][2])
    lines = [json.loads(record.getMessage()) for record in caplog.records]
    assert [line["step"] for line in lines] == [0, 4, 8, 9]
    assert lines[0] == {
        "step": 0,
        "loss": 5.0,
        "norm": pytest.approx(3**0.5),
        "score": pytest.approx(-((3**0.5 - 1) ** 2)),
        "s/step": lines[0]["s/step"],
    }


# What goes wrong


def test_training_without_cases_is_refused():
    with pytest.raises(DataError, match="training needs cases"):
        Outer().train_on(settings(), cases=[])


BROKEN: dict[str, Callable[[Tensor, int], Tensor]] = {
    "loss nan": lambda p, step: p.sum() * (math.nan if step == 3 else 1),
    "loss inf": lambda p, step: p.sum() * (math.inf if step == 3 else 1),
    "gradient norm nan": lambda p, step: ((p - p.detach()) if step == 3 else p).abs().sqrt().sum(),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_loss_or_gradient_that_is_no_number_stops_training(broken: str):
    outer = Outer(BROKEN[broken])
    with pytest.raises(TrainingError, match="step 3: loss ") as raised:
        outer.train_on(settings())
    assert isinstance(raised.value, MmeditError)
    assert broken in str(raised.value)
    assert ", ".join(outer.batches[3]) in str(raised.value)
    assert len(outer.batches) == 4
    assert torch.equal(outer.parameter, outer.seen[3])  # as after the last good step
    assert outer.parameter.isfinite().all()
    assert outer.other.isfinite().all()


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"batch_size": 0}, {"final_lr_share": 1.5}, {"max_seconds": 0}]
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, object]):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        settings(**wrong)


def test_unknown_setting_is_refused():
    with pytest.raises(ValueError, match="batchsize"):
        settings(batchsize=3)
