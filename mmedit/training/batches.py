"""The cases of each batch, and the seeds of training. Both depend on numbers alone, so training can
resume at any step.
"""

from __future__ import annotations

from functools import lru_cache

import torch


def batch_indices(number: int, size: int, cases: int, seed: int) -> list[int]:
    """Return the indices of the cases in the batch of that number.

    The batches go through all cases again and again, each time in a new random order; a batch may
    span the end of one pass and the start of the next.
    """
    places = range(number * size, (number + 1) * size)
    return [_permutation(place // cases, cases, seed)[place % cases] for place in places]


def used_indices(
    batches: int, size: int, cases: int, seed: int, *, process: int = 0, processes: int = 1
) -> list[int]:
    """Return the indices of all cases that a process has in the first batches, in ascending order.

    Each batch has `size` cases for every process.
    """
    used: set[int] = set()
    for number in range(batches):
        if len(used) == cases:
            break
        together = batch_indices(number, size * processes, cases, seed)
        used.update(together[process * size : (process + 1) * size])
    return sorted(used)


@lru_cache(maxsize=4)
def _permutation(epoch: int, cases: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(mix_seed(seed, epoch))
    return torch.randperm(cases, generator=generator).tolist()


def mix_seed(*numbers: int) -> int:
    """Return one seed made from several numbers."""
    mixed = 0
    for number in numbers:
        mixed = (mixed * 1_000_003 + number + 1) % 2**63
    return mixed
