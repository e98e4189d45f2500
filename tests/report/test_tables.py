import io
import math
import time

import pytest
from made_records import (
    GEN,
    LOC,
    PORT,
    REL,
    asked,
    generation,
    kept,
    many_records,
    not_finite,
    record,
    reliability,
)
from rich.console import Console

from mmedit.errors import DataError, UnknownNameError
from mmedit.records.store import RECORDS, read_records
from mmedit.report.columns import TOKEN_ACCURACY, TOP1_ANSWER
from mmedit.report.intervals import clustered_bootstrap_interval, clustered_wilson_interval
from mmedit.report.render import render
from mmedit.report.render.cells import cells
from mmedit.report.render.page import write_report
from mmedit.report.render.plots import write_plots
from mmedit.report.render.terminal import table_view
from mmedit.report.scores import edit_scores
from mmedit.report.table import method_table


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
            ("cost", "p95 s"): 8.3,
            ("cost", "peak GB"): 0.0,
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


def test_intervals_are_over_images_bootstrapped_and_for_exact_match_wilsons():
    images = ["a", "a", "a", "b", "c", "d"]
    scores = [1.0, 1.0, 1.0, 0.0, 0.0, 1.0]
    pairs = zip(images, scores, strict=True)
    table = method_table(
        [record(str(i), {REL: (asked(s, s, image=image),)}) for i, (image, s) in enumerate(pairs)]
    )
    for name, interval in (
        ("tok", clustered_bootstrap_interval(scores, images)),
        ("EM", clustered_wilson_interval(scores, images)),
    ):
        cell = table.loc["ft", ("Rel", name)]
        assert (cell.low, cell.high) == pytest.approx([100 * end for end in interval])


def test_a_share_of_100_percent_is_never_certain_unless_the_model_is_compared_with_itself():
    rows = [
        record(
            str(i),
            {
                REL: (asked(1.0, 1.0, image=f"{i}.png"),),
                LOC: (kept(1.0, 1.0, image=f"other {i}.png"),),
            },
            editor=editor,
        )
        for editor in ("base", "ft")
        for i in range(20)
    ]
    table = method_table(rows)
    for column in (("Rel", "tok"), ("Rel", "EM"), ("I-Loc", "tok"), ("I-Loc", "EM")):
        assert table.loc["ft", column].low == pytest.approx(83.89, abs=0.01)  # 20 / (20 + 1.96²)
    assert table.loc["base", ("I-Loc", "EM")].low == 100.0


def test_rows_follow_the_first_appearance_and_columns_the_order_of_the_probes():
    probes = {PORT: (asked(1, 1),), REL: (asked(1, 1),)}
    table = method_table([record("1", probes, editor=name) for name in ("mend", "base", "ike")])
    assert list(table.index) == ["mend", "base", "ike"]
    assert [group for group, _ in table.columns] == [
        "Rel",
        "Rel",
        "Port",
        "Port",
        *["cost"] * 3,
        "",
    ]


def test_methods_with_different_n_and_seeds_stand_in_one_table():
    records = reliability("ft", [1.0, 0.0], seed=1) + reliability("ft", [1.0, 1.0], seed=2)
    table = method_table([*records, *reliability("mend", [1.0])])
    assert table["", "n"].to_dict() == {"ft": 4, "mend": 1}
    assert table.loc["ft", ("Rel", "EM")].mean == 75.0


def test_a_split_that_a_method_lacks_is_shown_as_a_dash(table):
    assert table.loc["mend", ("I-Loc", "EM")] is None
    assert cells(table)["I-Loc", "EM"][2].value == "–"
    assert " – " in render(table, "md").splitlines()[4]


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_equal_scores_are_not_certain_whatever_they_are(value):
    cell = method_table(reliability("ft", [value] * 6)).loc["ft", ("Rel", "tok")]
    assert cell.mean == 100 * value
    assert cell.high - cell.low > 30


def test_a_score_without_bounds_that_is_the_same_in_every_edit_has_an_unknown_interval():
    table = method_table(
        [
            record(str(i), {REL: (asked(1, 1),), LOC: (kept(1, 1, image=f"{i}.png"),)})
            for i in "abc"
        ],
        columns="locality",
    )
    assert math.isnan(table.loc["ft", ("I-Loc", "KL")].low)
    assert cells(table)["I-Loc", "KL"][0].spread == "±?"
    assert "±?: the interval is unknown, as" in render(table, "md")


