"""Text that grows token by token, of which only what can no longer change is shown."""

from __future__ import annotations

from collections.abc import Sequence

BROKEN = "\ufffd"
"""Stands at the end of a text whose last character needs further tokens."""


def settled(text: str, stops: Sequence[str]) -> str:
    """Return the part of an unfinished answer that every continuation begins with.

    `text` is the answer so far, not stripped. Withheld are spaces at its end (an answer is
    stripped), a character that is not complete, and what may be the beginning of a stop text.

    >>> settled(" a red circle\\nQ", ["\\nQuestion:"])
    'a red circle'
    """
    for stop in stops:
        text = text.partition(stop)[0]
    end = len(text)
    for stop in stops:
        for length in range(min(len(stop) - 1, len(text)), 0, -1):
            if text.endswith(stop[:length]):
                end = min(end, len(text) - length)
                break
    return text[:end].rstrip(BROKEN).strip()


def grown(shown: str, text: str) -> str:
    """Return the longer of the text that was shown and the settled text that continues it.

    A text that does not begin with what was shown is not shown: nothing can be taken back.
    """
    return text if text.startswith(shown) else shown
