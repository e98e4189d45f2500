"""The entries of a memory: rows of tensors, one for each edit that is stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmedit.deltas import require_rows
from mmedit.editors.growing import GrowingRows
from mmedit.errors import DataError

NOT_A_TOKEN = -1
"""Fills up shorter rows of token ids."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Entries:
    """Stored edits, oldest first. Row e of every tensor belongs to entry e."""

    tensors: Mapping[str, Tensor]
    visible: Bool[Tensor, "rows entries"] | None = None
    """The entries that each row of a batch is answered under; None: all entries for all rows."""
    _room: dict[str, GrowingRows] = field(default_factory=dict, repr=False)
    """Shared with the memories that this one becomes, which add to it."""

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values()))) if self.tensors else 0

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def with_all(self, stored: Mapping[str, Tensor]) -> Entries:
        """Return the memory with more entries, which every row sees."""
        visible = self.visible
        if visible is not None:
            new = len(next(iter(stored.values())))
            visible = torch.cat([visible, visible.new_ones(len(visible), new)], dim=1)
        return replace(self, tensors=self._added(stored), visible=visible)

    def with_each(self, stored: Mapping[str, Tensor]) -> Entries:
        """Return the memory with one more entry for each row. Raises DataError unless there are as
        many entries as rows.
        """
        first = next(iter(stored.values()))
        rows, before = len(first), self.visible
        if before is None:
            before = torch.ones(rows, len(self), dtype=torch.bool, device=first.device)
        _require_rows(len(before), rows)
        own = torch.eye(rows, dtype=torch.bool, device=first.device)
        visible = torch.cat([before, own], dim=1)
        return replace(self, tensors=self._added(stored), visible=visible)

    def replaced(self, entry: int, by: Mapping[str, Tensor]) -> Entries:
        """Return the memory with one entry in the place of another, for all rows."""
        tensors = {
            name: joined_rows(joined_rows(tensor[:entry], by[name]), tensor[entry + 1 :])
            for name, tensor in self.tensors.items()
        }
        return replace(self, tensors=tensors)

    def hidden_from_rows(
        self, entry: Int[Tensor, " rows"], where: Bool[Tensor, " rows"]
    ) -> Entries:
        """Return the memory in which row i no longer sees entry[i], where this is asked for."""
        visible = self.seen_by(len(entry)).clone()
        rows = where.nonzero().flatten()
        visible[rows, entry[rows]] = False
        return replace(self, visible=visible)

    def select(self, rows: Sequence[int]) -> Entries:
        """Return the memory in which row i sees the entries that row rows[i] saw."""
        if self.visible is None:
            return self
        require_rows(rows, len(self.visible))
        return replace(self, visible=self.visible[list(rows)])

    def seen_by(self, rows: int) -> Bool[Tensor, "rows entries"]:
        """Return which entries each row of a batch sees. Raises DataError if there are separate
        entries for another number of rows.
        """
        if self.visible is None:
            device = next((tensor.device for tensor in self.tensors.values()), None)
            return torch.ones(rows, len(self), dtype=torch.bool, device=device)
        _require_rows(len(self.visible), rows)
        return self.visible

    @property
    def parameters(self) -> int:
        """Number of values stored; of separate entries, what the row with most of them sees."""
        each = sum(tensor[0].numel() for tensor in self.tensors.values()) if len(self) else 0
        seen = len(self) if self.visible is None else int(self.visible.sum(1).max())
        return each * seen

    def _added(self, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors with more entries."""
        if not self.tensors:
            return dict(stored)
        tensors = {}
        for name, more in stored.items():
            rows = self.tensors[name]
            if rows.shape[1:] == more.shape[1:]:
                room = self._room.setdefault(name, GrowingRows())
                tensors[name] = room.added(rows, more)
            else:  # token ids of other lengths
                tensors[name] = joined_rows(rows, more)
        return tensors


def joined_rows(first: Tensor, second: Tensor) -> Tensor:
    """Return the rows of both; rows of token ids are filled up to one length."""
    if first.is_floating_point() or first.ndim < 2:
        return torch.cat([first, second.to(first)])
    most = max(first.shape[1], second.shape[1])
    both = first.new_full((len(first) + len(second), most), NOT_A_TOKEN)
    both[: len(first), : first.shape[1]] = first
    both[len(first) :, : second.shape[1]] = second
    return both


def token_rows(ids: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Return token ids as one tensor [rows, most], shorter rows filled up."""
    rows = [torch.tensor(row, dtype=torch.long) for row in ids]
    return pad_sequence(rows, batch_first=True, padding_value=NOT_A_TOKEN).to(device)


def _require_rows(entries: int, rows: int) -> None:
    if entries != rows:
        raise DataError(
            f"{entries} separate edits cannot answer {rows} rows: row i is answered under edit i. "
            "Use select(rows) to choose the edit of each row."
        )
