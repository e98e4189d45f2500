"""Rows of a tensor to which more are added, as the entries of a memory: the rows that are there are
not copied each time.
"""

from __future__ import annotations

from threading import Lock

import torch
from torch import Tensor

GROWTH = 1.5
"""Room that a full buffer gets, as a multiple of the rows that it must hold."""


class GrowingRows:
    """A buffer whose first rows are the tensors that were made of it, each longer than the one
    before. A row that is written never changes, so those tensors are values like all others.

    >>> growing, first = GrowingRows(), torch.zeros(1, 2)
    >>> one, other = growing.added(first, torch.ones(1, 2)), growing.added(first, first)
    >>> one.tolist(), other.tolist()
    ([[0.0, 0.0], [1.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]])
    """

    def __init__(self) -> None:
        self._buffer: Tensor | None = None
        self._used = 0
        self._lock = Lock()

    def __reduce__(self) -> tuple[type[GrowingRows], tuple[()]]:
        """Copy as a buffer without rows: the copied tensors go on in one of their own."""
        return GrowingRows, ()

    def added(self, rows: Tensor, more: Tensor) -> Tensor:
        """Return these rows and more behind them, in one tensor.

        Costs a copy of the new rows, if the others are what this method returned last and there is
        room behind them; else a copy of all. The first time there is no room for more.
        """
        if rows.requires_grad or more.requires_grad:
            return torch.cat([rows, more])
        # a buffer made in inference mode could not be written to outside it
        with self._lock, torch.inference_mode(False), torch.no_grad():
            total, buffer = len(rows) + len(more), self._buffer
            if buffer is None or not self._holds_just(rows) or total > len(buffer):
                room = total if buffer is None else int(GROWTH * total)
                shape = (room, *rows.shape[1:])
                buffer = torch.empty(shape, dtype=rows.dtype, device=rows.device)
                buffer[: len(rows)] = rows
            buffer[len(rows) : total] = more
            self._buffer, self._used = buffer, total
            return buffer[:total]

    def _holds_just(self, rows: Tensor) -> bool:
        """Return whether these rows are all that is in the buffer."""
        return (
            self._buffer is not None
            and len(rows) == self._used
            and rows.data_ptr() == self._buffer.data_ptr()
        )
