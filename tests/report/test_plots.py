"""Plots: three, as SVG and PNG, the same bytes for the same records."""

from itertools import pairwise

import pytest
from made_records import LOC, REL, asked, kept, record
from PIL import Image

from mmedit.errors import RunError
from mmedit.report.render.plots import _length_bins, write_plots


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
