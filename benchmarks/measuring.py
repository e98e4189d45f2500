"""Shared by the measuring programs: rounds in turn, the clock, and the lines above a table.

It knows nothing of mmedit, so that it measures any version of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from statistics import mean, median
from typing import Any, TypeVar

import torch
import transformers
from threads import processor

SUPPORT = str(Path(__file__).resolve().parent.parent / "tests" / "support")
"""Folder of the tests' helper modules."""
SHORT, MOST = 0.1, 10
"""Work of fewer seconds is repeated, at most so often."""

Name = TypeVar("Name", str, int)


@dataclass(frozen=True)
class Work:
    """Something to time. With a `setup`, `run` gets what that makes anew each time, untimed."""

    run: Callable[..., object]
    setup: Callable[[], Any] | None = None


@dataclass(frozen=True)
class Clock:
    """Processor time of one thread on a CPU, which other processes do not change; else wall
    time.
    """

    device: torch.device
    threads: int = 1

    @property
    def name(self) -> str:
        return "processor time" if self._own else "wall time"

    @property
    def _own(self) -> bool:
        return self.device.type == "cpu" and self.threads == 1

    def seconds(self, work: Work) -> float:
        made = [] if work.setup is None else [work.setup()]
        self._synchronize()
        read = time.process_time if self._own else time.perf_counter
        begun = read()
        work.run(*made)
        self._synchronize()
        return read() - begun

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def in_turn(works: Mapping[Name, Work], rounds: int, clock: Clock) -> dict[Name, list[float]]:
    """Return the seconds of each, run in turn, after one round that does not count. What is short
    is run several times in a round, and the mean is taken.
    """
    often = {name: min(MOST, ceil(SHORT / clock.seconds(work))) for name, work in works.items()}
    times: dict[Name, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(mean(clock.seconds(work) for _ in range(often[name])))
    return times


def ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Return the median of the ratios, round by round."""
    return median(a / b for a, b in zip(above, below, strict=True))


def header(program: str, arguments: Sequence[str], clock: Clock, **settings: object) -> str:
    """Return the command, the machine, and how it was measured."""
    command = " ".join(["python", f"benchmarks/{program}", *arguments])
    cuda = clock.device.type == "cuda"
    hardware = torch.cuda.get_device_name(clock.device) if cuda else processor()
    said = ", ".join(f"{name} {value}" for name, value in settings.items())
    return (
        f"`{command}`\n\n{hardware}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, {clock.threads} thread{'s' if clock.threads > 1 else ''}, "
        f"{clock.name}; {said}\n"
    )
