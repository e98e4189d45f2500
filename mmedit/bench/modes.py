"""Modes of a run: each edit by itself, several together, or one after another."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from mmedit.errors import ConfigError
from mmedit.settings import Settings


class Independent(Settings):
    """Every edit starts from the base model."""

    kind: Literal["independent"] = "independent"


class Batch(Settings):
    """`k` edits are made at once, and all of them are tested on the VLM that holds them."""

    kind: Literal["batch"] = "batch"
    k: int = Field(default=10, ge=1)
    """Number of edits that are made at once."""


class Sequential(Settings):
    """One edit is made after another. At checkpoints all edits so far are tested again."""

    kind: Literal["sequential"] = "sequential"
    checkpoints: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Numbers of edits. Empty for 1, 10, 50, 100, 200, 500, 1000, 2000, 5000, ... The last edit is
    always a checkpoint.
    """
    gaps: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Edit t is tested again after t + gap edits (VLKEB, Huang et al. 2024)."""
    orders: int = Field(default=1, ge=1, le=1000)
    """Number of orders. The first is the order of the cases, the others are drawn by the seed."""
    ability_every: int = Field(default=10, ge=0)
    """Number of edits between two ability tests; 0 turns them off."""
    ability_cases: int = Field(default=32, ge=1)
    """Number of cases whose locality probes make up the ability test."""
    snapshot_every: int = Field(default=50, ge=1)
    """Number of edits after which the deltas are saved, so that a stopped run resumes there."""

    def idle(self) -> dict[str, str]:
        return {} if self.ability_every else {"ability_cases": "with ability_every=0"}

    def stops(self, edits: int) -> set[int]:
        """Return the checkpoints of a sequence of this many edits."""
        chosen = self.checkpoints or _usual_checkpoints(edits)
        return {stop for stop in chosen if 1 <= stop < edits} | {edits}


Mode = Independent | Batch | Sequential
MODES: dict[str, type[Independent] | type[Batch] | type[Sequential]] = {
    "independent": Independent,
    "batch": Batch,
    "sequential": Sequential,
}
READ_MODE: TypeAdapter[Mode] = TypeAdapter(Annotated[Mode, Field(discriminator="kind")])


def _usual_checkpoints(edits: int) -> list[int]:
    return [1, 10, 50, *(step * 10**p for p in range(2, len(str(edits))) for step in (1, 2, 5))]


def left_out_tests(mode: Mode, edits: int) -> list[str]:
    """Return a sentence for each checkpoint or gap that a sequence of this many edits is too short
    for. A table may be run with few edits, so they are no error.
    """
    if not isinstance(mode, Sequential):
        return []
    return [
        f"sequential.{name}={value} needs at least {value + beyond} edits and there are {edits}: "
        "it is left out."
        for name, chosen, beyond in (("checkpoints", mode.checkpoints, 0), ("gaps", mode.gaps, 1))
        for value in chosen
        if value + beyond > edits
    ]


def require_sound(mode: Mode, edits: int) -> None:
    """Raise ConfigError if a mode needs more edits than there are."""
    if isinstance(mode, Sequential):
        # A number that is too large beside others is left out (`left_out_tests`).
        for name, chosen, beyond in (("checkpoints", mode.checkpoints, 0), ("gaps", mode.gaps, 1)):
            if chosen and (needed := min(chosen) + beyond) > edits:
                raise ConfigError(
                    f"sequential.{name}={min(chosen)} needs at least {needed} edits and there are "
                    f"{edits}; choose smaller {name} or a larger --limit"
                )
    if isinstance(mode, Batch) and mode.k > edits:
        raise ConfigError(
            f"batch.k={mode.k} needs at least {mode.k} edits and there are {edits}; choose a "
            "smaller batch.k or a larger --limit"
        )
