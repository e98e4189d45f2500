import csv
import io
import math
import re
import time

import pytest

from mmedit.bench.records import Locality, ProbeRecord, Record, Scores
from mmedit.bench.statistics import Summary, clustered_bootstrap_interval
from mmedit.bench.tables import cells, footnote, method_table, render
from mmedit.cases import Probe
from mmedit.errors import DataError, UnknownNameError

REL, GEN = Probe.RELIABILITY, Probe.TEXT_GENERALITY
LOC, PORT = Probe.IMAGE_LOCALITY, Probe.PORTABILITY


def asked(tok, em, *, image="a.png", locality=None):
    pre = Scores(token_accuracy=0.0, exact_match=0.0, log_prob=-9.0, n_tokens=2)
    post = Scores(token_accuracy=tok, exact_match=em, log_prob=-1.0, n_tokens=2)
    return ProbeRecord(
        prompt="colour?", target="red", image=image, pre=pre, post=post, locality=locality
    )


def kept(top1, exact):
    """A locality probe whose agreement is given, and whose accuracy is something else."""
    locality = Locality(
        top1_answer=top1,
        exact_answer=exact,
        top1_all=0.11,
        top10_ordered_all=0.12,
        top10_set_answer=0.13,
        kl=0.14,
    )
    return asked(0.77, 0.0, locality=locality)


def record(case_id, probes, *, editor="ft", seconds=1.0, seed=0):
    return Record(
        case_id=case_id,
        editor=editor,
        seconds=seconds,
        batch=1,
        peak_memory_bytes=0,
        seed=seed,
        probes=probes,
    )


def reliability(editor, scores, **fields):
    """One record per score, every one with an image of its own."""
    return [
        record(str(i), {REL: (asked(s, s, image=f"{i}.png"),)}, editor=editor, **fields)
        for i, s in enumerate(scores)
    ]


@pytest.fixture(scope="module")
def table():
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
    records += reliability("mend", [0.5] * 4, seconds=0.25)
    return method_table(records, training_seconds={"mend": 12.0})


def test_every_cell_is_the_hand_computed_macro_mean_in_percent():
    table = method_table(
        [
            record("1", {REL: (asked(0.5, 0.0),), LOC: (kept(0.5, 0.0),)}, seconds=1.0),
            record("2", {REL: (asked(1.0, 1.0),), LOC: (kept(1.0, 1.0),)}, seconds=9.0),
            record("3", {REL: (asked(0.0, 0.0),), LOC: (kept(1.0, 1.0),)}, seconds=2.0),
        ]
    )
    means = table.map(float).loc["ft"].to_dict()
    assert means == pytest.approx(
        {
            ("Rel", "tok"): 50.0,
            ("Rel", "EM"): 100 / 3,
            ("I-Loc", "tok"): 250 / 3,
            ("I-Loc", "EM"): 200 / 3,
            ("cost", "s/edit"): 2.0,
            ("", "n"): 3,
        }
    )


def test_a_case_with_several_examples_counts_once():
    table = method_table(
        [
            record("1", {REL: (asked(1, 1),), GEN: (asked(1, 1), asked(0.5, 0), asked(0, 0))}),
            record("2", {REL: (asked(1, 1),), GEN: (asked(1, 1),)}),
        ]
    )
    assert table.loc["ft", ("T-Gen", "tok")].mean == pytest.approx(75.0)
    assert table.loc["ft", ("T-Gen", "EM")].mean == pytest.approx(100 * (1 / 3 + 1) / 2)
    assert table.loc["ft", ("T-Gen", "EM")].n == 2


def test_the_interval_of_a_cell_is_bootstrapped_over_images():
    images = ["a", "a", "a", "b", "c", "d"]
    scores = [1.0, 1.0, 1.0, 0.0, 0.0, 1.0]
    pairs = zip(images, scores, strict=True)
    table = method_table(
        [record(str(i), {REL: (asked(s, s, image=image),)}) for i, (image, s) in enumerate(pairs)]
    )
    cell = table.loc["ft", ("Rel", "EM")]
    expected = clustered_bootstrap_interval([100 * s for s in scores], images)
    assert (cell.low, cell.high) == pytest.approx(expected)


