"""A table as text: what a reader, LaTeX, pandas and a browser get."""

import csv
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from made_records import LOC, PORT, REL, asked, kept, record, reliability
from rich.console import Console

from mmedit.errors import UnknownNameError
from mmedit.report import columns
from mmedit.report.columns import COSTS, CostColumn, measure_of
from mmedit.report.intervals import Summary
from mmedit.report.published import Beside, Comparison
from mmedit.report.render import FORMATS, render
from mmedit.report.render.cells import cells, summary_cell
from mmedit.report.render.footnotes import footnote
from mmedit.report.render.terminal import table_view
from mmedit.report.table import method_table


@pytest.fixture(scope="module")
def records():
    right, wrong = [1.0] * 9 + [0.0], [0.0] * 9 + [1.0]
    records = []
    for editor, rel, loc in (("base", wrong, [1.0] * 10), ("ft_l", right, wrong)):
        records += [
            record(
                str(i),
                {
                    REL: (asked(rel[i], rel[i], image=f"{i}.png"),),
                    LOC: (kept(loc[i], loc[i]),),
                },
                editor=editor,
            )
            for i in range(10)
        ]
    return records + reliability("mend", [0.5] * 4, seconds=0.25)


@pytest.fixture(scope="module")
def table(records):
    return method_table(records, training_seconds={"mend": 12.0})


def test_markdown_has_one_aligned_line_per_method_and_a_footnote(table):
    lines = render(table, "md").splitlines()
    assert lines[0].replace(" ", "") == (
        "|editor|Reltok|RelEM|I-Loctok|I-LocEM|costs/edit|costp95s|costpeakGB|costtrains|n|"
    )
    assert len({len(line) for line in lines[:5]}) == 1
    assert len({line.count("|") for line in lines[:5]}) == 1
    assert re.search(r"\| \*\*90\.0\*\* \+8\.2 −30\.4 ", lines[3])
    assert lines[5] == ""
    assert lines[6] == footnote(table)


def test_markdown_escapes_a_pipe_in_a_name():
    line = render(method_table(reliability("a|b", [1.0])), "md").splitlines()[2]
    assert line.startswith(r"| a\|b ")


def test_an_interval_is_shown_as_one_half_width_or_with_both_sides_where_they_differ():
    assert summary_cell(Summary(50.0, 45.2, 54.0, 9), ".1f").spread == "±4.4"
    assert summary_cell(Summary(98.0, 95.7, 99.1, 9), ".1f").spread == "+1.1 −2.3"
    assert summary_cell(Summary(100.0, 98.7, 100.0, 9), ".1f").spread == "−1.3"
    assert summary_cell(Summary(100.0, 100.0, 100.0, 9), ".1f").spread == ""


def test_a_mean_of_one_image_is_shown_with_an_unknown_interval():
    table = method_table(reliability("ft", [1.0]))
    assert cells(table)["Rel", "EM"][0].value == "100.0"
    assert "100.0 ±? |" in render(table, "md").splitlines()[2]
    assert r"{\scriptsize $\pm$?}" in render(table, "latex")


def test_the_footnote_defines_metrics_interval_and_cost(table):
    note = footnote(table)
    for promised in (
        "EM: share of answers with every token right",
        "Rel: reliability, I-Loc: image locality.",
        "I-Loc: agreement with the base model",
        "half the 95 % interval",
        "bootstrap over images and identical probes",
        "Wilson on the effective number of edits for EM",
        "p ≥ 0.05 after Holm's correction",
        "p95 s: 95th percentile of that time",
        "s/edit: median wall time of applying one edit",
        "train s:",
    ):
        assert promised in note
    assert "train s" not in footnote(method_table(reliability("ft", [1.0])))
    assert "base model" not in footnote(method_table(reliability("ft", [1.0])))


def test_a_split_with_its_own_n_says_so_in_the_footnote_or_else_in_its_cells():
    probes = {REL: (asked(1, 1),), PORT: (asked(1, 1),)}
    some = [record("1", probes), record("2", {REL: (asked(1, 1),)})]
    assert "mean over n edits, 1 in Port," in footnote(method_table(some))
    more = [record(str(i), probes, editor="mend") for i in range(2)]
    table = method_table([*some, *more])
    assert "in Port" not in footnote(table)
    assert [cell.n for cell in cells(table)["Port", "EM"]] == [1, None]
    assert "(n=1)" in render(table, "md")


