"""Two methods on the same edits, and the folders that they are read from."""

import io

import pytest
from made_records import LOC, REL, asked, kept, record
from rich.console import Console

from mmedit.errors import DataError, UnknownNameError
from mmedit.records.schema import RunManifest
from mmedit.records.store import RECORDS, RecordWriter, write_manifest
from mmedit.report.comparison import compare
from mmedit.report.render.terminal import comparison_view
from mmedit.report.runs import Method, Origin, matched_methods, read_runs


def edits(editor, scores, **fields):
    """One record per score, as exact match of the request and of an image-locality probe."""
    return [
        record(
            str(i),
            {
                REL: (asked(s, s, image=f"{i}.png", generated_post=f"{editor} {i}", **fields),),
                LOC: (kept(s, s, generated_pre="before", generated_post=f"{editor} {i}"),),
            },
            editor=editor,
        )
        for i, s in enumerate(scores)
    ]


def method(tmp_path, editor, scores, **fields):
    return Method(tmp_path, editor, Origin("vlm", "data"), edits(editor, scores, **fields))


BATCH = {"kind": "batch", "k": 10}


def write_run(folder, *records, dataset="data", seed=0, training=(), mode=None):
    with RecordWriter(folder / RECORDS) as writer:
        for one in records:
            writer.append(one)
    manifest = RunManifest(
        command="mmedit bench",
        versions={},
        vlm="vlm",
        dataset=dataset,
        limit=None,
        seed=seed,
        editors=tuple(dict.fromkeys(one.editor for one in records)),
        config={"run": {"mode": mode}} if mode else {},
        training_seconds=dict(training),
    )
    write_manifest(folder, manifest)
    return folder


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


def test_runs_without_a_common_edit_and_ids_of_different_edits_are_refused(tmp_path):
    a = method(tmp_path, "a", [1.0])
    other = record("x", {REL: (asked(1, 1),)})
    with pytest.raises(DataError, match="no edit in common"):
        compare(a, Method(tmp_path, "b", Origin("", ""), [other]))
    another = other.model_copy(
        update={"case_id": "0", "probes": {REL: (asked(1, 1).model_copy(update={"target": "7"}),)}}
    )
    with pytest.raises(DataError, match="case '0' is a different edit in each run"):
        compare(a, Method(tmp_path, "b", Origin("", ""), [another]))


def test_the_comparison_fits_80_columns_and_shows_no_more_edits_than_asked(tmp_path):
    a, b = method(tmp_path, "a", [1.0] * 9), method(tmp_path, "b", [0.0] * 9)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(comparison_view(compare(a, b), show=2))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert "18 questions that only one answered exactly; 2 of them:" in text
    assert text.count("expected") == 2
    assert "…" not in text


def test_a_method_is_named_by_run_and_editor_or_by_the_run_alone_if_it_has_one(tmp_path):
    x = write_run(tmp_path / "x", *edits("base", [0.0]), *edits("a", [1.0]))
    y = write_run(tmp_path / "y", *edits("a", [1.0]), *edits("b", [1.0]))
    z = write_run(tmp_path / "z", *edits("c", [1.0]))
    named = [
        [(a.editor, b.editor) for a, b in matched_methods(str(first), str(second))]
        for first, second in ((f"{x}:base", f"{y}:b"), (x, z), (x, y))
    ]
    assert named == [[("base", "b")], [("a", "c")], [("a", "a")]]
    with pytest.raises(DataError, match="to compare; write RUN:EDITOR"):
        matched_methods(str(y), str(y))
    with pytest.raises(UnknownNameError, match="There are: a, b"):
        matched_methods(f"{y}:c", str(x))


def test_rows_of_several_runs_have_labels_of_their_own_and_one_base(tmp_path):
    x = write_run(
        tmp_path / "x", *edits("base", [0.0]), *edits("a", [1.0]), training={"a": 3.0}.items()
    )
    y = write_run(tmp_path / "y", *edits("base", [0.0]), *edits("a", [1.0]))
    z = write_run(tmp_path / "z", *edits("base", [0.0]), dataset="other")
    read = read_runs([x, y, z, x])
    assert list(read.origins) == [f"base ({x})", f"a ({x})", f"a ({y})", f"base ({z})"]
    assert read.training_seconds == {f"a ({x})": 3.0}
    assert read.origins[f"base ({z})"].dataset == "other"
    assert read.title == "vlm, data; vlm, other"
    assert list(read_runs([x]).origins) == ["base", "a"]


def test_a_label_that_already_looks_like_one_with_its_run_is_named_with_its_run_too(tmp_path):
    x = write_run(tmp_path / "x", *edits("a", [1.0]), *edits(f"a ({tmp_path / 'y'})", [1.0]))
    y = write_run(tmp_path / "y", *edits("a", [0.0]))
    assert list(read_runs([x, y]).origins) == [f"a ({x})", f"a ({y}) ({x})", f"a ({y})"]


def test_runs_of_several_modes_each_have_a_base_and_notes_that_name_their_rows(tmp_path):
    x = write_run(tmp_path / "x", *edits("base", [0.0]), *edits("a", [1.0]), *edits("b", [1.0]))
    y = write_run(tmp_path / "y", *edits("base", [0.0]), *edits("a", [1.0]), mode=BATCH)
    both = read_runs([x, y])
    assert list(both.origins) == [f"base ({x})", f"a ({x})", "b", f"base ({y})", f"a ({y})"]
    assert both.origins[f"a ({y})"].mode == "batch"
    assert both.notes == (
        f"a ({x}), b: Each edit was made by itself, from the base model.",
        f"a ({y}): Edits were made 10 at a time, and tested together.",
    )
    assert read_runs([y]).notes == ("Edits were made 10 at a time, and tested together.",)
    [(first, second)] = matched_methods(f"{x}:a", f"{y}:a")
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(comparison_view(compare(first, second), show=0))
    text = console.export_text()
    assert f"A: a in {x} (vlm, data)" in text
    assert f"B: a in {y} (vlm, data, batch)" in text