def test_rows_follow_the_first_appearance_and_columns_the_order_of_the_splits():
    probes = {PORT: (asked(1, 1),), REL: (asked(1, 1),)}
    table = method_table([record("1", probes, editor=name) for name in ("mend", "base", "ike")])
    assert list(table.index) == ["mend", "base", "ike"]
    assert [group for group, _ in table.columns] == ["Rel", "Rel", "Port", "Port", "cost", ""]


def test_methods_with_different_n_and_seeds_stand_in_one_table():
    records = reliability("ft", [1.0, 0.0], seed=1) + reliability("ft", [1.0, 1.0], seed=2)
    table = method_table([*records, *reliability("mend", [1.0])])
    assert table["", "n"].to_dict() == {"ft": 4, "mend": 1}
    assert table.loc["ft", ("Rel", "EM")].mean == 75.0


def test_a_split_that_a_method_lacks_is_shown_as_a_dash(table):
    assert table.loc["mend", ("I-Loc", "EM")] is None
    assert cells(table)["I-Loc", "EM"][2].value == "–"
    assert "–" in render(table, "md").splitlines()[4]


def test_nan_in_a_score_is_refused_with_editor_and_split():
    records = reliability("mend", [1.0, math.nan])
    with pytest.raises(DataError, match="mend, reliability: 1 of 2 values are NaN"):
        method_table(records)


def test_a_locality_probe_without_locality_scores_is_refused():
    probes = {REL: (asked(1, 1),), LOC: (asked(1, 1),)}
    with pytest.raises(DataError, match="ft, case '9': image_locality of 'colour\\?' has no"):
        method_table([record("9", probes)])


def test_no_records_are_refused():
    with pytest.raises(DataError, match="no records to make a table of"):
        method_table([])


def test_the_best_value_of_a_column_is_marked_and_ties_are_all_marked():
    table = method_table(
        [
            *reliability("ft", [1.0, 1.0], seconds=2.0),
            *reliability("mend", [1.0, 1.0], seconds=1.0),
            *reliability("ike", [1.0, 0.0], seconds=3.0),
        ]
    )
    shown = cells(table)
    assert [cell.best for cell in shown["Rel", "EM"]] == [True, True, False]
    assert [cell.best for cell in shown["cost", "s/edit"]] == [False, True, False]
    assert [cell.best for cell in shown["", "n"]] == [False, False, False]


def test_values_that_look_the_same_tie():
    scores = ([0.98004], [0.97996])
    table = method_table(
        [r for name, s in zip(("ft", "mend"), scores, strict=True) for r in reliability(name, s)]
    )
    assert [cell.best for cell in cells(table)["Rel", "tok"]] == [True, True]


def test_the_unedited_model_is_never_best():
    probes = {REL: (asked(0, 0),), LOC: (kept(1, 1),)}
    edited = {REL: (asked(0, 0),), LOC: (kept(0.5, 0),)}
    worse = {REL: (asked(0, 0),), LOC: (kept(0, 0),)}
    table = method_table(
        [
            record("1", probes, editor="base", seconds=0.0),
            record("1", edited, editor="ft"),
            record("1", worse, editor="mend"),
        ]
    )
    shown = cells(table)
    assert not any(column[0].best for column in shown.values())
    assert [cell.best for cell in shown["I-Loc", "tok"]] == [False, True, False]


def test_a_method_alone_is_not_called_best():
    table = method_table([*reliability("base", [0.0, 0.0]), *reliability("ft", [1.0, 1.0])])
    assert not any(cell.best for column in cells(table).values() for cell in column)


