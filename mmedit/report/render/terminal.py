"""Tables and comparisons in a terminal, in blocks that fit its width."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import isnan

import pandas
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from mmedit.report.columns import COST, Column, N
from mmedit.report.comparison import PairedComparison
from mmedit.report.published import Comparison
from mmedit.report.render.cells import TIED, UNKNOWN, Cell, cells
from mmedit.report.render.footnotes import footnote
from mmedit.report.render.published import BESIDE, beside_note, beside_rows
from mmedit.report.run_tables import RunTable
from mmedit.report.scores import failures

WIDTH = 80
_GAP = 2
_PAIR = ("tok", "EM")

Shown = tuple[str, list[str]]
"""A heading and the cells under it, in rich's markup."""


def table_view(
    table: pandas.DataFrame, published: Comparison | None = None, *, width: int = WIDTH
) -> RenderableType:
    """Show a method table in `width` characters: the scores, then the costs, then published values.

    Token accuracy and exact match of a probe share a column. In a terminal wider than 80
    characters, intervals stand below the values if all scores with them fit beside each other.
    """
    labels = [str(label) for label in table.index]
    shown = cells(table)
    counts = set(table[N])
    head = "tok/EM, %" if _is_paired(shown) else ""
    scores, intervals = _scores(head, labels, shown, width)
    costs = [(name, list(map(_short, found))) for (group, name), found in shown.items()
             if group == COST]  # fmt: skip
    if len(counts) > 1:
        costs.append((N[1], list(map(_short, shown[N]))))
    n = f"n = {counts.pop()}. " if len(counts) == 1 else ""
    note = Text(f"{n}{footnote(table, intervals=intervals)}", style="dim")
    blocks = [*scores, Text(""), *_blocks("cost", labels, costs, width), Text(""), note]
    return Group(*blocks, *([_published_view(published)] if published else []))


def tables_view(tables: Sequence[RunTable], *, width: int = WIDTH) -> RenderableType:
    """Show the tables of runs in `width` characters; several have their titles above them."""
    parts: list[RenderableType] = []
    for one in tables:
        parts += [Text(f"\n{one.title}", style="bold")] if len(tables) > 1 else []
        parts.append(table_view(one.frame, one.published, width=width))
    return Group(*parts)


def _scores(
    head: str, labels: Sequence[str], shown: Mapping[Column, Sequence[Cell]], width: int
) -> tuple[list[RenderableType], bool]:
    """Make the blocks of the scores; the flag says whether they show intervals."""
    with_intervals = list(_blocks(head, labels, _columns(shown, _with_interval), width))
    if width > WIDTH and len(with_intervals) == 1:
        return with_intervals, True
    return list(_blocks(head, labels, _columns(shown, _short), width)), False


def _is_paired(shown: Mapping[Column, Sequence[Cell]]) -> bool:
    return all(name in _PAIR for group, name in shown if group not in (COST, N[0]))


def _columns(shown: Mapping[Column, Sequence[Cell]], write: Callable[..., str]) -> list[Shown]:
    if not _is_paired(shown):
        return [
            (f"{group} {name}", list(map(write, found)))
            for (group, name), found in shown.items()
            if group not in (COST, N[0])
        ]
    probes = dict.fromkeys(group for group, name in shown if name in _PAIR)
    return [(probe, list(map(write, *(shown[probe, name] for name in _PAIR)))) for probe in probes]


def _with_interval(*pair: Cell) -> str:
    """Write one cell, or two that share a column, with their intervals in a second line."""
    spreads = "/".join(cell.spread or "·" for cell in pair)
    return f"{_short(*pair)}\n[dim]{spreads if any(cell.spread for cell in pair) else ''}[/]"


def _short(*pair: Cell) -> str:
    """Write one cell, or two that share a column, without intervals."""
    return "/".join(map(_value, pair))


def _value(cell: Cell) -> str:
    value = cell.value.removesuffix(".0")
    return f"[bold cyan]{value}[/]" if cell.best else value + (TIED if cell.tied else "")


def _blocks(
    head: str, labels: Sequence[str], columns: Sequence[Shown], width: int
) -> Iterator[RenderableType]:
    """Put as many columns beside each other as fit; every block begins with the labels."""
    first = max(cell_len(text) for text in (head, *labels))
    rows: list[Shown] = []
    room = width - first
    for heading, texts in columns:
        needed = _GAP + max(_width(text) for text in (heading, *texts))
        if rows and needed > room:
            yield _block(head, labels, rows)
            rows, room = [], width - first
        rows.append((heading, texts))
        room -= needed
    if rows:
        yield _block(head, labels, rows)


