"""Plots: three, as SVG and PNG, the same bytes for the same records."""

from itertools import pairwise

import matplotlib
import pytest
from made_records import LOC, REL, asked, kept, record
from PIL import Image

from mmedit.errors import DataError, RunError
from mmedit.report.render.plots import _length_bins, looks_of, write_plots


@pytest.fixture(scope="module")
def records():
    return [
        record(
            str(i),
            {
                REL: (asked(share, share == 1, image=f"{i}.png", n_tokens=1 + i % 3),),
                LOC: (kept(1 - share / 2, share < 1),),
            },
            editor=editor,
        )
        for editor, share in (("base", 0.0), ("FT-L", 0.5), ("MEND (runs/x)", 1.0))
        for i in range(12)
    ]


def test_three_plots_are_written_as_svg_and_png(records, tmp_path):
    written = write_plots(records, tmp_path / "new")
    assert sorted(path.name for path in written) == [
        f"{name}.{ending}"
        for name in ("lengths", "splits", "tradeoff")
        for ending in ("png", "svg")
    ]
    for path in written:
        if path.suffix == ".png":
            with Image.open(path) as image:
                assert min(image.size) > 400


def test_the_same_records_give_the_same_svg_without_a_date(records, tmp_path):
    once, again = (write_plots(records, tmp_path / name) for name in ("a", "b"))
    for first, second in zip(once, again, strict=True):
        if first.suffix == ".svg":
            assert first.read_bytes() == second.read_bytes()
            assert "<dc:date>" not in first.read_text()


def test_records_without_locality_have_no_trade_off(tmp_path):
    records = [record(str(i), {REL: (asked(1, 1),)}) for i in range(3)]
    assert {path.stem for path in write_plots(records, tmp_path)} == {"splits", "lengths"}


def test_answers_of_many_lengths_are_binned_without_gap_or_overlap():
    assert _length_bins([1, 2, 2, 4]) == [(1, 1), (2, 2), (4, 4)]
    bins = _length_bins(range(1, 101))
    assert len(bins) == 8
    assert (bins[0][0], bins[-1][1]) == (1, 100)
    assert all(a[1] + 1 == b[0] for a, b in pairwise(bins))


def test_a_folder_that_cannot_be_made_is_named(records, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot make the folder"):
        write_plots(records, tmp_path / "file")


def test_records_without_reliability_are_plotted_as_far_as_they_go(tmp_path):
    local = record("2", {LOC: (kept(1, 1),)})
    some = write_plots([record("1", {REL: (asked(1, 1),)}), local], tmp_path / "some")
    assert {path.stem for path in some} == {"tradeoff", "splits", "lengths"}
    assert {path.stem for path in write_plots([local], tmp_path / "none")} == {"splits"}


def test_records_without_any_probe_are_refused_before_anything_is_drawn(tmp_path):
    with pytest.raises(DataError, match="the records have none of the scores"):
        write_plots([record("1", {})], tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_plot_says_what_was_measured_and_on_how_many_edits(records, tmp_path):
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        paths = write_plots(records, tmp_path, title="blip2, evqa")
    for path in paths:
        if path.suffix == ".svg":
            assert "blip2, evqa, n = 12" in path.read_text()


def test_base_models_of_several_runs_differ_in_colour_and_marker():
    looks = looks_of(["base (x)", "ft", "base (y)"])
    assert list(looks) == ["base (x)", "ft", "base (y)"]
    assert len({look.colour for look in looks.values()}) == 3
    assert len({look.marker for look in looks.values()}) == 3
