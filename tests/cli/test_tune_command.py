"""`mmedit tune` as a user types it."""

from __future__ import annotations

import pytest

SMALL = ("--limit", 2, "--batch-size", 8)


def test_a_search_prints_its_table_and_the_next_command(mmedit_, tmp_path):
    grid = tmp_path / "grid.yaml"
    grid.write_text("lr: [1e-6, 1e-3, 1e-2]\n")
    out = tmp_path / "ft"
    shown = mmedit_(
        "tune", "--editor", "ft", "--dataset", "easyvqa", "--grid", grid,
        "--grid", "editor.steps=1", "--points", 2, "--out", out, *SMALL,
    )  # fmt: skip
    assert shown.code == 0, shown.err
    assert "point 2 of 2" in shown.err
    assert "best" in shown.out
    assert "2 of the grid's 3 points, drawn with seed 0" in shown.out
    assert f"mmedit bench --vlm embedded --editor {out}/best.yaml" in shown.out
    assert sorted(one.name for one in out.iterdir() if one.is_file()) == [
        "best.yaml", "search.json", "table.csv", "table.md",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--grid", "lrr=1e-3"), "unknown key 'lrr'. Did you mean 'lr'?"),
        (("--grid", "lr="), "--grid lr: the values are []; expected a list of at least one"),
        (("--grid", "lr"), "neither of the form setting=value,value"),
        (("--grid", "lr=1,-1"), "greater than 0"),
        (("--grid", "lr=1e-3", "--set", "editor.lr=1"), "lr is in the grid, and is set for all"),
        (
            ("--grid", "lr=1e-3", "--set", "generation.fluency_tokens=9"),
            "no effect on this command",
        ),
        (("--grid", "lr=1e-3", "--mode", "batc"), "Did you mean 'batch'?"),
        (("--grid", "lr=1e-3", "--editor", "ftt"), "Did you mean 'ft'?"),
        ((), "Missing option '--grid'"),
    ],
)
def test_a_faulty_search_is_one_message_before_anything_is_made(
    mmedit_, tmp_path, arguments, message
):
    shown = mmedit_("tune", "--out", tmp_path / "x", *arguments)
    assert shown.code == 2
    assert message in shown.err
    assert not (tmp_path / "x").exists()
