"""In what order edits are made and tested: each by itself, some together, or one after another.

A mode is a list of jobs. A job tells the keys of the records that it makes, so that finished ones
are skipped and the others are shared out among processes; it computes when it is run.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from mmedit.errors import ConfigError


class _Mode(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Independent(_Mode):
    """Every edit from the unedited VLM."""

    kind: Literal["independent"] = "independent"


class Batch(_Mode):
    """`k` edits at once, and all of them tested on the VLM that holds them."""

    kind: Literal["batch"] = "batch"
    k: int = Field(default=10, ge=1)


class Sequential(_Mode):
    """One edit after another. At the checkpoints all edits so far are tested again."""

    kind: Literal["sequential"] = "sequential"
    checkpoints: tuple[int, ...] = ()
    """Numbers of edits; none: 1, 10, 50, 100, 200, 500, 1000, 2000, 5000, ... The last edit is
    always one.
    """
    gaps: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Edit t is tested again after t + gap edits (VLKEB, Huang et al. 2024)."""
    orders: int = Field(default=1, ge=1)
    """The first is the cases' own, others are drawn by the seed."""
    ability_every: int = Field(default=10, ge=0)
    """After so many edits what the VLM can do beside them is tested; 0: never."""
    ability_cases: int = Field(default=32, ge=1)
    """Of so many cases, evenly spread, the locality probes are that test."""
    snapshot_every: int = Field(default=50, ge=1)
    """After so many edits the deltas are written, for a run that is stopped to go on from."""

    def stops(self, edits: int) -> set[int]:
        """The checkpoints of a sequence of so many edits."""
        wanted = self.checkpoints or _usual_checkpoints(edits)
        return {stop for stop in wanted if 1 <= stop < edits} | {edits}


Mode = Independent | Batch | Sequential
MODES: dict[str, type[Independent] | type[Batch] | type[Sequential]] = {
    "independent": Independent,
    "batch": Batch,
    "sequential": Sequential,
}
READ_MODE: TypeAdapter[Mode] = TypeAdapter(Annotated[Mode, Field(discriminator="kind")])


def _usual_checkpoints(edits: int) -> list[int]:
    return [1, 10, 50, *(step * 10**p for p in range(2, len(str(edits))) for step in (1, 2, 5))]


def require_sound(mode: Mode, edits: int) -> None:
    """Raise ConfigError where a mode asks for more edits than there are."""
    if isinstance(mode, Sequential):
        # One that comes too late among others is left out: a table may be run in small.
        for name, wanted in (("checkpoints", mode.checkpoints), ("gaps", mode.gaps)):
            if wanted and min(wanted) >= edits + (name == "checkpoints"):
                raise ConfigError(
                    f"there are {edits} edits, and sequential.{name} wants {min(wanted)} at least; "
                    "choose fewer, or a larger --limit"
                )
    if isinstance(mode, Batch) and mode.k > edits:
        raise ConfigError(f"there are {edits} edits, and batch.k is {mode.k}; choose fewer")
