"""Checkpoints of a training.

folder/checkpoints/step-000200/   tensors.safetensors (parameters, buffers, optimiser), state.json

A checkpoint is written under another name, flushed to the disk and then renamed; before it is
deleted it is renamed too. So neither `kill -9` nor a full disk leaves half a checkpoint. The last
and the best checkpoint are kept.
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
    """Everything that training needs to resume after `step` steps."""

    step: int
    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any]
    """Everything that is not a tensor, as plain JSON."""


class Checkpoints:
    """The checkpoints in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, in ascending order."""
        found = (NAME.fullmatch(path.name) for path in self.folder.glob("step-*"))
        return sorted(int(match[1]) for match in found if match)

    def save(self, checkpoint: Checkpoint, *, keep: int | None = None) -> None:
        """Write a checkpoint, then delete all others except that of step `keep`.

        Raises TrainingError if it cannot be written; the earlier checkpoints are then kept.
        """
        place = self._place(checkpoint.step)
        partial = place.with_name(f".{place.name}.partial")
        try:
            for left in self.folder.glob(".step-*"):  # left by a kill
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
        """Read the checkpoint of a step. Raises TrainingError if it is damaged."""
        place = self._place(step)
        try:
            state = json.loads((place / STATE).read_text(encoding="utf-8"))
            tensors = load_file(place / TENSORS)
            return Checkpoint(step=int(state.pop("step")), tensors=tensors, state=state)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise TrainingError(
                f"the checkpoint {place} is damaged: {error}. Delete that folder to resume from an "
                "earlier one, or from the beginning."
            ) from error

    def advice(self) -> str:
        """Say which checkpoint is left, and how to resume from it."""
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
    """Return the checkpoints of the training in a folder."""
    return Checkpoints(folder / "checkpoints")


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with their names as `prefix.name`."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors named `prefix.name` with their names as `name`; leave out all others."""
    start = f"{prefix}."
    return {k.removeprefix(start): t for k, t in tensors.items() if k.startswith(start)}


def flat_state(state: Mapping[int, Mapping[str, Any]]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return an optimiser's state as named tensors, and its other values by name."""
    named = {f"optimizer.{i}.{k}": v for i, values in state.items() for k, v in values.items()}
    tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
    return tensors, {name: value for name, value in named.items() if name not in tensors}


def nested_state(
    tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]
) -> dict[int, dict[str, Any]]:
    """Return an optimiser's state from what `flat_state` gave."""
    state: dict[int, dict[str, Any]] = {}
    for name, value in {**under("optimizer", tensors), **under("optimizer", scalars)}.items():
        number, key = name.split(".", 1)
        state.setdefault(int(number), {})[key] = value
    return state


def dotted(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested mappings, by the dotted path to each."""
    leaves: dict[str, Any] = {}
    for name, value in nested.items():
        path = f"{prefix}{name}"
        leaves |= dotted(value, f"{path}.") if isinstance(value, Mapping) else {path: value}
    return leaves