def loc_records(images, questions, scores, editor="ft"):
    """One record per edit: its image, the question of its locality probe, and the score of that."""
    return [
        record(
            str(i),
            {REL: (asked(1, 1, image=image),), LOC: (kept(s, s, prompt=prompt, image=None),)},
            editor=editor,
        )
        for i, (image, prompt, s) in enumerate(zip(images, questions, scores, strict=True))
    ]


def clusters(records, probe, measure):
    found = edit_scores(records, probe, measure)
    assert found is not None
    return found.clusters


def test_each_column_is_clustered_by_the_images_and_by_what_it_asks():
    """Edits 0 and 1 share an image, 1 and 2 a question, 3 and 4 a question, 5 nothing."""
    records = loc_records("aabcde", "pqqrrs", [0.5, 1, 1, 0, 0, 1])
    assert clusters(records, LOC, TOP1_ANSWER) == (0, 0, 0, 1, 1, 2)
    assert clusters(records, REL, TOKEN_ACCURACY) == (0, 0, 1, 2, 3, 4)
    cell = method_table(records).loc["ft", ("I-Loc", "tok")]
    interval = clustered_bootstrap_interval([0.5, 1, 1, 0, 0, 1], "xxxyyz")
    assert (cell.low, cell.high) == pytest.approx([100 * end for end in interval])


def test_one_question_in_forty_edits_is_one_observation_with_an_unknown_interval():
    rows = [
        *loc_records(range_of(40), ["p"] * 40, [1.0] * 40, "a"),
        *loc_records(range_of(40), ["p"] * 40, [0.0] * 40, "b"),
    ]
    table = method_table(rows)
    cell = table.loc["b", ("I-Loc", "EM")]
    assert math.isnan(cell.low)
    assert cell.p_to_best == 1.0
    assert [one.spread for one in cells(table)["I-Loc", "EM"]] == ["±?", "±?"]
    assert "all edits share an image or a question" in render(table, "md")


def range_of(number):
    return [f"{i}.png" for i in range(number)]


def test_a_paired_test_counts_identical_questions_once():
    """Ten edits that ask two questions: at best p = 2 / 2², not 2 / 2^10."""
    rows = [
        *loc_records(range_of(10), "pq" * 5, [1.0] * 10, "a"),
        *loc_records(range_of(10), "pq" * 5, [0.0] * 10, "b"),
    ]
    p = method_table(rows).loc["b", ("I-Loc", "EM")].p_to_best
    assert p == pytest.approx(0.5, abs=0.02)


def test_requests_without_an_image_are_clustered_by_what_they_ask():
    records = loc_records([None] * 3, "pqr", [1, 0, 1])
    assert clusters(records, LOC, TOP1_ANSWER) == (0, 0, 0)


def failing(editor, scores, *, old):
    """Records like those of `reliability`, in which NaN stands for an edit with NaN outputs."""
    made = []
    for i, score in enumerate(scores):
        one = asked(0 if math.isnan(score) else score, 0, image=f"{i}.png")
        one = not_finite(one, old=old) if math.isnan(score) else one
        made.append(record(str(i), {REL: (one,)}, editor=editor))
    return made


@pytest.mark.parametrize("old", [False, True], ids=["NaN in the record", "0 in an old record"])
def test_edits_with_nan_outputs_are_counted_and_in_no_mean(old):
    rows = failing("bad", [1.0, math.nan, 1.0, 1.0], old=old)
    table = method_table(
        [*rows, *reliability("ok", [1.0, 0.0, 1.0, 0.0]), *reliability("no", [0.0] * 4)]
    )
    cell = table.loc["bad", ("Rel", "tok")]
    assert (cell.mean, cell.n, cell.failed, cell.p_to_best) == (100.0, 3, 1, None)
    shown = cells(table)["Rel", "tok"]
    assert [one.best for one in shown] == [False, True, False]
    assert [one.n for one in shown] == [3, None, None]
    note = "bad: NaN or infinite output on 1 of 4 edits, left out of the means."
    for format in ("md", "latex", "html", "json"):
        assert note in render(table, format)
    assert "bad,Rel,tok,100.0" in render(table, "csv")
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table_view(table))
    assert note in " ".join(console.export_text().split())


