"""Searches of settings with the embedded VLM."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas
import pytest

from mmedit.cases import Split, image_name
from mmedit.config import load_editor, read_cases
from mmedit.config_files import Block
from mmedit.datasets.easyvqa import cases as easyvqa
from mmedit.datasets.easyvqa.pictures import known_pictures
from mmedit.errors import ConfigError, DivergedError, RunError
from mmedit.records.store import read_manifest
from mmedit.suite import RunOptions, prepare
from mmedit.tune import search as search_module
from mmedit.tune.search import run_search
from mmedit.tune.table import read_table

BLOCK = Block(editors=("ft",), dataset="easyvqa", limit=3)
GRID = {"lr": [1e-6, 1e-2], "steps": [1]}
FAST = RunOptions(generate=False, batch_size=8)


def search(folder: Path, grid=GRID, block=BLOCK, options=FAST, **more):
    return run_search(block, grid, folder, options=options, **more)


def folders(folder: Path) -> list[str]:
    return sorted(one.name for one in folder.iterdir() if one.is_dir())


def scores(folder: Path) -> pandas.DataFrame:
    """The table of a search without its times."""
    return pandas.read_csv(folder / "table.csv").drop(columns=["s/edit", "train s"])


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished search of two points."""
    folder = tmp_path_factory.mktemp("search") / "ft"
    search(folder)
    return folder


