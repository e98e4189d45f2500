"""What is read from the records of a sequence: curves, forgetting, ability, collapse."""

from __future__ import annotations

import lzma
import math
import shutil
from pathlib import Path

import pytest
from made_records import LOC, REL, asked, kept, record
from made_records import not_finite as not_finite_probe

from mmedit.errors import DataError
from mmedit.records.schema import Record, RunManifest
from mmedit.records.store import PACKED, RECORDS, RecordWriter, read_records, write_manifest
from mmedit.report.columns import EXACT_MATCH
from mmedit.report.render.sequence_plots import write_sequence_plots
from mmedit.report.runs import read_runs
from mmedit.report.scores import by_editor
from mmedit.report.sequences import (
    Ability,
    abilities,
    curve,
    forgetting,
    not_finite,
    sequence_notes,
)


def made(case: str, right: float, **where) -> Record:
    probes = {REL: (asked(right, right),), LOC: (kept(right, right),)}
    return record(case, probes, editor=where.pop("editor", "FT")).model_copy(update=where)


def able(case: str, edits: int, right: float, order: int = 0) -> Record:
    where = {"test": "ability", "edits": edits, "place": 0, "order": order}
    one = kept(right, right)
    post = one.post.model_copy(update={"token_accuracy": right})
    pre = one.pre.model_copy(update={"token_accuracy": 1.0})
    one = one.model_copy(update={"pre": pre, "post": post})
    return record(case, {LOC: (one,)}, editor="FT").model_copy(update=where)


def sequence() -> list[Record]:
    """Four edits, each of which is forgotten two edits later."""
    cases = ["a", "b", "c", "d"]
    edits = [made(c, 1, edits=n, place=n) for n, c in enumerate(cases, 1)]
    gaps = [made(c, 1, edits=n + 1, place=n, test="gap") for n, c in enumerate(cases[:3], 1)]
    gaps += [made(c, 0, edits=n + 2, place=n, test="gap") for n, c in enumerate(cases[:2], 1)]
    stops = [made("a", 1, edits=1, place=1, test="checkpoint")]
    stops += [
        made(c, float(n > 2), edits=4, place=n, test="checkpoint") for n, c in enumerate(cases, 1)
    ]
    base = [
        made(c, 0, edits=4, place=n, test="checkpoint", editor="base")
        for n, c in enumerate(cases, 1)
    ]
    return [*base, *edits, *gaps, *stops]


def values(points) -> list[tuple[int, float]]:
    return [(x, cell.mean) for x, cell in points]


def test_a_curve_is_the_score_of_all_edits_at_every_checkpoint():
    mine = [r for r in sequence() if r.editor == "FT"]
    assert values(curve(mine, REL, EXACT_MATCH)) == [(1, 100), (4, 50)]


def test_forgetting_is_by_the_number_of_further_edits():
    mine = [r for r in sequence() if r.editor == "FT"]
    assert values(forgetting(mine, REL, EXACT_MATCH)) == [(0, 100), (1, 100), (2, 0)]
    assert forgetting([r for r in mine if r.test != "gap"], REL, EXACT_MATCH) == []


def test_a_table_takes_each_edit_once():
    assert {editor: len(found) for editor, found in by_editor(sequence()).items()} == {
        "base": 4,
        "FT": 4,
    }


@pytest.mark.parametrize(
    ("after", "collapsed"),
    [
        ({10: 0.9, 20: 0.6}, None),
        ({10: 0.9, 20: 0.3, 30: 0.2}, 20),
        ({10: 0.3, 20: 0.6, 30: 0.2}, 30),  # it came back in between
        ({10: 0.3, 20: 0.6}, None),
    ],
)
def test_collapse_is_less_than_half_of_the_ability_to_the_end(after, collapsed):
    assert Ability(unedited=0.9, after=after).collapsed == collapsed


def test_ability_is_by_order_and_notes_tell_of_the_first_collapse():
    records = [
        *sequence(),
        *(able(c, edits, right) for c in "xy" for edits, right in ((2, 0.9), (4, 0.1))),
        *(able(c, edits, 0.8, order=1) for c in "xy" for edits in (2, 4)),
    ]
    mine = [r for r in records if r.editor == "FT"]
    assert abilities(mine)[0].after == {2: 0.9, 4: 0.1}
    assert abilities(mine)[1].collapsed is None
    note, meaning = sequence_notes(records)
    assert note == "FT: collapsed from edit 4 on (1 of 2 orders)."
    assert meaning.startswith("Collapsed: less than half")


