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


def padded_batches(lengths: Sequence[int], size: int, tokens: int) -> Iterator[range]:
    """Yield the places of rows in order, at most `size` together, and only as many as have at most
    so many tokens once all are padded to the longest. A row that has more goes alone.

    >>> list(padded_batches([3, 4, 9, 2, 2, 2], 2, 8))
    [range(0, 2), range(2, 3), range(3, 5), range(5, 6)]
    """
    begin, longest = 0, 0
    for place, length in enumerate(lengths):
        longest = max(longest, length)
        number = place - begin + 1
        if number > 1 and (number > size or number * longest > tokens):
            yield range(begin, place)
            begin, longest = place, length
    if begin < len(lengths):
        yield range(begin, len(lengths))
