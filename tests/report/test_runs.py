"""Tables over runs: rows of one table may be compared, and every record is of the run."""

import io
import json

import pytest
from made_records import REL, asked, record, reliability
from rich.console import Console
from run_folders import BATCH, SEQUENTIAL, edits, retested, write_run

from mmedit.errors import DataError, UnknownNameError
from mmedit.records.schema import RunSettings
from mmedit.records.store import RECORDS, read_run
from mmedit.report.comparison import compare
from mmedit.report.methods import matched_methods
from mmedit.report.render import render_all
from mmedit.report.render.terminal import comparison_view, tables_view
from mmedit.report.run_tables import run_table, run_tables
from mmedit.report.runs import read_runs
from mmedit.report.scores import by_editor


def append(folder, *records):
    with (folder / RECORDS).open("a") as file:
        file.writelines(f"{one.model_dump_json()}\n" for one in records)


def two(editor="ft", **fields):
    return edits(editor, [1.0, 0.0], **fields)


def test_a_record_that_is_there_twice_is_refused_with_both_rows(tmp_path):
    run = write_run(tmp_path, *two("base"), *two())
    append(run, two()[1])
    with pytest.raises(DataError, match=r"row 5: the record of ft, case '1' is in row 4 already"):
        read_runs([run])
    with pytest.raises(DataError, match="row 5"):
        matched_methods(str(run), str(run))


other = record("0", {REL: (asked(1, 1, image="other.png"),)}, editor="ike")


@pytest.mark.parametrize(
    ("foreign", "reason"),
    [
        (two("mend")[0], "the editor is 'mend', and the run has base, ft, ike"),
        (two("ike", seed=1)[0], "the seed is 1, and the run has seed 0"),
        (edits("ike", [1.0] * 3)[2], "the base model was not measured on case '2'"),
        (other, "reliability of case '0' asks something else than in row 1"),
        (two("ike")[0].model_copy(update={"edits": 2, "place": 2}), "it is tested after 2 edits"),
        (two("ike")[0].model_copy(update={"place": 2}), "its edit has place 2 of 1"),
        (two("ike")[0].model_copy(update={"order": 1}), "it is of order 1, and the run has 1"),
        (retested("ike", 1)[0], "it is a test of a sequence"),
    ],
)
def test_a_record_of_another_run_is_refused_with_its_row(tmp_path, foreign, reason):
    run = write_run(tmp_path, *two("base"), *two(), editors=("ft", "ike"))
    append(run, foreign)
    with pytest.raises(DataError, match=rf"row 5: {reason}.*delete the rows of that run"):
        read_run(run)


def test_rows_of_several_runs_have_labels_of_their_own_and_one_base(tmp_path):
    x = write_run(tmp_path / "x", *edits("base", [0.0]), *edits("a", [1.0]), training={"a": 3.0})
    y = write_run(tmp_path / "y", *edits("base", [0.0]), *edits("a", [1.0]))
    [read] = read_runs([x, y, x])
    assert list(read.origins) == ["base", f"a ({x})", f"a ({y})"]
    assert read.training_seconds == {f"a ({x})": 3.0}
    assert read.title == "vlm, data"


def test_of_two_base_models_the_one_on_more_edits_stays_and_both_if_they_differ(tmp_path):
    few = write_run(tmp_path / "few", *edits("base", [0.0]), *edits("a", [1.0]))
    more = write_run(tmp_path / "more", *edits("base", [0.0, 1.0]), *edits("b", [1.0, 1.0]))
    other = write_run(tmp_path / "other", *edits("base", [1.0]), *edits("c", [1.0]))
    [read] = read_runs([few, more, other])
    assert list(read.origins) == ["a", f"base ({more})", "b", f"base ({other})", "c"]


def test_a_label_that_already_looks_like_one_with_its_run_is_named_with_its_run_too(tmp_path):
    x = write_run(tmp_path / "x", *edits("a", [1.0]), *edits(f"a ({tmp_path / 'y'})", [1.0]))
    y = write_run(tmp_path / "y", *edits("a", [0.0]))
    [read] = read_runs([x, y])
    assert list(read.origins) == [f"a ({x})", f"a ({y}) ({x})", f"a ({y})"]


