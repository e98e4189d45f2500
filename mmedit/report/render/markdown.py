"""A method table in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

import pandas

from mmedit.report.published import Comparison
from mmedit.report.render.cells import TIED, Cell, cells
from mmedit.report.render.footnotes import footnote
from mmedit.report.render.published import BESIDE, beside_note, beside_rows
from mmedit.report.run_tables import RunTable
from mmedit.report.table import column_names


def markdown(table: pandas.DataFrame, published: Comparison | None) -> str:
    """Write a method table in Markdown, with the published values below it."""
    header = ["editor", *(" ".join(column).strip() for column in column_names(table))]
    shown = zip(*cells(table).values(), strict=True)
    rows = [
        [str(editor), *map(_markdown_cell, row)]
        for editor, row in zip(table.index, shown, strict=True)
    ]
    blocks = [markdown_table(header, rows, left=1), footnote(table)]
    if published:
        blocks += [markdown_table(BESIDE, beside_rows(published), left=3), beside_note(published)]
    return "\n\n".join(blocks) + "\n"


def all_markdown(tables: Sequence[RunTable]) -> str:
    """Write tables of runs in Markdown; several have their titles as headings."""
    if len(tables) == 1:
        return markdown(tables[0].frame, tables[0].published)
    return "\n".join(f"## {one.title}\n\n{markdown(one.frame, one.published)}" for one in tables)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int) -> str:
    """Align the first `left` columns to the left, the others to the right."""
    lines = [list(header), *([text.replace("|", "\\|") for text in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = [
        "-" * width if place < left else "-" * (width - 1) + ":"
        for place, width in enumerate(widths)
    ]
    return "\n".join(_markdown_line(line, widths, left) for line in (lines[0], rule, *lines[1:]))


def _markdown_line(line: Sequence[str], widths: Sequence[int], left: int) -> str:
    padded = [
        text.ljust(width) if place < left else text.rjust(width)
        for place, (text, width) in enumerate(zip(line, widths, strict=True))
    ]
    return "| " + " | ".join(padded) + " |"


def _markdown_cell(cell: Cell) -> str:
    value = (f"**{cell.value}**" if cell.best else cell.value) + (TIED if cell.tied else "")
    note = f"(n={cell.n})" if cell.n is not None else ""
    return " ".join(part for part in (value, cell.spread, note) if part)
