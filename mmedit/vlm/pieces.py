"""Independent pieces of work, on the cores that torch leaves free.

A small network keeps one thread of torch busy and no more, so a second core is of use only to a
second piece: the next group of images.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Piece = TypeVar("Piece")
Result = TypeVar("Result")

MOST = 4
"""Maximum number of pieces that run at once: each needs memory of its own."""


def use_one_thread() -> None:
    """Let torch compute with one thread, and `run_all` several pieces at once on the other cores.

    Right for a small network on a CPU: threads that share its operations wait for each other after
    each one, and as soon as another process is busy they wait long (benchmarks/threads.md). Changes
    nothing where the user has set OMP_NUM_THREADS, or with a GPU.
    """
    if "OMP_NUM_THREADS" not in os.environ and not torch.cuda.is_available():
        torch.set_num_threads(1)


def pieces_at_once() -> int:
    """Return how many pieces `run_all` runs at once: 1, unless torch was limited to one of several
    cores, and not by OMP_NUM_THREADS, which asks for one core in all.
    """
    shared = torch.get_num_threads() > 1 or torch.cuda.is_available()
    if shared or "OMP_NUM_THREADS" in os.environ:
        return 1
    return min(MOST, os.cpu_count() or 1)


def run_all(run: Callable[[Piece], Result], pieces: Sequence[Piece]) -> list[Result]:
    """Return what `run` gives for every piece, in order.

    An error is that of the first piece that fails. After it, or after Ctrl+C, no piece begins.
    """
    number = min(pieces_at_once(), len(pieces))
    if number <= 1:
        return [run(piece) for piece in pieces]
    with_gradients = torch.is_grad_enabled()  # each thread has a setting of its own

    def alike(piece: Piece) -> Result:
        with torch.set_grad_enabled(with_gradients):
            return run(piece)

    pool = ThreadPoolExecutor(number)
    try:
        return list(pool.map(alike, pieces))
    finally:
        pool.shutdown(cancel_futures=True)