def test_runs_of_different_modes_vlms_datasets_or_cases_make_tables_of_their_own(tmp_path):
    base, ft = edits("base", [0.0]), edits("ft", [1.0])
    hashes = {"vlm": "v", "dataset": "d"}
    runs = [
        write_run(tmp_path / name, *base, *ft, **changes)
        for name, changes in {
            "first": {"hashes": hashes},
            "again": {"hashes": hashes, "vlm": "the/same/weights"},
            "batch": {"hashes": hashes, "mode": BATCH},
            "vlm": {"hashes": hashes | {"vlm": "other"}},
            "dataset": {"hashes": hashes | {"dataset": "other"}, "limit": 5},
        }.items()
    ]
    read = read_runs(runs)
    assert [list(one.origins) for one in read] == [
        ["base", f"ft ({runs[0]})", f"ft ({runs[1]})"],
        *[["base", "ft"]] * 3,
    ]
    titles = [one.title for one in read]
    assert len(set(titles)) == 4
    assert titles[1] == "vlm, data, batch"
    assert titles[3] == "vlm, data, limit 5, seed 0"


@pytest.mark.parametrize("format", ["md", "latex", "html", "csv", "json"])
def test_every_format_shows_each_table_with_its_title_and_notes(tmp_path, format):
    x = write_run(tmp_path / "x", *two("base"), *two("ft"))
    y = write_run(tmp_path / "y", *two("base"), *two("ft"), mode=BATCH)
    tables = run_tables(read_runs([x, y]))
    text = render_all(tables, format)
    assert "vlm, data, batch" in text
    if format == "csv":
        first, *_ = text.splitlines()
        assert first.startswith("editor,split,metric,mean,low,high,n,")  # as of one table
        assert first.endswith(",table,vlm,dataset,mode")
    else:
        assert text.count("10 at a time") == 1
    if format == "json":
        assert [one["mode"] for one in json.loads(text)["tables"]] == ["independent", "batch"]
    alone = render_all(tables[:1], format)
    assert ("vlm, data" in alone) == (format in ("csv", "json"))


def test_a_terminal_shows_each_table_under_its_title(tmp_path):
    x = write_run(tmp_path / "[/b]", *two("base"), *two("ft"))
    y = write_run(tmp_path / "y", *two("base"), *two("ft"), mode=BATCH)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(tables_view(run_tables(read_runs([x, y]))))
    text = console.export_text()
    assert "vlm, data\n" in text
    assert "vlm, data, batch\n" in text


def test_a_table_of_an_unfinished_sequence_stops_at_the_last_checkpoint_of_all_rows(tmp_path):
    run = write_run(
        tmp_path,
        *retested("base", 4, right=0.0),
        *retested("ft", 2),
        *retested("ft", 4),
        *retested("mend", 2),
        *retested("mend", 4)[:3],  # being tested
        *retested("ike", 2)[:1],
        mode=SEQUENTIAL,
        cases=4,
    )
    [read] = read_runs([run])
    shown = {label: len(found) for label, found in by_editor(read.records).items()}
    assert shown == {"base": 2, "ft": 2, "mend": 2}
    note, left_out = read.notes
    assert "tested after 2 of 4 edits, the last checkpoint that all rows have." in note
    assert left_out == "Left out, as they have not reached this checkpoint: ike."
    assert run_table(read).loc["base", ("", "n")] == 2


def test_a_finished_sequence_says_that_it_was_tested_after_the_last_edit(tmp_path):
    run = write_run(tmp_path, *retested("base", 4), *retested("ft", 4), mode=SEQUENTIAL, cases=4)
    [read] = read_runs([run])
    assert read.notes == ("Edits were made one after another, and tested after the last one.",)


