"""Tables of edits: questions with their answers before and after."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mmedit.vlm.edit import Seen

ROWS = 20
"""Requests in a table, unless all are to be shown."""


def answers_view(
    label: str, seen: Sequence[Seen], *, cut_off: Collection[str] = (), rows: int | None = ROWS
) -> RenderableType:
    """Return a table of answers before and after: the requests, then the unrelated questions.

    Answers in `cut_off` get a mark. Beyond `rows` requests, the others are only counted.
    """
    asked, unrelated = of_requests(seen), of_others(seen)
    shown = asked if rows is None else asked[:rows]
    table = Table(box=None, pad_edge=False)
    for heading in ("", "question", "before", f"after {plain(label)}", ""):
        table.add_column(Text(heading))
    for one in shown:
        _add_row(table, "edit", one, " (image)", cut_off)
    if len(asked) > len(shown):
        table.add_row(Text("..."), Text(f"and {len(asked) - len(shown):,} more"))
    for one in unrelated:
        _add_row(table, "unrelated", one, " (another image)", cut_off)
    if len(asked) < 2:
        return table
    return Group(table, Text(f"\n{summary(seen)}"))


def summary(seen: Sequence[Seen]) -> str:
    """Return how many requests are answered as asked, and how many other answers stayed."""
    asked, unrelated = of_requests(seen), of_others(seen)
    right = sum(map(is_right, asked))
    are = "is" if right == 1 else "are"
    text = f"{right:,} of {len(asked):,} requests {are} answered as asked"
    if not unrelated:
        return text
    same = sum(one.before == one.after for one in unrelated)
    return f"{text}; {same:,} of {len(unrelated):,} unrelated answers unchanged"


def of_requests(seen: Sequence[Seen]) -> list[Seen]:
    """Return the questions that an edit was made for."""
    return [one for one in seen if one.target]


def of_others(seen: Sequence[Seen]) -> list[Seen]:
    """Return the unrelated questions, each once."""
    return list(dict.fromkeys(one for one in seen if not one.target))


def is_right(seen: Seen) -> bool:
    """Compare as the score `exact` does: neither case nor marks around the answer count."""
    from mmedit.metrics.generation import exact

    return bool(exact(seen.after, [seen.target, *seen.answers]))


def verdict(seen: Seen) -> Text:
    """Return in words whether an answer is as it should be after the edit."""
    if not seen.target:
        is_same = seen.before == seen.after
        return Text("unchanged", "green") if is_same else Text("changed", "red")
    if is_right(seen):
        return Text("as expected", "green")
    return Text(f"expected: {plain(seen.target)}", "red")


def plain(text: str) -> str:
    """Return a text on one line, without signs that would steer a terminal.

    >>> plain("red\\x1b[2J\\ncircle")
    'red [2J circle'
    """
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _add_row(table: Table, sort: str, one: Seen, about: str, cut_off: Collection[str]) -> None:
    question = plain(one.prompt) + (about if one.has_image else "")
    answers = [plain(text) + (" …" if text in cut_off else "") for text in (one.before, one.after)]
    table.add_row(Text(sort), Text(question), *map(Text, answers), verdict(one))
