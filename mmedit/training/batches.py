"""Which cases make which batch, and which seed belongs to what: functions of a number, so that
training can be taken up anywhere.
"""

from __future__ import annotations

from functools import lru_cache

import torch


def batch_indices(number: int, size: int, cases: int, seed: int) -> list[int]:
    """The cases of the batch of that number in endless passes over all of them, each in its own
    random order; batches are cut across the passes.
    """
    places = range(number * size, (number + 1) * size)
    return [_permutation(place // cases, cases, seed)[place % cases] for place in places]


@lru_cache(maxsize=4)
def _permutation(epoch: int, cases: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(mixed_seed(seed, epoch))
    return torch.randperm(cases, generator=generator).tolist()


def mixed_seed(*numbers: int) -> int:
    """One seed from several numbers."""
    mixed = 0
    for number in numbers:
        mixed = (mixed * 1_000_003 + number + 1) % 2**63
    return mixed