def test_markdown_has_one_aligned_line_per_method_and_a_footnote(table):
    lines = render(table, "md").splitlines()
    assert lines[0].replace(" ", "") == (
        "|editor|Reltok|RelEM|I-Loctok|I-LocEM|costs/edit|costtrains|n|"
    )
    assert len({len(line) for line in lines[:5]}) == 1
    assert len({line.count("|") for line in lines[:5]}) == 1
    assert re.search(r"\| \*\*90\.0\*\* ±\d+\.\d ", lines[3])
    assert lines[5] == ""
    assert lines[6] == footnote(table)


def test_markdown_escapes_a_pipe_in_a_name():
    line = render(method_table(reliability("a|b", [1.0])), "md").splitlines()[2]
    assert line.startswith(r"| a\|b ")


def test_the_half_width_shown_is_half_of_the_interval(table):
    cell = table.loc["ft_l", ("Rel", "EM")]
    assert f"90.0** ±{(cell.high - cell.low) / 2:.1f} " in render(table, "md")


def test_a_mean_of_one_image_is_shown_without_an_interval():
    table = method_table(reliability("ft", [1.0]))
    assert cells(table)["Rel", "EM"][0].value == "100.0"
    assert "±" not in render(table, "md").splitlines()[2]


def test_the_footnote_defines_metrics_interval_and_cost(table):
    note = footnote(table)
    for promised in (
        "EM: share of answers with every token right",
        "I-Loc: agreement with the unedited model",
        "95 % interval of a percentile bootstrap over images",
        "s/edit: median wall time of applying one edit",
        "train s:",
    ):
        assert promised in note
    assert "train s" not in footnote(method_table(reliability("ft", [1.0])))
    assert "unedited" not in footnote(method_table(reliability("ft", [1.0])))


def test_a_split_with_its_own_n_says_so_in_the_footnote_or_else_in_its_cells():
    probes = {REL: (asked(1, 1),), PORT: (asked(1, 1),)}
    some = [record("1", probes), record("2", {REL: (asked(1, 1),)})]
    assert "mean over n edits, 1 in Port;" in footnote(method_table(some))
    more = [record(str(i), probes, editor="mend") for i in range(2)]
    table = method_table([*some, *more])
    assert "in Port" not in footnote(table)
    assert [cell.n for cell in cells(table)["Port", "EM"]] == [1, None]
    assert "(n=1)" in render(table, "md")


def test_latex_is_a_booktabs_table_with_as_many_columns_as_it_declares(table):
    latex = render(table, "latex")
    declared = re.search(r"\\begin\{tabular\}\{(l?r+)\}", latex)
    assert declared is not None
    body = latex.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert len(body) == len(table)
    assert {line.count(" & ") + 1 for line in body} == {len(declared[1])} == {8}
    assert all(line.endswith(r" \\") for line in body)
    for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\end{table*}"):
        assert latex.count(rule) == 1
    assert r"\multicolumn{2}{c}{Rel} & \multicolumn{2}{c}{I-Loc}" in latex
    assert r"\cmidrule(lr){2-3} \cmidrule(lr){4-5} \cmidrule(lr){6-7}" in latex


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
    read = Summary(float(row["mean"]), float(row["low"]), float(row["high"]), int(row["n"]))
    assert read == cell
    assert float(row["s/edit"]) == 1.0
    assert [r["train s"] for r in rows if r["editor"] == "mend"] == ["12.0", "12.0"]


def test_an_unknown_format_is_named_with_the_known_ones(table):
    with pytest.raises(
        UnknownNameError, match=r"no table format named 'late'\. Did you mean 'latex'"
    ):
        render(table, "late")


def test_ten_thousand_records_make_a_table_in_less_than_five_seconds():
    records = [
        record(
            str(i),
            {
                probe: (kept(i % 2, i % 3 == 0),)
                if probe.is_locality
                else (asked(i % 5 / 4, i % 2),)
                for probe in Probe
            }
            | {REL: (asked(i % 7 / 6, i % 2, image=f"{i}.png"),)},
            editor=f"method {i % 2}",
        )
        for i in range(10_000)
    ]
    started = time.process_time()  # not the wall: the machine may be busy
    render(method_table(records), "latex")
    assert time.process_time() - started < 5.0