def test_nan_is_counted_by_edit():
    records = sequence()
    broken = made("d", 0, edits=4, place=4)
    one = broken.probes[REL][0]
    lost = one.model_copy(update={"post": one.post.model_copy(update={"log_prob": math.nan})})
    broken = broken.model_copy(update={"probes": {REL: (lost,)}})
    records = [r for r in records if r.key != broken.key] + [broken]
    assert not_finite([r for r in records if r.editor == "FT"]) == 1
    assert sequence_notes(records) == ["FT: NaN or infinite output right after 1 of 4 edits."]


@pytest.mark.parametrize("old", [False, True], ids=["NaN in the record", "0 in an old record"])
def test_outputs_that_are_nan_are_in_no_curve_and_no_ability_and_count_as_collapse(old, tmp_path):
    records = sequence()
    for place, case in enumerate("abcdefgh", 1):
        records += [lost(made(case, 1, edits=8, place=place, test="checkpoint"), old=old)]
    for place, case in enumerate("abcd", 5):
        records += [lost(made(case, 1, edits=8, place=place), old=old)]
    records += [able("x", 2, 0.9), able("y", 2, 0.9), able("x", 4, 0.9)]
    records += [lost(able("y", 4, 0.9), old=old), lost(able("z", 4, 0.9), old=old)]
    records += [lost(able(c, 8, 0.9), old=old) for c in "xyz"]
    mine = [r for r in records if r.editor == "FT"]
    points = curve(mine, REL, EXACT_MATCH)
    assert values(points[:2]) == [(1, 100), (4, 50)]
    assert (points[2][0], points[2][1].n) == (8, 0)
    assert math.isnan(points[2][1].mean)
    [ability] = abilities(mine).values()
    assert [ability.after[edits] for edits in (2, 4)] == [0.9, 0.9]
    assert math.isnan(ability.after[8])
    assert ability.collapsed == 4  # two of three probes are lost
    [note, _] = sequence_notes(records)
    assert note == (
        "FT: NaN or infinite output right after 4 of 8 edits, collapsed from edit 4 on."
    )
    assert len(write_sequence_plots(mine, tmp_path)) == 4


def lost(one: Record, *, old: bool) -> Record:
    probes = {p: tuple(not_finite_probe(a, old=old) for a in one.probes[p]) for p in one.probes}
    return one.model_copy(update={"probes": probes})


def test_no_sequence_has_no_notes_and_no_curves(tmp_path: Path):
    records = [made("a", 1), made("b", 0)]
    assert sequence_notes(records) == []
    assert write_sequence_plots(records, tmp_path / "plots") == []
    assert not (tmp_path / "plots").exists()


def test_plots_are_written_and_the_same_records_give_the_same_ones(tmp_path: Path):
    records = [*sequence(), *(able("x", edits, 0.7) for edits in (2, 4))]
    first = write_sequence_plots(records, tmp_path / "one")
    again = write_sequence_plots(records, tmp_path / "two")
    names = ["sequence.svg", "sequence.png", "forgetting.svg", "forgetting.png"]
    assert [path.name for path in first] == names
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in again]


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    with RecordWriter(folder / RECORDS) as writer:
        for one in sequence():
            writer.append(one)
    manifest = RunManifest(
        command="mmedit bench", versions={}, vlm="embedded", dataset="easyvqa", limit=4, seed=0,
        editors=("FT",), training_seconds={},
        config={"run": {"mode": {"kind": "sequential", "orders": 1}}},
    )  # fmt: skip
    write_manifest(folder, manifest)
    return folder


def test_an_earlier_checkpoint_can_be_chosen(run_folder: Path):
    [read] = read_runs([run_folder], edits=1)
    assert {editor: len(found) for editor, found in by_editor(read.records).items()} == {
        "base": 1,
        "FT": 1,
    }
    assert read.notes == ("Edits were made one after another, and tested after 1 of 4 edits.",)
    with pytest.raises(DataError, match="was not tested after 3 edits: its checkpoints are 1, 4"):
        read_runs([run_folder], edits=3)


def test_packed_records_are_read(run_folder: Path):
    records = read_records(run_folder)
    with lzma.open(run_folder / PACKED, "wb") as file:
        file.write((run_folder / RECORDS).read_bytes())
    (run_folder / RECORDS).unlink()
    assert read_records(run_folder) == records
    whole = (run_folder / PACKED).read_bytes()
    (run_folder / PACKED).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="not a complete xz file"):
        read_records(run_folder)
    shutil.rmtree(run_folder)