@pytest.mark.parametrize("old", [False, True], ids=["NaN in the record", "0 in an old record"])
def test_a_method_whose_outputs_are_all_nan_has_no_score_and_never_0(old):
    rows = failing("bad", [math.nan] * 3, old=old)
    table = method_table([*rows, *reliability("ok", [1.0, 0.0, 1.0])])
    assert math.isnan(table.loc["bad", ("Rel", "EM")].mean)
    assert cells(table)["Rel", "EM"][0].value == "–"
    assert "3 of 3 edits" in render(table, "md")
    for format in ("md", "latex", "html", "csv", "json"):
        assert "nan" not in render(table, format).replace("NaN", "")
    assert "– (n=0)" in render(table, "md")


def test_a_measure_that_is_infinite_is_left_out_of_its_own_column_alone():
    records = [
        record(str(i), {REL: (asked(1, 1),), LOC: (far(kept(1, 1, image=f"{i}.png"), kl),)})
        for i, kl in enumerate([0.25, math.inf, 0.75])
    ]
    table = method_table(records, columns="locality")
    assert (table.loc["ft", ("I-Loc", "KL")].mean, table.loc["ft", ("I-Loc", "KL")].n) == (0.5, 2)
    assert table.loc["ft", ("I-Loc", "tok")].n == 3
    assert "ft: NaN or infinite output on 1 of 3 edits" in render(table, "md")
    assert "NaN" not in render(method_table(records), "md")


def far(example, kl):
    return example.model_copy(update={"locality": example.locality.model_copy(update={"kl": kl})})


def test_plots_and_page_draw_no_point_for_outputs_that_are_nan(tmp_path):
    rows = [
        record(
            str(i),
            {REL: (not_finite(asked(1, 1)),), LOC: (not_finite(kept(1, 1, generated_post="!!")),)},
            editor=editor,
        )
        for editor in ("bad", "worse")
        for i in range(3)
    ]
    assert len(write_plots(rows, tmp_path)) == 6
    page = write_report(tmp_path, rows).read_text()
    assert "bad: NaN or infinite output on 3 of 3 edits" in page
    assert 'class="after">NaN or infinite output' in page


def test_methods_are_paired_by_what_was_edited_and_asked_and_not_by_case_id():
    """Two runs of other limits: case "0" of one is case "9" of the other."""
    best = reliability("best", [1.0] * 10)
    other = reliability("other", [0.0] * 10)
    renamed = [one.model_copy(update={"case_id": f"{9 - i}"}) for i, one in enumerate(other)]
    tables = [method_table([*best, *found]) for found in (other, renamed)]
    assert tables[0].loc["other", ("Rel", "EM")] == tables[1].loc["other", ("Rel", "EM")]
    foreign = [
        record(str(i), {REL: (asked(0, 0, image=f"other {i}.png"),)}, editor="other")
        for i in range(10)
    ]
    assert method_table([*best, *foreign]).loc["other", ("Rel", "EM")].p_to_best is None


def test_a_thousand_edits_of_seven_methods_make_a_table_in_seconds():
    """The clusters of every column and pair are found in near linear time."""
    records = many_records(7 * 1000)
    begun = time.process_time()
    method_table(records)
    assert time.process_time() - begun < 10


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


def rows_of(**scores):
    return [r for editor, found in scores.items() for r in reliability(editor, found)]


def test_only_values_that_a_paired_test_cannot_tell_from_the_best_are_marked_so():
    best, close, far = [1.0] * 20, [1.0] * 18 + [0.0] * 2, [1.0] * 8 + [0.0] * 12
    table = method_table(rows_of(base=far, best=best, close=close, far=far))
    for name in ("tok", "EM"):
        assert [cell.tied for cell in cells(table)["Rel", name]] == [False, False, True, False]
        assert [cell.best for cell in cells(table)["Rel", name]] == [False, True, False, False]


def test_the_p_values_of_a_column_are_corrected_together():
    """6 of 6 discordant edits: p = 2 / 2^6 alone, twice that with another as far away."""
    best, worse = [1.0] * 10, [1.0] * 4 + [0.0] * 6
    alone = method_table(rows_of(best=best, worse=worse)).loc["worse", ("Rel", "EM")]
    among = method_table(rows_of(best=best, worse=worse, other=worse)).loc["worse", ("Rel", "EM")]
    assert alone.p_to_best == pytest.approx(2 / 2**6)
    assert among.p_to_best == pytest.approx(4 / 2**6)
    assert alone.p_to_best < 0.05 < among.p_to_best