@pytest.fixture
def few_training_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let easy-VQA have 30 pictures to train on instead of 3,227."""

    def few(split: Split):
        return known_pictures(split)[: 30 if split == "train" else None]

    monkeypatch.setattr(easyvqa, "known_pictures", few)


def test_every_point_is_a_run_folder_and_the_best_one_comes_first(done):
    assert len(folders(done)) == 2
    table = read_table(done)
    assert table.best is not None
    assert table.best.settings == {"lr": "0.01", "steps": "1"}
    assert [one.mean.n for one in table.points] == [3, 3]
    written = (done / "table.md").read_text()
    assert "3 validation cases of easyvqa" in written
    assert "All 2 points of the grid." in written
    assert "looks better than it is" in written


def test_settings_are_chosen_on_training_cases_and_the_runs_say_so(done):
    expected = {case.id for case in read_cases("easyvqa", "train", {}, limit=3)}
    for name in folders(done):
        records = (done / name / "records.jsonl").read_text().splitlines()
        assert {json.loads(line)["case_id"] for line in records} == expected
        assert read_manifest(done / name).run.split == "validation"
        assert "Measured on validation cases" in (done / name / "table.md").read_text()


def test_the_best_settings_are_a_file_that_names_an_editor(done):
    editor = load_editor(done / "best.yaml", "embedded")
    assert editor.config == load_editor("ft", "embedded", lr=1e-2, steps=1).config
    assert editor.label == "FT-M"
    assert load_editor(done / "best.yaml", "embedded", steps=4).config.steps == 4


def test_a_search_that_was_stopped_goes_on_and_ends_with_the_same_table(done, tmp_path):
    folder = tmp_path / "ft"

    def stop(task: str, done: int, total: int, figures: str) -> None:
        if task == "measuring FT-M" and len(list(folder.glob("*/table.md"))) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(folder, progress=stop)
    [finished] = folder.glob("*/table.md")
    kept = (finished.parent / "manifest.json").stat().st_mtime_ns
    table = search(folder)
    assert (finished.parent / "manifest.json").stat().st_mtime_ns == kept
    assert len(table.points) == 2
    pandas.testing.assert_frame_equal(scores(folder), scores(done))


def test_a_finished_search_is_read_again_without_the_vlm(done, monkeypatch):
    monkeypatch.setattr(search_module, "load_vlm_for", None)
    written = (done / "table.md").read_bytes()
    search(done)
    assert (done / "table.md").read_bytes() == written


def test_a_search_may_grow_by_points(done, tmp_path):
    folder = shutil.copytree(done, tmp_path / "ft")
    table = search(folder, {"lr": [1e-6, 1e-3, 1e-2], "steps": [1]})
    assert len(table.points) == 3


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"grid": {"lr": [1e-2], "steps": [1]}}, "another grid: it has the point lr=1e-06, steps"),
        (
            {"block": BLOCK.model_copy(update={"limit": 2})},
            "with limit=3, and this one has limit=2",
        ),
        ({"block": Block(editors=("ft-l",), limit=3)}, "with editor=ft, and this one has editor=f"),
        ({"options": RunOptions(generate=False, seed=1)}, "with seed=0, and this one has seed=1"),
    ],
)
def test_a_folder_takes_no_other_search(done, more, message):
    with pytest.raises(RunError, match=message):
        search(done, **more)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"grid": {"lr": [1e-3], "stesp": [1]}}, "unknown key 'stesp'. Did you mean 'steps'?"),
        ({"grid": {"lr": [1e-3, -1]}}, "lr: Input should be greater than 0"),
        ({"grid": {"lr": []}}, "expected a list of at least one"),
        ({"options": RunOptions(overrides=("ft.lr=1",))}, "lr is in the grid, and is set for all"),  # pyright: ignore
        ({"block": Block(editors=("ft", "ike"))}, "a search has one editor; here are ft, ike"),
        ({"points": 0}, "points is 0; expected a whole number from 1"),
    ],
)
def test_all_points_are_checked_before_anything_is_made(tmp_path, more, message):
    with pytest.raises(ConfigError, match=message):
        search(tmp_path / "x", **more)
    assert not (tmp_path / "x").exists()


@pytest.mark.usefixtures("few_training_cases")
def test_training_leaves_out_the_validation_cases(tmp_path):
    block = Block(editors=("ike",), limit=4, split="validation")
    plan = prepare("x", block, tmp_path / "x", FAST)
    trained = plan.training_cases()
    assert len(plan.cases) == 4
    assert len(trained) == 24 - 4
    for of in (lambda case: case.id, lambda case: image_name(case.request)):
        assert not {of(case) for case in trained} & {of(case) for case in plan.cases}


@pytest.mark.usefixtures("few_training_cases")
def test_validation_cases_that_leave_nothing_to_train_on_are_refused(tmp_path):
    block = Block(editors=("ike",), limit=24)
    with pytest.raises(ConfigError, match="leave none of the training cases of easyvqa"):
        search(tmp_path / "x", {"k": [1]}, block)


@pytest.mark.usefixtures("few_training_cases")
def test_points_that_differ_after_fitting_share_what_was_fitted(tmp_path):
    chosen = [(1, "text"), (2, "text"), (1, "image")]
    block = Block(editors=("ike",), limit=2)
    grid = {"points": [{"k": k, "retrieval": retrieval} for k, retrieval in chosen]}
    table = search(tmp_path / "x", grid, block)
    assert len(list((tmp_path / "x").glob("*/editors"))) == 2
    assert len(table.points) == 3
    assert all(one.training_seconds is not None for one in table.points)
    configs = [m.config["IKE"] for m in table.manifests if m is not None]
    assert {(c["k"], c["retrieval"]) for c in configs} == set(chosen)  # pyright: ignore


def test_a_training_that_diverges_is_noted_and_not_tried_again(tmp_path, monkeypatch):
    run, tried = search_module.run_block, []

    def diverge(plan, reusable, *, progress):
        tried.append(plan.name)
        if len(tried) == 1:
            raise DivergedError("step 3: loss nan")
        return run(plan, reusable, progress=progress)

    monkeypatch.setattr(search_module, "run_block", diverge)
    for _ in range(2):
        table = search(tmp_path / "x")
        assert table.best is not None
        assert table.points[-1].failure == "training diverged: step 3: loss nan"
        assert "Not ranked: lr=1e-06, steps=1" in (tmp_path / "x" / "table.md").read_text()
    assert len(tried) == 2