def test_latex_is_booktabs_with_as_many_columns_as_it_declares_scores_above_costs(table):
    latex = render(table, "latex")
    declared = re.findall(r"\\begin\{tabular\}\{(l?r+)\}", latex)
    bodies = [part.split(r"\bottomrule")[0] for part in latex.split(r"\midrule")[1:]]
    assert list(map(len, declared)) == [5, 6]
    for form, body in zip(declared, bodies, strict=True):
        lines = body.strip().splitlines()
        assert len(lines) == len(table)
        assert {line.count(" & ") + 1 for line in lines} == {len(form)}
        assert all(line.endswith(r" \\") for line in lines)
    assert latex.count(r"\toprule") == latex.count(r"\bottomrule") == 2
    assert r"\multicolumn{2}{c}{Rel} & \multicolumn{2}{c}{I-Loc}" in latex
    assert r"\cmidrule(lr){2-3} \cmidrule(lr){4-5}" in latex


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no pdflatex is installed")
@pytest.mark.parametrize("columns", ["default", "locality"])
def test_latex_compiles(tmp_path, records, columns):
    table = method_table(records, columns=columns)
    beside = Comparison("A & B, 100 %", (beside_of(table),), ("Not published there: x_y.",))
    (tmp_path / "table.tex").write_text(render(table, "latex", beside))
    (tmp_path / "paper.tex").write_text(
        r"\documentclass{article}\usepackage{booktabs,graphicx}\begin{document}"
        r"\input{table}\end{document}"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout


def beside_of(table):
    column = next(column for column in table.columns if column[0] == "I-Loc")
    measure = measure_of(*column)
    assert measure is not None
    return Beside("ft_l", "I-Loc", measure, table.loc["ft_l", column], 99.4, "exact_match")


def test_latex_escapes_names_and_percent_and_has_no_bare_unicode(table):
    latex = render(table, "latex")
    assert "\nft\\_l & " in latex
    assert r"half the 95 \% interval" in latex
    assert latex.isascii()
    assert latex.count("{") == latex.count("}")


def test_csv_has_every_cell_with_mean_interval_and_n_unrounded(table):
    rows = list(csv.DictReader(io.StringIO(render(table, "csv"))))
    assert len(rows) == 2 * 4 + 2  # "mend" has no locality
    row = next(r for r in rows if (r["editor"], r["split"], r["metric"]) == ("ft_l", "Rel", "EM"))
    cell = table.loc["ft_l", ("Rel", "EM")]
    read = [float(row[name]) for name in ("mean", "low", "high", "n")]
    assert read == [cell.mean, cell.low, cell.high, cell.n]
    assert (row["metric_class"], row["best"]) == ("exact_match", "True")
    assert float(row["s/edit"]) == 1.0
    assert [r["train s"] for r in rows if r["editor"] == "mend"] == ["12.0", "12.0"]


def test_json_says_what_csv_says_and_what_the_columns_mean(table):
    read = json.loads(render(table, "json"))
    assert [method["n"] for method in read["methods"]] == [10, 10, 4]
    assert read["methods"][2]["cost"]["train s"] == 12.0
    assert len(read["scores"]) == 2 * 4 + 2
    assert read["footnote"] == footnote(table)


def test_a_single_image_has_no_interval_in_json():
    [score, _] = json.loads(render(method_table(reliability("ft", [0.5])), "json"))["scores"]
    assert (score["mean"], score["low"], score["high"]) == (50.0, None, None)


def test_html_is_one_page_that_closes_what_it_opens_and_escapes_names(records):
    opened = []

    class Balance(HTMLParser):
        def handle_starttag(self, tag, attrs):
            if tag != "meta":
                opened.append(tag)

        def handle_endtag(self, tag):
            assert opened.pop() == tag

    page = render(method_table([*records, *reliability("<b>x", [1.0])]), "html")
    Balance().feed(page)
    assert opened == []
    assert "<b>x" not in page
    assert "http:" not in page
    assert "&lt;b&gt;x" in page
    assert "<td>90.0<sup>†</sup> <small>+8.2 −30.4</small></td>" in page


@pytest.mark.parametrize("columns", ["default", "locality"])
def test_in_a_terminal_of_80_columns_no_line_is_longer_and_nothing_is_cut(records, columns):
    probes = {probe: records[0].probes[LOC if probe.is_locality else REL] for probe in type(REL)}
    wide = [*records, record("1", probes, editor="a method with a long name")]
    table = method_table(wide, columns=columns, training_seconds={"mend": 12.0})
    beside = Comparison("a paper", (beside_of(table),), ())
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table_view(table, beside, width=80))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)
    for heading in {group for group, _ in table.columns if group not in ("", "cost")}:
        assert heading in "".join(lines)
    assert "train s" in "".join(lines)
    assert "not comparable" in "".join(lines)


def test_a_wide_terminal_shows_intervals_and_explains_them(table):
    def shown(width):
        console = Console(width=width, record=True, file=io.StringIO())
        console.print(table_view(table, width=width))
        return console.export_text()

    assert "+8.2 −30.4" in shown(140)
    assert "half the 95 % interval" in " ".join(shown(140).split())
    assert "−30.4" not in shown(80)
    assert "interval" not in shown(80)


def test_a_name_that_looks_like_markup_is_shown_as_it_is():
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table_view(method_table(reliability("[/b] x", [1.0]))))
    assert "[/b] x" in console.export_text()


@pytest.mark.parametrize("format", FORMATS)
def test_every_cost_column_is_in_every_format_with_its_definition(format):
    records = reliability("ft", [1.0, 0.0], parameters=7)
    table = method_table(records, training_seconds={"ft": 3.0}, latencies={"ft": (2.0,)})
    text = render(table, format)
    for cost in COSTS:
        assert cost.column in table.columns
        assert cost.name in text
        assert cost.definition in text or format == "csv"


def test_a_new_cost_column_is_one_value(monkeypatch):
    batches = CostColumn(
        name="batch",
        definition="largest batch",
        of=lambda records, _: max(record.batch for record in records),
        text="{:d} edits".format,
    )
    monkeypatch.setattr(columns, "COSTS", (*columns.COSTS, batches))
    monkeypatch.setattr("mmedit.report.table.COSTS", columns.COSTS)
    text = render(method_table(reliability("ft", [1.0])), "md")
    assert "cost batch" in text
    assert "1 edits" in text
    assert "batch: largest batch" in text


def test_an_unknown_format_is_named_with_the_known_ones(table):
    with pytest.raises(
        UnknownNameError, match=r"no table format named 'late'\. Did you mean 'latex'"
    ):
        render(table, "late")
