"""How tables look in a terminal: in blocks that fit its width."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pandas
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from mmedit.report.columns import COST, Column, N
from mmedit.report.comparison import PairedComparison
from mmedit.report.published import Comparison
from mmedit.report.render.cells import TIED, Cell, cells
from mmedit.report.render.footnotes import footnote
from mmedit.report.render.published import BESIDE, beside_note, beside_rows

WIDTH = 80
_GAP = 2
_PAIR = ("tok", "EM")

Shown = tuple[str, list[str]]
"""A heading and the cells under it, in rich's markup."""


def table_view(
    table: pandas.DataFrame, published: Comparison | None = None, *, width: int = WIDTH
) -> RenderableType:
    """A method table in `width` characters: the splits, under them the costs, under them published
    values. Token accuracy and exact match of a split share a column. Intervals are left out.
    """
    labels = [str(label) for label in table.index]
    shown = cells(table)
    splits = _paired(shown) if _is_paired(shown) else _single(shown)
    costs = [(name, _column(cells_)) for (group, name), cells_ in shown.items() if group == COST]
    counts = set(table[N])
    if len(counts) > 1:
        costs.append((N[1], _column(shown[N])))
    head = "tok/EM, %" if _is_paired(shown) else ""
    n = f"n = {counts.pop()}. " if len(counts) == 1 else ""
    parts: list[RenderableType] = [*_blocks(head, labels, splits, width), Text("")]
    parts += [*_blocks("cost", labels, costs, width), Text("")]
    parts.append(Text(f"{n}{footnote(table, intervals=False)}", style="dim"))
    return Group(*parts, *([_published_view(published)] if published else []))


def _is_paired(shown: Mapping[Column, Sequence[Cell]]) -> bool:
    return all(name in _PAIR for group, name in shown if group not in (COST, N[0]))


def _paired(shown: Mapping[Column, Sequence[Cell]]) -> list[Shown]:
    splits = dict.fromkeys(group for group, name in shown if name in _PAIR)
    pairs = {split: [_column(shown[split, name]) for name in _PAIR] for split in splits}
    return [
        (split, [f"{tok}/{em}" for tok, em in zip(*both, strict=True)])
        for split, both in pairs.items()
    ]


def _single(shown: Mapping[Column, Sequence[Cell]]) -> list[Shown]:
    return [
        (f"{group} {name}", _column(cells_))
        for (group, name), cells_ in shown.items()
        if group not in (COST, N[0])
    ]


def _column(shown: Sequence[Cell]) -> list[str]:
    return list(map(_short, shown))


def _short(cell: Cell) -> str:
    value = cell.value.removesuffix(".0")
    return f"[bold cyan]{value}[/]" if cell.best else value + (TIED if cell.tied else "")


def _blocks(
    head: str, labels: Sequence[str], columns: Sequence[Shown], width: int
) -> Iterator[RenderableType]:
    """As many columns beside each other as fit; every block begins with the labels."""
    first = max(cell_len(text) for text in (head, *labels))
    rows: list[Shown] = []
    room = width - first
    for heading, texts in columns:
        needed = _GAP + max(Text.from_markup(text).cell_len for text in (heading, *texts))
        if rows and needed > room:
            yield _block(head, labels, rows)
            rows, room = [], width - first
        rows.append((heading, texts))
        room -= needed
    if rows:
        yield _block(head, labels, rows)


def _block(head: str, labels: Sequence[str], columns: Sequence[Shown]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, _GAP, 0, 0))
    table.add_column(head, style="bold", no_wrap=True)
    for heading, _ in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    for row, label in enumerate(labels):
        table.add_row(escape(label), *(texts[row] for _, texts in columns))
    return table


def _published_view(published: Comparison) -> RenderableType:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, heading in enumerate(BESIDE):
        is_class = heading == "published metric"
        justify = "left" if place < 3 else "right"
        table.add_column(heading, justify=justify, no_wrap=not is_class, overflow="fold")
    for measured, row in zip(published.rows, beside_rows(published), strict=True):
        editor, split, _, *rest = (text.removeprefix("locality/") for text in row)
        table.add_row(*map(escape, (editor, split, measured.measure.name, *rest)))
    return Group(Text(""), table, Text(beside_note(published), style="dim"))


def comparison_view(comparison: PairedComparison, *, show: int) -> RenderableType:
    """Two methods A and B: what differs, and some edits where they disagree."""
    heading = Text()
    for letter, method in (("A", comparison.first), ("B", comparison.second)):
        heading.append(f"{letter}: ", style="bold")
        heading.append(f"{method.label} ({method.origin.vlm}, {method.origin.dataset})\n")
    only = [
        f"{n} in {letter} only" for letter, n in zip("AB", comparison.unpaired, strict=True) if n
    ]
    heading.append(f"{', '.join([f'{comparison.pairs} edits in both', *only])}\n")
    return Group(
        heading, _differences_table(comparison), Text(_COMPARED, style="dim"),
        *_disagreements(comparison, show),
    )  # fmt: skip


_COMPARED = (
    "B − A: mean paired difference and its 95 % interval (bootstrap over images); p: exact "
    "McNemar, or where images repeat or a score is not 0 or 1, sign flips of whole images; p Holm: "
    "corrected for the rows; A>B/B>A: edits where one scores more."
)


def _differences_table(comparison: PairedComparison) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for place, name in enumerate(("", "", "A", "B", "B − A", "p", "p Holm", "A>B/B>A", "n")):
        table.add_column(name, justify="left" if place < 2 else "right", no_wrap=True)
    for row in comparison.differences:
        form, found = row.measure.format, row.difference
        differs = row.first_only or row.second_only
        interval = f" [{found.low:+{form}}, {found.high:+{form}}]" if differs else ""
        table.add_row(
            row.split,
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
        yield Text("\nNo question that only one of the two answered exactly.")
        return
    shown = min(show, len(found))
    yield Text(f"\n{len(found)} questions that only one answered exactly; {shown} of them:")
    for one in found[:show]:
        table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
        table.add_row(f"[bold]{one.split}[/]", escape(one.prompt))
        table.add_row("wanted", escape(one.wanted))
        for letter, said, right in (
            ("A", one.first, one.first_is_right),
            ("B", one.second, not one.first_is_right),
        ):
            table.add_row(letter, f"[{'green' if right else 'red'}]{escape(said)}[/]")
        yield Group(Text(f"\n{one.case}", style="dim"), table)