def _width(markup: str) -> int:
    return max(line.cell_len for line in Text.from_markup(markup).split())


def _block(head: str, labels: Sequence[str], columns: Sequence[Shown]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, _GAP, 0, 0))
    table.add_column(head, style="bold", no_wrap=True)
    for heading, _ in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    for row, label in enumerate(labels):
        table.add_row(Text(label), *(texts[row] for _, texts in columns))
    return table


def _published_view(published: Comparison) -> RenderableType:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, heading in enumerate(BESIDE):
        is_class = heading == "published metric"
        justify = "left" if place < 3 else "right"
        table.add_column(heading, justify=justify, no_wrap=not is_class, overflow="fold")
    for measured, row in zip(published.rows, beside_rows(published), strict=True):
        editor, probe, _, *rest = (text.removeprefix("locality/") for text in row)
        table.add_row(*map(Text, (editor, probe, measured.measure.name, *rest)))
    return Group(Text(""), table, Text(beside_note(published), style="dim"))


def comparison_view(comparison: PairedComparison, *, show: int) -> RenderableType:
    """Show how two methods A and B differ, and at most `show` questions where they disagree."""
    heading = Text()
    for letter, method in (("A", comparison.first), ("B", comparison.second)):
        heading.append(f"{letter}: ", style="bold")
        heading.append(f"{method.label} ({method.origin})\n")
    only = [
        f"{n} in {letter} only" for letter, n in zip("AB", comparison.unpaired, strict=True) if n
    ]
    if comparison.asked_otherwise:
        only.append(
            f"{comparison.asked_otherwise} of those in both not asked the same, and left out of "
            "the columns where they differ"
        )
    heading.append(f"{', '.join([f'{comparison.pairs} edits in both', *only])}\n")
    for letter, method, failed in zip(
        "AB", (comparison.first, comparison.second), comparison.failed, strict=True
    ):
        if failed:
            heading.append(f"{letter}: {failures(failed, len(method.records))}\n")
    return Group(
        heading, _differences_table(comparison), Text(_COMPARED, style="dim"),
        *_disagreements(comparison, show),
    )  # fmt: skip


_COMPARED = (
    "B − A: mean paired difference and its 95 % interval (bootstrap over images and identical "
    "probes); p: exact McNemar, or if an image or a probe repeats or a score is not 0 or 1, sign "
    "flips of whole clusters of them; p Holm: corrected for the number of rows; A>B/B>A: edits on "
    "which one scores more."
)


def _differences_table(comparison: PairedComparison) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for place, name in enumerate(("", "", "A", "B", "B − A", "p", "p Holm", "A>B/B>A", "n")):
        table.add_column(name, justify="left" if place < 2 else "right", no_wrap=True)
    for row in comparison.differences:
        form, found = row.measure.format, row.difference
        differs = row.first_only or row.second_only
        known = f" [{found.low:+{form}}, {found.high:+{form}}]"
        interval = (f" {UNKNOWN}" if isnan(found.low) else known) if differs else ""
        table.add_row(
            row.heading,
            row.measure.name,
            f"{row.first:{form}}",
            f"{row.second:{form}}",
            escape(f"{found.mean:+{form}}{interval}".replace("-", "−")),
            _p(row.tested.p),
            _p(row.p_holm),
            f"{row.first_only}/{row.second_only}",
            str(found.n),
        )
    return table


def _p(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "<0.001"


def _disagreements(comparison: PairedComparison, show: int) -> Iterator[RenderableType]:
    found = comparison.disagreements
    if not found:
        yield Text("\nThere is no question that only one of the two answered exactly.")
        return
    shown = min(show, len(found))
    yield Text(f"\n{len(found)} questions that only one answered exactly; {shown} of them:")
    for one in found[:show]:
        table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
        table.add_row(Text(one.heading, style="bold"), Text(one.prompt))
        table.add_row("expected", Text(one.expected))
        for letter, said, right in (
            ("A", one.first, one.first_is_right),
            ("B", one.second, not one.first_is_right),
        ):
            table.add_row(letter, Text(said, style="green" if right else "red"))
        yield Group(Text(f"\n{one.case}", style="dim"), table)
