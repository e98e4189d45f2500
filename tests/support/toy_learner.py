"""A learner of a few parameters whose loss has noise of its own, and how to train it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmedit.cases import EditCase, Example
from mmedit.editors.fitting import Fitting
from mmedit.training.learner import Learner
from mmedit.training.loop import train
from mmedit.training.settings import TrainingConfig

CASES = [EditCase(id=f"case-{n}", request=Example(prompt="p", target="t")) for n in range(7)]
VALIDATION = CASES[:3]

OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.05),
    "amsgrad": lambda parameters: torch.optim.Adam(parameters, lr=0.05, amsgrad=True),
    "rmsprop": lambda parameters: torch.optim.RMSprop(
        parameters, lr=0.01, centered=True, momentum=0.5
    ),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05),
}


Meddle = Callable[[int, Sequence[EditCase], Tensor], Tensor]


class Toy(Learner):
    """Linear regression on the numbers of the cases. `meddle` is called with (step, cases, loss) of
    every training batch and gives the loss; `score` with (step, loss) when validating.
    """

    steps: Tensor
    mean: Tensor
    checks: Tensor

    def __init__(
        self,
        optimizer: str = "adam",
        *,
        noise: float = 0.3,
        width: int = 4,
        meddle: Meddle = lambda step, cases, loss: loss,
        score: Callable[[int, Tensor], Tensor] = lambda step, loss: -loss,
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randn(width, width, generator=generator))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("checks", torch.zeros(()))
        self.products: set[torch.dtype] = set()
        self._optimizer, self._noise = optimizer, noise
        self._meddle, self._score = meddle, score

    def optimizer(self) -> torch.optim.Optimizer:
        return OPTIMIZERS[self._optimizer](list(self.parameters()))

    def forward(self, cases: Sequence[EditCase]) -> tuple[Tensor, dict[str, Tensor]]:
        numbers = torch.tensor([float(case.id.split("-")[1]) for case in cases])
        x = (numbers[:, None] + torch.arange(len(self.bias))).sin()
        seen = x + self._noise * torch.randn_like(x) if self.training else x
        product = seen @ self.weight
        self.products.add(product.dtype)
        loss = (product + self.bias - 2 * x).square().mean() + self.checks * self.bias.sum() / 100
        if self.training:
            step = int(self.steps)
            self.steps += 1
            self.mean.lerp_(seen.mean(0), 0.1)
            loss = self._meddle(step, cases, loss)
        score = self._score(int(self.steps), loss.detach())
        return loss, {"score": score, "bias": self.bias.detach().norm()}

    def after_check(self, figures: Mapping[str, float]) -> None:
        self.checks += figures["score"] + 1


def settings(**changes: object) -> TrainingConfig:
    """12 steps, a checkpoint every second, everything reported."""
    given = {"steps": 12, "batch_size": 3, "check_every": 2, "report_every": 1}
    return TrainingConfig.model_validate(given | changes)


def train_toy(
    toy: Toy,
    folder: Path | None = None,
    *,
    seed: int = 0,
    validation: Sequence[EditCase] = (),
    identity: Mapping[str, Any] | None = None,
    **changes: object,
) -> int:
    fitting = Fitting(CASES, validation=validation, seed=seed, folder=folder)
    return train(toy, settings(**changes), fitting, identity=identity)


def log_lines(folder: Path) -> list[dict[str, float]]:
    """What training.jsonl says, without times."""
    lines = (folder / "training.jsonl").read_text().splitlines()
    read = [json.loads(line) for line in lines]
    assert all(math.isfinite(line.pop("s/step", 0.0)) for line in read)
    return read
