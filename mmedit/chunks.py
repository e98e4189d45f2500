"""Parts of a sequence, a number of items at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Yield the items in order, `size` at a time; the last chunk may be shorter.

    >>> list(chunks("abcde", 2)), list(chunks(range(3), 2))
    (['ab', 'cd', 'e'], [range(0, 2), range(2, 3)])
    """
    for start in range(0, len(items), size):
        yield items[start : start + size]
