"""Checkpoints of a training: whole or not there.

folder/checkpoints/step-000200/   tensors.safetensors (parameters, buffers, optimiser), state.json

A checkpoint is written beside its place, flushed to the disk and renamed, and renamed before it is
deleted, so that neither `kill -9` nor a full disk leaves half of one. The last one and the best one
are kept.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmedit.errors import TrainingError
from mmedit.storage import flush

TENSORS, STATE = "tensors.safetensors", "state.json"
NAME = re.compile(r"step-(\d+)")


@dataclass(frozen=True, eq=False, kw_only=True)
class Checkpoint:
    """Everything that training goes on from: after `step` steps."""

    step: int
    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any]
    """Plain JSON."""


class Checkpoints:
    """The checkpoints in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def steps(self) -> list[int]:
        """Of which steps there is a whole checkpoint, in order."""
        found = (NAME.fullmatch(path.name) for path in self.folder.glob("step-*"))
        return sorted(int(match[1]) for match in found if match)

    def save(self, checkpoint: Checkpoint, *, keep: int | None = None) -> None:
        """Write one, then delete all others but that of step `keep`.

        Raises TrainingError where it cannot be written; the earlier ones are then still there.
        """
        place = self._place(checkpoint.step)
        partial = place.with_name(f".{place.name}.partial")
        try:
            for left in self.folder.glob(".step-*"):  # by a kill
                shutil.rmtree(left, ignore_errors=True)
            partial.mkdir(parents=True)
            # safetensors refuses memory that two names share (tied weights)
            tensors = {name: t.detach().cpu().clone() for name, t in checkpoint.tensors.items()}
            save_file(tensors, partial / TENSORS)
            described = json.dumps({"step": checkpoint.step, **checkpoint.state}, indent=1)
            (partial / STATE).write_text(described + "\n", encoding="utf-8")
            for path in (partial / TENSORS, partial / STATE, partial):
                flush(path)
            self._delete(checkpoint.step)
            partial.rename(place)
            flush(self.folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise TrainingError(
                f"the checkpoint of step {checkpoint.step} cannot be written to {self.folder}: "
                f"{error}. Free space there, or choose another folder. {self.advice()}"
            ) from error
        for step in self.steps():
            if step not in (checkpoint.step, keep):
                self._delete(step)

    def _delete(self, step: int) -> None:
        place = self._place(step)
        hidden = place.with_name(f".{place.name}.deleted")
        with suppress(OSError):  # not there, or not to be deleted
            place.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)

    def load(self, step: int) -> Checkpoint:
        """Raises TrainingError where it is damaged."""
        place = self._place(step)
        try:
            state = json.loads((place / STATE).read_text(encoding="utf-8"))
            tensors = load_file(place / TENSORS)
            return Checkpoint(step=int(state.pop("step")), tensors=tensors, state=state)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise TrainingError(
                f"the checkpoint {place} is damaged: {error}. Delete that folder to go on from an "
                "earlier one, or from the beginning."
            ) from error

    def advice(self) -> str:
        """What is left, and how to go on from there."""
        steps = self.steps()
        if not steps:
            return "No checkpoint has been written yet."
        return (
            f"The checkpoint of step {steps[-1]} is kept in {self.folder}; the same command with "
            "--resume goes on from there."
        )

    def _place(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}"


def checkpoints_in(folder: Path) -> Checkpoints:
    """Those that a training in this folder leaves."""
    return Checkpoints(folder / "checkpoints")


def steps_done(folder: Path) -> int:
    """Of the training in a folder, up to its last checkpoint; 0 where there is none."""
    return max(checkpoints_in(folder).steps(), default=0)


def seconds_spent(folder: Path) -> float:
    """By the training in a folder, up to its last checkpoint."""
    done = steps_done(folder)
    return checkpoints_in(folder).load(done).state["seconds"] if done else 0.0


def discard(folder: Path) -> None:
    """Delete the checkpoints of a training that has come to its end."""
    shutil.rmtree(checkpoints_in(folder).folder, ignore_errors=True)


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as `prefix.name`."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `prefixed`; other tensors are left out."""
    start = f"{prefix}."
    return {k.removeprefix(start): t for k, t in tensors.items() if k.startswith(start)}


def flat_state(state: Mapping[int, Mapping[str, Any]]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimiser's state as named tensors, and what is no tensor."""
    named = {f"optimizer.{i}.{k}": v for i, values in state.items() for k, v in values.items()}
    tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
    return tensors, {name: value for name, value in named.items() if name not in tensors}


def nested_state(
    tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]
) -> dict[int, dict[str, Any]]:
    """The inverse of `flat_state`."""
    state: dict[int, dict[str, Any]] = {}
    for name, value in {**under("optimizer", tensors), **under("optimizer", scalars)}.items():
        number, key = name.split(".", 1)
        state.setdefault(int(number), {})[key] = value
    return state


def dotted(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested mappings, by the path to each."""
    leaves: dict[str, Any] = {}
    for name, value in nested.items():
        path = f"{prefix}{name}"
        leaves |= dotted(value, f"{path}.") if isinstance(value, Mapping) else {path: value}
    return leaves
