"""A method table in LaTeX, with booktabs and graphicx: the scores, below them the costs."""

from __future__ import annotations

from collections.abc import Sequence

import pandas

from mmedit.report.columns import Column, measure_of
from mmedit.report.published import Comparison
from mmedit.report.render.cells import MISSING, Cell, cells
from mmedit.report.render.footnotes import footnote
from mmedit.report.render.published import BESIDE, beside_note, beside_rows
from mmedit.report.run_tables import RunTable
from mmedit.report.table import column_names


def latex_table(
    table: pandas.DataFrame,
    beside: pandas.DataFrame | None = None,
    beside_note: str = "",
    *,
    title: str = "",
) -> str:
    """Write a `table*` that is at most as wide as the page, and a second one for `beside`."""
    shown = cells(table)
    scores = [column for column in column_names(table) if measure_of(*column) is not None]
    costs = [column for column in column_names(table) if column not in scores]
    tabulars = [_tabular(table, shown, part) for part in (scores, costs) if part]
    floats = [_float(tabulars, footnote(table), title)]
    if beside is not None:
        floats.append(_float([_plain_tabular(beside)], beside_note, title))
    return "% \\usepackage{booktabs,graphicx}\n" + "".join(floats)


def _float(tabulars: Sequence[str], note: str, title: str) -> str:
    heading = [rf"\textbf{{{escaped(title)}}}"] if title else []
    note = rf"\parbox{{\linewidth}}{{{escaped(note)}}}"
    parts = [*heading, *map(_fitted, tabulars), note]
    return _FLOAT.format(parts="\n\\par\\smallskip\n".join(parts))


_FLOAT = r"""\begin{{table*}}[t]
\centering\footnotesize
\setlength{{\tabcolsep}}{{3pt}}
{parts}
\end{{table*}}
"""


def _fitted(tabular: str) -> str:
    return (
        "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%\n" + tabular + "}"
    )


def _tabular(
    table: pandas.DataFrame, shown: dict[Column, list[Cell]], part: Sequence[Column]
) -> str:
    body = {(escaped(g), escaped(n)): [_cell(c) for c in shown[g, n]] for g, n in part}
    style = pandas.DataFrame(body, index=table.index).rename_axis(index=None).style
    style.format_index(escape="latex", axis=0)
    tabular = style.to_latex(hrules=True, column_format="l" + "r" * len(part), multicol_align="c")
    groups, names, rows = tabular.split("\\\\\n", 2)
    return "\\\\\n".join([groups, _group_rules(part) + names, rows])


def _plain_tabular(table: pandas.DataFrame) -> str:
    form = "l" * 3 + "r" * (len(table.columns) - 3)
    return table.map(escaped).style.hide(axis=0).to_latex(hrules=True, column_format=form)


def _group_rules(names: Sequence[Column]) -> str:
    """Draw a rule under each heading that spans several columns; column 1 is the editor's."""
    groups = [group for group, _ in names]
    spans = [(groups.index(group) + 2, groups.count(group)) for group in dict.fromkeys(groups)]
    rules = [rf"\cmidrule(lr){{{first}-{first + n - 1}}}" for first, n in spans if n > 1]
    return " ".join(rules) + "\n"


def _cell(cell: Cell) -> str:
    value = cell.value.replace(MISSING, "--")
    value = rf"\textbf{{{value}}}" if cell.best else value
    mark = r"$^\dagger$" if cell.tied else ""
    note = rf" {{\scriptsize ($n$={cell.n})}}" if cell.n is not None else ""
    return value + mark + _spread(cell.spread) + note


def _spread(spread: str) -> str:
    if spread.startswith("±"):
        return rf" {{\scriptsize $\pm${spread.removeprefix('±')}}}"
    places = {"+": "^{+", "−": "_{-"}
    sides = "".join(places[side[0]] + side[1:] + "}" for side in spread.split())
    return rf" {{\scriptsize ${sides}$}}" if sides else ""


def escaped(text: str) -> str:
    """Write any text of a table or its notes as LaTeX in ASCII."""
    return text.translate(_ESCAPES)


_ESCAPES = str.maketrans(
    {
        **{letter: "\\" + letter for letter in "&%$#_{}"},
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "\\": r"\textbackslash{}",
        "±": r"$\pm$",
        "−": "$-$",
        "≥": r"$\geq$",
        "†": r"$\dagger$",
        "‖": r"$\|$",
        "–": "--",
        "“": "``",
        "”": "''",
    }
)


def latex(table: pandas.DataFrame, published: Comparison | None, *, title: str = "") -> str:
    """Write a method table in LaTeX, with the published values below it."""
    if published is None:
        return latex_table(table, title=title)
    beside = pandas.DataFrame(beside_rows(published), columns=list(BESIDE))
    return latex_table(table, beside, beside_note(published), title=title)


def all_latex(tables: Sequence[RunTable]) -> str:
    """Write tables of runs in LaTeX; several have their titles above them."""
    if len(tables) == 1:
        return latex(tables[0].frame, tables[0].published)
    return "\n".join(latex(one.frame, one.published, title=one.title) for one in tables)
