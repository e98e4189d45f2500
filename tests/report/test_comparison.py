"""Two methods on the same edits."""

import io

import pytest
from made_records import LOC, REL, asked, kept, not_finite, record
from rich.console import Console

from mmedit.errors import DataError
from mmedit.report.comparison import compare
from mmedit.report.methods import Method
from mmedit.report.render.terminal import comparison_view
from mmedit.report.runs import Origin


def edits(editor, scores, **fields):
    """One record per score, as exact match of the request and of an image-locality probe."""
    return [
        record(
            str(i),
            {
                REL: (asked(s, s, image=f"{i}.png", generated_post=f"{editor} {i}", **fields),),
                LOC: (
                    kept(
                        s,
                        s,
                        image=f"other {i}.png",
                        generated_pre="before",
                        generated_post=f"{editor} {i}",
                    ),
                ),
            },
            editor=editor,
        )
        for i, s in enumerate(scores)
    ]


def method(tmp_path, editor, scores, **fields):
    return Method(tmp_path, editor, Origin("vlm", "data"), edits(editor, scores, **fields))


def test_the_difference_of_a_column_is_paired_tested_and_counted(tmp_path):
    """8 edits that only a got right, 2 that only b did: exact McNemar p = 0.109."""
    a = method(tmp_path, "a", [1.0] * 18 + [0.0] * 2)
    b = method(tmp_path, "b", [1.0] * 10 + [0.0] * 8 + [1.0] * 2)
    found = compare(a, b)
    row = next(r for r in found.differences if (r.heading, r.measure.name) == ("Rel", "EM"))
    assert (row.first, row.second, row.difference.mean) == (90.0, 60.0, pytest.approx(-30.0))
    assert row.difference.low < -30 < row.difference.high
    assert (row.first_only, row.second_only, row.difference.n) == (8, 2, 20)
    assert row.tested.p == pytest.approx(0.109375)
    assert row.p_holm > row.tested.p
    assert found.pairs == 20


def test_only_edits_that_both_have_are_paired_and_the_others_are_counted(tmp_path):
    a, b = method(tmp_path, "a", [1.0] * 5), method(tmp_path, "b", [1.0] * 3)
    found = compare(a, b)
    assert (found.pairs, found.unpaired) == (3, (2, 0))


def test_edits_where_they_disagree_come_with_what_each_said(tmp_path):
    a, b = method(tmp_path, "a", [1.0, 1.0]), method(tmp_path, "b", [1.0, 0.0])
    request, local = compare(a, b).disagreements
    assert (request.case, request.heading, request.prompt) == ("1", "Rel", "colour?")
    assert (request.expected, request.first, request.second) == ("red", "a 1", "b 1")
    assert request.first_is_right
    assert (local.heading, local.expected) == ("I-Loc", "before")


def as_method(tmp_path, editor, records):
    return Method(tmp_path, editor, Origin("vlm", "data"), records)


def test_runs_without_a_common_edit_are_refused_though_their_cases_have_the_same_ids(tmp_path):
    a = method(tmp_path, "a", [1.0])
    other = record("0", {REL: (asked(1, 1, image="other.png"),)})
    with pytest.raises(DataError, match="no edit in common: no request has the same prompt"):
        compare(a, as_method(tmp_path, "b", [other]))


def test_edits_are_paired_by_what_they_ask_and_not_by_the_names_of_their_cases(tmp_path):
    """Two runs of other limits: the ids are the same, and most edits are not."""
    a = edits("a", [1.0, 0.0, 1.0, 0.0])
    renamed = [
        one.model_copy(update={"case_id": f"{3 - i}"})
        for i, one in enumerate(edits("b", [1.0] * 4))
    ]
    found = compare(as_method(tmp_path, "a", a), as_method(tmp_path, "b", renamed))
    row = next(r for r in found.differences if (r.heading, r.measure.name) == ("Rel", "EM"))
    assert found.pairs == row.difference.n == 4
    assert (row.first_only, row.second_only) == (0, 2)
    assert [one.prompt for one in found.disagreements if one.heading == "Rel"] == ["colour?"] * 2


def test_an_edit_asked_something_else_is_left_out_of_that_column_alone(tmp_path):
    a, b = edits("a", [1.0] * 4), edits("b", [1.0] * 4)
    other = b[0].model_copy(update={"probes": {**b[0].probes, LOC: (kept(0, 0, prompt="size?"),)}})
    found = compare(as_method(tmp_path, "a", a), as_method(tmp_path, "b", [other, *b[1:]]))
    counts = {row.heading: row.difference.n for row in found.differences}
    assert counts == {"Rel": 4, "I-Loc": 3}
    assert (found.pairs, found.asked_otherwise) == (4, 1)
    assert "1 of those in both not asked the same" in shown(found)
    assert not found.disagreements


def test_edits_with_nan_outputs_are_counted_and_in_no_difference(tmp_path):
    a, b = edits("a", [1.0] * 4), edits("b", [1.0] * 4)
    b[1] = b[1].model_copy(
        update={"probes": {**b[1].probes, REL: (not_finite(asked(1, 1, image="1.png")),)}}
    )
    found = compare(as_method(tmp_path, "a", a), as_method(tmp_path, "b", b))
    assert found.failed == (0, 1)
    assert {row.heading: row.difference.n for row in found.differences} == {"Rel": 3, "I-Loc": 4}
    assert all(row.difference.mean == 0 for row in found.differences)
    assert "B: NaN or infinite output on 1 of 4 edits, left out of the means" in shown(found)
    assert not found.disagreements


def test_an_equal_difference_of_all_edits_is_not_certain(tmp_path):
    found = compare(method(tmp_path, "a", [1.0] * 20), method(tmp_path, "b", [0.0] * 20))
    row = next(r for r in found.differences if (r.heading, r.measure.name) == ("Rel", "tok"))
    assert row.difference.mean == -100
    assert -100 == row.difference.low < row.difference.high < -60


def shown(comparison):
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(comparison_view(comparison, show=0))
    return console.export_text()


def test_the_comparison_fits_80_columns_and_shows_no_more_edits_than_asked(tmp_path):
    a, b = method(tmp_path, "a", [1.0] * 9), method(tmp_path, "b", [0.0] * 9)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(comparison_view(compare(a, b), show=2))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert "18 questions that only one answered exactly; 2 of them:" in text
    assert text.count("expected") == 2
    assert "…" not in text