def test_methods_without_a_common_edit_are_not_tested():
    other = [record(f"x{i}", {REL: (asked(0, 0),)}, editor="other") for i in range(3)]
    table = method_table([*reliability("best", [1.0] * 3), *other])
    assert table.loc["other", ("Rel", "EM")].p_to_best is None
    assert not cells(table)["Rel", "EM"][1].tied


def test_costs_are_median_and_95th_percentile_seconds_memory_and_parameters():
    records = [
        record(str(i), {REL: (asked(1, 1),)}, seconds=i, memory=i * 10**9, parameters=1000 * i)
        for i in range(101)
    ]
    other = record("0", {REL: (asked(1, 1),)}, editor="mend")
    table = method_table([*records, other])
    shown = {name: [cell.value for cell in column] for (_, name), column in cells(table).items()}
    assert shown["s/edit"] == ["50.00", "1.00"]
    assert shown["p95 s"] == ["95.00", "1.00"]
    assert shown["peak GB"] == ["100.00", "0.00"]
    assert shown["params"] == ["100k", "–"]
    assert not cells(table)["cost", "params"][0].best


def test_generation_columns_are_those_that_were_measured():
    said = generation(contains=1.0, exact=0.0, rouge_l=0.5)
    same = generation(contains=0.0, exact=0.0, rouge_l=0.0, unchanged=1.0, fluency=4.5)
    probes = {
        REL: (asked(1, 1, generation_post=said),),
        LOC: (kept(1, 1, generation_post=same),),
    }
    table = method_table([record(str(i), probes) for i in range(3)], columns="generation")
    means = {c: cell.mean for c, cell in table.loc["ft"].items() if c[0] in ("Rel", "I-Loc")}
    assert means == {
        ("Rel", "contains"): 100.0,
        ("Rel", "exact"): 0.0,
        ("Rel", "ROUGE-L"): 50.0,
        ("I-Loc", "same"): 100.0,
        ("I-Loc", "fluency"): 4.5,
    }


def test_columns_that_no_record_or_only_some_records_hold_are_refused():
    with pytest.raises(DataError, match="none of the scores of --columns generation"):
        method_table(reliability("ft", [1.0]), columns="generation")
    said = record("1", {REL: (asked(1, 1, generation_post=generation()),)})
    with pytest.raises(DataError, match="has no generation/contains, as 1 of 2 edits"):
        method_table([said, record("2", {REL: (asked(1, 1),)})], columns="generation")
    with pytest.raises(UnknownNameError, match="Did you mean 'locality'"):
        method_table([said], columns="localty")


def test_locality_columns_hold_every_variant_and_less_kl_is_better():
    def moved(kl):
        asked_ = kept(1, 1)
        assert asked_.locality is not None
        return asked_.model_copy(update={"locality": asked_.locality.model_copy(update={"kl": kl})})

    table = method_table(
        [
            record(str(i), {REL: (asked(1, 1),), LOC: (moved(kl),)}, editor=editor)
            for editor, kl in (("near", 0.1), ("far", 0.9))
            for i in range(3)
        ],
        columns="locality",
    )
    names = ["tok", "EM", "top-1 all", "top-10 ranks", "top-10 set", "KL"]
    assert [name for group, name in table.columns if group == "I-Loc"] == names
    assert [cell.best for cell in cells(table)["I-Loc", "KL"]] == [True, False]
    assert cells(table)["I-Loc", "KL"][0].value == "0.1"


def test_records_of_a_file_make_the_table_of_their_means(tmp_path):
    records = many_records(500)
    (tmp_path / RECORDS).write_text("".join(f"{r.model_dump_json()}\n" for r in records))
    read = read_records(tmp_path)
    assert read == records
    table = method_table(read)
    for method in table.index:
        row = table.map(float).loc[method].to_dict()
        mine = [r.probes[REL][0].post for r in records if r.editor == method]
        assert row["", "n"] == len(mine) == 100
        assert row["Rel", "tok"] == pytest.approx(sum(s.token_accuracy for s in mine))
        assert row["Rel", "EM"] == pytest.approx(sum(s.exact_match for s in mine))
    assert render(table, "latex").count("method ") == 5 * 2  # scores, and costs
