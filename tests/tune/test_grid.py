"""Grids: from lists of values to points."""

from __future__ import annotations

import pytest

from mmedit.errors import ConfigError
from mmedit.settings import Overrides
from mmedit.tune.grid import MAX_NAME, folder_name, label_of, points_of, read_grid, subset


def points(*written: str, editor: str = "ft"):
    return points_of(read_grid(written), editor)


def test_every_value_meets_every_other_and_the_last_list_is_fastest():
    assert [label_of(point) for point in points("lr=1e-4,1e-3", "steps=1,2")] == [
        "lr=0.0001, steps=1",
        "lr=0.0001, steps=2",
        "lr=0.001, steps=1",
        "lr=0.001, steps=2",
    ]


@pytest.mark.parametrize("key", ["lr", "editor.lr", "ft.lr"])
def test_a_setting_may_be_written_short_with_its_part_or_with_its_editor(key):
    assert points(f"{key}=1e-4") == (("editor.lr=0.0001",),)


def test_a_number_that_is_written_in_two_ways_is_one_point():
    assert points("lr=1e-3,0.001,1.0e-3") == (("editor.lr=0.001",),)


def test_settings_of_a_file_that_go_together_are_combined_with_its_lists(tmp_path):
    file = tmp_path / "grid.yaml"
    file.write_text("lr: [1e-4, 1e-3]\npoints: [{where: vision, steps: 5}, {where: language}]\n")
    assert [label_of(point) for point in points(str(file))] == [
        "lr=0.0001, where=vision, steps=5",
        "lr=0.0001, where=language",
        "lr=0.001, where=vision, steps=5",
        "lr=0.001, where=language",
    ]


@pytest.mark.parametrize(
    "value", [1e-5, 3, True, None, "vision", "null", "a: b", "[", "é", ["a", "b"], {"steps": 3}]
)
def test_a_point_sets_the_very_value_of_the_grid(value):
    [point] = points_of({"x": [value]}, "ft")
    assert Overrides.parse(point).of("editor") == {"x": value}


def test_points_are_drawn_by_the_seed_and_a_larger_number_adds_to_them():
    whole = points("lr=1e-5,1e-4,1e-3,1e-2", "steps=1,2,3")
    few, more = subset(whole, 4, 0), subset(whole, 7, 0)
    assert len(set(few)) == 4
    assert set(few) < set(more) < set(whole)
    assert few == subset(whole, 4, 0) != subset(whole, 4, 1)
    assert list(more) == [point for point in whole if point in more]
    assert subset(whole, None, 0) == subset(whole, 99, 0) == whole


def test_every_point_has_a_folder_of_its_own():
    values = ["a/b", "a_b", "a\nb", "é", "x" * 300, "x" * 301]
    names = [folder_name(point) for point in points_of({"v": values}, "ft")]
    assert len(set(names)) == len(values)
    assert all("/" not in name and "\n" not in name for name in names)
    assert max(map(len, names)) <= MAX_NAME + 9


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (["lr"], "neither of the form setting=value,value"),
        (["=1"], "neither of the form setting=value,value"),
        (["gone.yaml"], "nor a YAML file"),
        (["lr="], "--grid lr: the values are \\[\\]; expected a list of at least one"),
        (["lr=1", "lr=2"], "lr is given twice; write all its values in one list"),
        (["lr=1", "editor.lr=2"], "the grid sets lr twice"),
        (["lr=[1"], "not valid YAML"),
        (["points=1"], "expected settings that go together"),
        (["vlm.dtype=float16,float32"], "set vlm.dtype for all points with --set"),
        (["batch.k=1,2"], "set batch.k for all points"),
        (["mend.lr=1"], "is for --editor mend; here the editor is ft"),
        ([f"{a}={','.join(map(str, range(100)))}" for a in "abc"], "the grid has 1,000,000 points"),
    ],
)
def test_a_faulty_grid_is_refused(written, message):
    with pytest.raises(ConfigError, match=message):
        points(*written)


@pytest.mark.parametrize("grid", [{}, None, [1], {"lr": 1e-3}, {"lr": "1e-3"}])
def test_a_grid_in_python_is_lists_by_setting(grid):
    with pytest.raises(ConfigError, match="expected a list"):
        points_of(grid, "ft")


def test_too_many_points_are_refused_unless_some_are_drawn():
    whole = points(f"a={','.join(map(str, range(2000)))}")
    with pytest.raises(ConfigError, match="2,000 points are to be measured"):
        subset(whole, None, 0)
    assert len(subset(whole, 5, 0)) == 5
