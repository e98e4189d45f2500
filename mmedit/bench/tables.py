"""The paper's table: one row per method, and every split with both metrics, n and an interval.

A cell is the macro mean over edits, in percent; an edit that asks several examples in one split is
averaged within the edit first. Locality is agreement with the unedited model, everything else is
the answer after the edit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isnan
from statistics import fmean, median

import pandas

from mmedit.bench.records import ProbeRecord, Record
from mmedit.bench.statistics import LEVEL, RESAMPLES, Summary, summarise
from mmedit.cases import Probe
from mmedit.errors import DataError, UnknownNameError

BASE = "base"  # the editor's name in the records of the unedited model
HEADINGS = {
    Probe.RELIABILITY: "Rel",
    Probe.TEXT_GENERALITY: "T-Gen",
    Probe.IMAGE_GENERALITY: "I-Gen",
    Probe.TEXT_LOCALITY: "T-Loc",
    Probe.IMAGE_LOCALITY: "I-Loc",
    Probe.PORTABILITY: "Port",
}
N = ("", "n")
EDIT_SECONDS = ("cost", "s/edit")
TRAINING_SECONDS = ("cost", "train s")

MISSING = "–"

Column = tuple[str, str]


@dataclass(frozen=True)
class Cell:
    """One cell as it is shown: `value` and `spread` (the ± half-width, or ""), both rounded."""

    value: str
    spread: str = ""
    n: int | None = None  # only where neither the row nor the footnote tells it
    best: bool = False


def method_table(
    records: Sequence[Record], *, training_seconds: Mapping[str, float] | None = None
) -> pandas.DataFrame:
    """Aggregate records to one row per editor, in the order in which the editors first appear.

    The columns have two levels: every split that was asked with "tok" (token accuracy) and "EM"
    (exact match) as `Summary` in percent, then ("cost", "s/edit"), the median of the records'
    seconds, ("cost", "train s") where `training_seconds` is given, and ("", "n"), the number of
    records. A split that one method lacks is None. `table.map(float, na_action="ignore")` gives the
    bare means. Raises DataError for no records, and for NaN or a missing score in one of them.
    """
    if not records:
        raise DataError("no records to make a table of; give the records of at least one edit")
    by_editor: dict[str, list[Record]] = {}
    for record in records:
        by_editor.setdefault(record.editor, []).append(record)
    columns: dict[Column, list[object]] = {}
    for probe in Probe:
        if any(record.probes.get(probe) for record in records):
            pairs = [_summaries(editor, rows, probe) for editor, rows in by_editor.items()]
            columns[HEADINGS[probe], "tok"] = [token_accuracy for token_accuracy, _ in pairs]
            columns[HEADINGS[probe], "EM"] = [exact_match for _, exact_match in pairs]
    columns[EDIT_SECONDS] = [median(r.seconds for r in rows) for rows in by_editor.values()]
    if training_seconds is not None:
        columns[TRAINING_SECONDS] = [training_seconds.get(editor) for editor in by_editor]
    columns[N] = [len(rows) for rows in by_editor.values()]
    index = pandas.Index(list(by_editor), name="editor")
    return pandas.DataFrame(columns, index=index)


def _summaries(
    editor: str, records: Iterable[Record], probe: Probe
) -> tuple[Summary | None, Summary | None]:
    asked = [record for record in records if record.probes.get(probe)]
    if not asked:
        return None, None
    clusters = [record.cluster for record in asked]
    scores = [_case_scores(record, probe) for record in asked]
    try:
        token_accuracy, exact_match = (
            summarise([100 * score for score in column], clusters)
            for column in zip(*scores, strict=True)
        )
    except DataError as error:
        raise DataError(f"{editor}, {probe.value}: {error}") from error
    return token_accuracy, exact_match


def _case_scores(record: Record, probe: Probe) -> tuple[float, float]:
    pairs = [_example_scores(record, probe, example) for example in record.probes[probe]]
    return fmean(pair[0] for pair in pairs), fmean(pair[1] for pair in pairs)


def _example_scores(record: Record, probe: Probe, example: ProbeRecord) -> tuple[float, float]:
    if not probe.is_locality:
        return example.post.token_accuracy, example.post.exact_match
    if example.locality is None:
        raise DataError(
            f"{record.editor}, case {record.case_id!r}: {probe.value} of {example.prompt!r} has no "
            "locality scores; measure this edit again"
        )
    return example.locality.top1_answer, example.locality.exact_answer


def cells(table: pandas.DataFrame) -> dict[Column, list[Cell]]:
    """Round a table to what is shown, column by column, and mark the best value of each.

    Values that look the same tie, and ties are all best. The unedited model competes in no column:
    its locality is 100 by definition and it costs nothing. One method alone is not best either.
    """
    competes = [editor != BASE for editor in table.index]
    shown: dict[Column, list[Cell]] = {}
    for column in columns(table):
        plain = [_cell(cell) for cell in table[column]]
        counts: list[int | None] = [None] * len(plain)
        if _common_n(table, column) is None:
            counts = [
                cell.n if isinstance(cell, Summary) and cell.n != n else None
                for cell, n in zip(table[column], table[N], strict=True)
            ]
        shown[column] = [
            replace(cell, n=n, best=best)
            for cell, n, best in zip(plain, counts, _best(column, plain, competes), strict=True)
        ]
    return shown


def _common_n(table: pandas.DataFrame, column: Column) -> int | None:
    """The n of a split where all methods that have it agree; otherwise n stands in the cells."""
    counts = {cell.n for cell in table[column] if isinstance(cell, Summary)}
    return counts.pop() if len(counts) == 1 else None


def columns(table: pandas.DataFrame) -> list[Column]:
    """The (group, name) of every column of a method table, in order."""
    return [(str(group), str(name)) for group, name in table.columns]


def _cell(cell: object) -> Cell:
    if isinstance(cell, Summary):
        spread = "" if isnan(cell.half_width) else f"{cell.half_width:.1f}"
        return Cell(f"{cell.mean:.1f}", spread)
    if isinstance(cell, int):
        return Cell(str(cell))
    if isinstance(cell, float) and not isnan(cell):
        return Cell(_seconds(cell))
    return Cell(MISSING)


def _seconds(seconds: float) -> str:
    if seconds >= 100:
        return f"{seconds:.0f}"
    if seconds >= 1:
        return f"{seconds:.2f}"
    return f"{seconds:.2g}" if seconds >= 1e-4 else "0"


def _best(column: Column, shown: Sequence[Cell], competes: Sequence[bool]) -> list[bool]:
    values = [
        float(cell.value) if takes_part and cell.value != MISSING else None
        for cell, takes_part in zip(shown, competes, strict=True)
    ]
    known = [value for value in values if value is not None]
    if column == N or len(known) < 2:
        return [False] * len(shown)
    best = min(known) if column[0] == "cost" else max(known)
    return [value == best for value in values]


def footnote(table: pandas.DataFrame) -> str:
    """One sentence that defines what stands in the table."""
    splits = {HEADINGS[probe]: probe for probe in Probe if (HEADINGS[probe], "EM") in table.columns}
    local = [heading for heading, probe in splits.items() if probe.is_locality]
    agreement = f" ({' and '.join(local)}: agreement with the unedited model)" if local else ""
    counts = {heading: _common_n(table, (heading, "EM")) for heading in splits}
    fewer = [f", {n} in {heading}" for heading, n in counts.items() if n and {n} != set(table[N])]
    trained = TRAINING_SECONDS in columns(table)
    return (
        f"tok: share of answer tokens predicted right, EM: share of answers with every token "
        f"right{agreement}, in percent, mean over n edits{''.join(fewer)}; "
        f"±: half the {100 * LEVEL:.0f} % interval of a percentile bootstrap over images "
        f"({RESAMPLES} resamples); s/edit: median wall time of applying one edit"
        f"{'; train s: seconds of training before the first edit' if trained else ''}."
    )


def render(table: pandas.DataFrame, format: str) -> str:
    """Write a method table as "md", "latex" (needs booktabs and graphicx) or "csv" (long form)."""
    if format not in FORMATS:
        raise UnknownNameError("table format", format, FORMATS)
    return FORMATS[format](table)


def _markdown(table: pandas.DataFrame) -> str:
    header = ["editor", *(" ".join(column).strip() for column in columns(table))]
    shown = zip(*cells(table).values(), strict=True)
    rows = [
        [str(editor).replace("|", "\\|"), *map(_markdown_cell, row)]
        for editor, row in zip(table.index, shown, strict=True)
    ]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [_markdown_line(row, widths) for row in (header, rule, *rows)]
    return "\n".join([*lines, "", footnote(table), ""])


def _markdown_line(row: Sequence[str], widths: Sequence[int]) -> str:
    padded = [text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True)]
    return "| " + " | ".join([row[0].ljust(widths[0]), *padded]) + " |"


def _markdown_cell(cell: Cell) -> str:
    return _assembled(cell, f"**{cell.value}**", f" ±{cell.spread}", f" (n={cell.n})")


def _latex_cell(cell: Cell) -> str:
    spread = rf" {{\scriptsize $\pm${cell.spread}}}"
    note = rf" {{\scriptsize ($n$={cell.n})}}"
    return _assembled(cell, rf"\textbf{{{cell.value}}}", spread, note).replace(MISSING, "--")


def _assembled(cell: Cell, bold: str, spread: str, note: str) -> str:
    value = bold if cell.best else cell.value
    return value + (spread if cell.spread else "") + (note if cell.n is not None else "")


def _latex(table: pandas.DataFrame) -> str:
    shown = {column: list(map(_latex_cell, row)) for column, row in cells(table).items()}
    style = pandas.DataFrame(shown, index=table.index).rename_axis(index=None).style
    style.format_index(escape="latex", axis=0)
    tabular = style.to_latex(hrules=True, column_format="l" + "r" * len(shown), multicol_align="c")
    groups, names, body = tabular.split("\\\\\n", 2)
    note = footnote(table).replace("%", r"\%").replace("±", r"$\pm$")
    return _LATEX.format(
        tabular="\\\\\n".join([groups, _group_rules(columns(table)) + names, body]), note=note
    )


_LATEX = r"""% \usepackage{{booktabs,graphicx}}
\begin{{table*}}[t]
\centering
\setlength{{\tabcolsep}}{{3pt}}
\resizebox{{\ifdim\width>\linewidth\linewidth\else\width\fi}}{{!}}{{%
{tabular}}}
\par\smallskip
\parbox{{\linewidth}}{{\footnotesize {note}}}
\end{{table*}}
"""


def _group_rules(names: Sequence[Column]) -> str:
    """A rule under every heading that spans several columns; column 1 is the editor's."""
    groups = [group for group, _ in names]
    spans = [(groups.index(group) + 2, groups.count(group)) for group in dict.fromkeys(groups)]
    rules = [rf"\cmidrule(lr){{{first}-{first + n - 1}}}" for first, n in spans if n > 1]
    return " ".join(rules) + "\n"


def _csv(table: pandas.DataFrame) -> str:
    splits = [column for column in columns(table) if column[0] not in (N[0], EDIT_SECONDS[0])]
    costs = [column for column in columns(table) if column[0] == EDIT_SECONDS[0]]
    rows = [
        {"editor": editor, "split": split, "metric": metric}
        | {"mean": cell.mean, "low": cell.low, "high": cell.high, "n": cell.n}
        | {name: table.loc[editor, ("cost", name)] for _, name in costs}
        for editor in table.index
        for split, metric in splits
        if isinstance(cell := table.loc[editor, (split, metric)], Summary)
    ]
    return pandas.DataFrame(rows).to_csv(index=False)


FORMATS: dict[str, Callable[[pandas.DataFrame], str]] = {
    "md": _markdown,
    "latex": _latex,
    "csv": _csv,
}
