"""`mmedit stats` as a user types it."""

from __future__ import annotations

from pathlib import Path

import pytest

import mmedit.vlm.loading
from mmedit.config import read_cases
from mmedit.editors.closed_form.statistics import questions_of, second_moments


@pytest.fixture
def _embedded(vlm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmedit.vlm.loading, "load_vlm", lambda *_, **__: vlm)
    monkeypatch.setenv("MMEDIT_HOME", str(tmp_path))


@pytest.fixture
def _no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: object, **kwargs: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(mmedit.vlm.loading, "load_vlm", load)
    monkeypatch.setenv("MMEDIT_HOME", str(tmp_path))


@pytest.mark.usefixtures("_embedded")
def test_the_command_fills_the_files_that_fitting_reads(vlm, mmedit_, tmp_path: Path):
    done = mmedit_("stats", "--limit", 8)
    assert done.code == 0, done.err
    assert "167 text tokens and 64 image tokens" in done.out
    assert "16 questions of 8 cases" in done.out
    assert str(tmp_path / "statistics") in done.out
    told: list[tuple[str, int, int]] = []

    def progress(task: str, done: int, total: int, figures: str) -> None:
        told.append((task, done, total))

    cases = read_cases("easyvqa", "train", {}, limit=8)
    questions = questions_of(vlm, cases, progress=progress)
    second_moments(vlm, questions, vlm.value_sites, progress=progress)
    assert told == [("asking the base model", 16, 16)]  # all was there


@pytest.mark.usefixtures("_embedded")
def test_layers_and_sites_are_chosen_by_number_or_by_name(vlm, mmedit_, tmp_path: Path):
    first, *_, last = vlm.value_sites
    other = first.replace("fc2", "fc1")
    folder = tmp_path / "out"
    for chosen in (("--layers", "3,0,3"), ("--site", other)):
        done = mmedit_("stats", "--limit", 2, "--out", folder, *chosen)
        assert done.code == 0, done.err
    made = {file.name.removesuffix(".safetensors") for file in folder.rglob("*.safetensors")}
    assert made == {first, last, other}


@pytest.mark.usefixtures("_no_model")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--layers", "three"), "expected numbers of layers with commas between them"),
        (("--layers", ""), "expected numbers of layers with commas between them"),
        (("--layers", "-1"), "expected numbers of layers with commas between them"),
        (("--layers", "1", "--site", "fc2"), "--layers and --site were both given"),
        (("--split", "val"), "no split named 'val'"),
        (("--dataset", "evq"), "no dataset named 'evq'"),
        (("--vlm", "embeded"), "no VLM"),
        (("--set", "editor.lr=1"), "has no effect on this command"),
        (("--set", "generation.judge=x"), "has no effect on this command"),
        (("--set", "dataset.colour=red"), "colour"),
    ],
)
def test_wrong_input_is_found_before_the_vlm_is_loaded(mmedit_, arguments, message):
    done = mmedit_("stats", *arguments)
    assert (done.code, message in done.err) == (2, True), done.err


@pytest.mark.usefixtures("_no_model")
def test_a_folder_that_cannot_be_made_is_found_before_the_vlm_is_loaded(mmedit_, tmp_path: Path):
    (tmp_path / "file").write_text("x")
    done = mmedit_("stats", "--limit", 2, "--out", tmp_path / "file" / "x")
    assert (done.code, "cannot make the folder" in done.err) == (2, True), done.err


@pytest.mark.usefixtures("_embedded")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--layers", "1,4"), "names layer 4; this VLM has 4 decoder layers, 0 to 3"),
        (("--site", "language_model.model.decoder.layers.2.fc"), "Did you mean"),
        (("--site", "language_projection"), "is not in the language model"),
    ],
)
def test_wrong_sites_are_found_before_any_question_is_answered(
    mmedit_, tmp_path: Path, arguments, message
):
    done = mmedit_("stats", "--limit", 2, *arguments)
    assert (done.code, message in done.err) == (2, True), done.err
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]
