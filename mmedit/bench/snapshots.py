"""Snapshots of a sequence of edits on disk, so that a stopped run need not make its edits again.

Only deltas are saved. Editors that work in another way (IKE, SERAC) make their edits again, which
costs no training step.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError

from mmedit.delta_files import load_deltas, read_tensors, save_deltas
from mmedit.errors import DataError, RunError
from mmedit.processes import on_main
from mmedit.storage import replaced
from mmedit.vlm.edit import DeltaChange, all_kept, nameless
from mmedit.vlm.interface import VLM
from mmedit.vlm.network import NetworkVLM

STATE = "state"


class Snapshot(NamedTuple):
    """The VLM after some edits of a sequence, when all tests up to there are done."""

    order: int
    edits: int
    vlm: VLM


@dataclass(frozen=True)
class Snapshots:
    """The saved snapshots of one editor: the last one of every order."""

    folder: Path
    editor: str
    vlm: VLM
    """The base model."""

    def save(self, snapshot: Snapshot) -> None:
        """Save a snapshot, then delete the one before. Raises RunError if it cannot be written."""
        if not isinstance(snapshot.vlm, NetworkVLM):
            return
        earlier = self._files(snapshot.order)
        file = self.folder / f"{self._name}-{snapshot.order}-{snapshot.edits}.safetensors"
        try:
            with replaced(file) as partial:
                save_deltas(partial, snapshot.vlm.deltas, all_kept(snapshot.vlm.edits))
        except (OSError, SafetensorError) as error:
            raise RunError(
                f"cannot write {file}: {error}; the records written before are intact, so the same "
                "command resumes after them once there is room and permission"
            ) from error
        for old in earlier.values():
            if old != file:
                old.unlink(missing_ok=True)

    def restore(self, order: int) -> Snapshot | None:
        """Return the last snapshot that can be read, the same one in all processes."""
        edits = on_main(lambda: self._last_whole(order))
        if edits is None:
            return None
        file = self._files(order)[edits]
        change = DeltaChange.of_tensors(file, read_tensors(file, self.vlm.device))
        return Snapshot(order, edits, change.added_to(self.vlm, nameless(change)))

    def _last_whole(self, order: int) -> int | None:
        for edits, file in sorted(self._files(order).items(), reverse=True):
            try:
                load_deltas(file)
            except (OSError, SafetensorError, DataError):
                continue
            return edits
        return None

    def discard(self) -> None:
        """Delete all snapshots of this editor."""
        for pattern in (f"{self._name}-*", f".{self._name}-*"):  # a kill may leave a partial file
            for file in self.folder.glob(pattern):
                file.unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            shutil.rmtree(self.folder)

    @property
    def _name(self) -> str:
        return re.sub(r"\W+", "_", self.editor)

    def _files(self, order: int) -> dict[int, Path]:
        """Return the files of an order by number of edits."""
        found = self.folder.glob(f"{self._name}-{order}-*.safetensors")
        return {int(file.stem.rpartition("-")[2]): file for file in found}