def test_with_several_orders_the_base_model_is_shown_on_the_cases_of_the_methods(tmp_path):
    mode = SEQUENTIAL | {"orders": 2}
    run = write_run(
        tmp_path,
        *retested("base", 4),
        *retested("ft", 2),
        *retested("ft", 4),
        *retested("ft", 2, order=1, cases="dabc"),
        *retested("ft", 4, order=1, cases="dabc")[:3],
        mode=mode,
        cases=4,
    )
    for read in (*read_runs([run]), *read_runs([run], edits=2)):
        rows = by_editor(read.records)
        assert [r.case_id for r in rows["base"]] == ["a", "b", "d"]
        assert [r.case_id for r in rows["ft"]] == ["a", "b", "d", "a"]
    with pytest.raises(DataError, match="not tested after 4 edits: its checkpoints are 2"):
        read_runs([run], edits=4)


def test_a_sequence_without_a_finished_checkpoint_shows_the_base_model_alone(tmp_path):
    run = write_run(tmp_path, *retested("base", 4), *retested("ft", 2)[:1], mode=SEQUENTIAL)
    [read] = read_runs([run])
    assert list(by_editor(read.records)) == ["base"]
    assert read.notes[-1].endswith("have not reached this checkpoint: ft.")


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


def test_methods_of_different_modes_are_compared_only_when_told_and_both_are_named(tmp_path):
    x = write_run(tmp_path / "x", *edits("a", [1.0]))
    y = write_run(tmp_path / "y", *edits("a", [1.0]), mode=BATCH)
    with pytest.raises(DataError, match=r"in mode independent, those of .* batch \{\"k\": 10\}"):
        matched_methods(f"{x}:a", f"{y}:a")
    [(first, second)] = matched_methods(f"{x}:a", f"{y}:a", across_modes=True)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(comparison_view(compare(first, second), show=0))
    text = console.export_text()
    assert f"A: a in {x} (vlm, data)" in text
    assert f"B: a in {y} (vlm, data, batch)" in text


def test_two_sequences_are_compared_at_the_last_checkpoint_of_both(tmp_path):
    x = write_run(tmp_path / "x", *retested("a", 2), *retested("a", 4), mode=SEQUENTIAL)
    y = write_run(tmp_path / "y", *retested("a", 2), *retested("a", 4)[:3], mode=SEQUENTIAL)
    [(first, second)] = matched_methods(str(x), str(y))
    assert {r.edits for r in [*first.records, *second.records]} == {2}
    z = write_run(tmp_path / "z", *retested("a", 2)[:1], mode=SEQUENTIAL)
    with pytest.raises(DataError, match="has not reached a checkpoint"):
        matched_methods(str(x), str(z))


def test_the_footnote_says_that_seconds_are_of_batches(tmp_path):
    records = [r.model_copy(update={"batch": 25}) for r in reliability("ft", [1.0, 0.0])]
    [table] = run_tables(read_runs([write_run(tmp_path / "a", *records)]))
    assert "computed in batches of 25: s/edit is the time of a batch" in render_all([table], "md")
    mixed = write_run(tmp_path / "b", *records, *reliability("ike", [1.0, 0.0]))
    [table] = run_tables(read_runs([mixed]))
    assert "in batches of up to 25 (ft 25, ike 1)" in render_all([table], "md")
    alone = write_run(tmp_path / "c", *reliability("ike", [1.0, 0.0]))
    assert "batches" not in render_all(run_tables(read_runs([alone])), "md")


def test_the_last_smaller_batch_is_named(tmp_path):
    run = write_run(tmp_path, *two(), mode=BATCH, cases=23)
    assert read_runs([run])[0].notes == (
        "Edits were made 10 at a time, and tested together. The last batch has 3 edits.",
    )


@pytest.mark.parametrize(
    "mode",
    [{}, {"kind": "fast"}, {"kind": []}, {"kind": "batch", "k": 0}, {"kind": "batch", "k": "7"}],
)
def test_a_manifest_with_an_unknown_mode_is_one_error(mode):
    with pytest.raises(ValueError, match="must be"):
        RunSettings(mode=mode)


def test_a_mode_of_a_first_version_is_read_with_what_it_then_was():
    assert RunSettings(mode={"kind": "sequential"}).mode["orders"] == 1
