"""Where a sequence of edits has come to, on disk, so that a stopped run need not make them again.

Only deltas are kept. What edits in another way (IKE, SERAC) makes its edits again, which costs no
training step.
"""

from __future__ import annotations

import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError

from mmedit.delta_files import load_deltas, save_deltas
from mmedit.errors import DataError, RunError
from mmedit.processes import on_main
from mmedit.vlm.interface import VLM
from mmedit.vlm.network import NetworkVLM

STATE = "state"


@dataclass(frozen=True)
class States:
    """The snapshots of one editor, the last one of every order."""

    folder: Path
    editor: str
    vlm: VLM
    """The unedited one."""

    def save(self, snapshot: Snapshot) -> None:
        """Write it, then forget the one before; RunError where it cannot be written."""
        if not isinstance(snapshot.vlm, NetworkVLM):
            return
        earlier = self._files(snapshot.order)
        file = self.folder / f"{self._name}-{snapshot.order}-{snapshot.edits}.safetensors"
        partial = file.with_suffix(".partial")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_deltas(partial, snapshot.vlm.deltas)
            partial.replace(file)
        except (OSError, SafetensorError) as error:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise RunError(
                f"cannot write {file}: {error}; the records written before are intact, so the same "
                "command resumes after them once there is room and permission"
            ) from error
        for old in earlier.values():
            if old != file:
                old.unlink(missing_ok=True)

    def restore(self, order: int) -> Snapshot | None:
        """The last one that is whole; the same one in all processes."""
        edits = on_main(lambda: self._last_whole(order))
        if edits is None:
            return None
        deltas = load_deltas(self._files(order)[edits], self.vlm.device)
        return Snapshot(order, edits, self.vlm.with_deltas(deltas))

    def _last_whole(self, order: int) -> int | None:
        for edits, file in sorted(self._files(order).items(), reverse=True):
            try:
                load_deltas(file)
            except (OSError, SafetensorError, DataError):
                continue
            return edits
        return None

    def discard(self) -> None:
        """Forget all of this editor's, as nothing is missing."""
        for file in self.folder.glob(f"{self._name}-*"):
            file.unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            shutil.rmtree(self.folder)

    @property
    def _name(self) -> str:
        return re.sub(r"\W+", "_", self.editor)

    def _files(self, order: int) -> dict[int, Path]:
        """By number of edits."""
        found = self.folder.glob(f"{self._name}-{order}-*.safetensors")
        return {int(file.stem.rpartition("-")[2]): file for file in found}


class Snapshot(NamedTuple):
    """Where a sequence has come to: all jobs before it are about fewer edits, or as many."""

    order: int
    edits: int
    vlm: VLM
