"""Asking a base model what it knows of a dataset, and running edits of that alone."""

from __future__ import annotations

import logging
from itertools import islice
from pathlib import Path

import pytest
from made_grocery import make_grocery

import mmedit.vlm.loading
from mmedit.bench import known as bench_known
from mmedit.bench.known import find_known, warn_of_another_vlm
from mmedit.cases import Example
from mmedit.config import load_questions
from mmedit.datasets.known import Known
from mmedit.errors import DataError, RunError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_grocery(tmp_path / "grocery")


def questions_of(vlm) -> list[tuple[str, Example]]:
    """Two questions, of which the VLM answers the first right."""
    prompt = "what is the capital of France?"
    said = vlm.ask(prompt)
    answers = {"right": said, "wrong": f"not {said}"}
    return [(key, Example(prompt=prompt, target=target)) for key, target in answers.items()]


def test_an_answer_is_right_if_the_base_model_gives_all_of_it(vlm, tmp_path: Path):
    file = tmp_path / "known.json"
    known = find_known(vlm, questions_of(vlm), file, dataset="grocery")
    assert known.right == {"right": True, "wrong": False}
    assert "right" in known
    assert "wrong" not in known
    assert "never asked" not in known
    assert Known.read(file) == known
    assert known.identity == vlm.identity._asdict()


def test_all_questions_of_a_split_are_asked_in_any_batch_size(vlm, root: Path, tmp_path: Path):
    questions = [*islice(load_questions("grocery", "test", {"root": root}), 40)]
    found = [
        find_known(vlm, questions, tmp_path / f"{size}.json", dataset="grocery", batch_size=size)
        for size in (7, 64)
    ]
    assert found[0].right == found[1].right
    assert list(found[0].right) == [key for key, _ in questions]


def test_a_stopped_call_continues(vlm, root: Path, tmp_path: Path, monkeypatch):
    file = tmp_path / "known.json"
    questions = [*islice(load_questions("grocery", "test", {"root": root}), 12)]
    monkeypatch.setattr(bench_known, "WRITTEN", 1)

    def stop_after_six(task: str, done: int, total: int, figures: str) -> None:
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find_known(vlm, questions, file, dataset="grocery", batch_size=3, progress=stop_after_six)
    assert list(Known.read(file).right) == [key for key, _ in questions[:6]]
    asked: list[int] = []
    find_known(
        vlm,
        questions[:9],
        file,
        dataset="grocery",
        progress=lambda task, done, total, figures: asked.append(done),
    )
    assert asked[0] == 6  # the first call gives what is done already
    assert set(Known.read(file).right) == {key for key, _ in questions[:9]}
    whole = find_known(vlm, questions, tmp_path / "whole.json", dataset="grocery")
    assert find_known(vlm, questions, file, dataset="grocery").right == whole.right


def test_a_file_about_another_vlm_is_neither_continued_nor_used_in_silence(
    vlm, tiny_vlm, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    file = tmp_path / "known.json"
    find_known(vlm, questions_of(vlm), file, dataset="grocery")
    with pytest.raises(DataError, match="name another file"):
        find_known(tiny_vlm, questions_of(vlm), file, dataset="grocery")
    with caplog.at_level(logging.WARNING):
        warn_of_another_vlm({}, tiny_vlm)
        warn_of_another_vlm({"known": file}, vlm)
        assert not caplog.records
        warn_of_another_vlm({"known": str(file)}, tiny_vlm)
    assert "make one for this VLM with: mmedit data known" in caplog.text
    Known(vlm="x", identity={}, dataset="grocery").write(file)
    with pytest.raises(DataError, match="does not say which VLM"):
        warn_of_another_vlm({"known": file}, vlm)


def test_a_file_that_cannot_be_written_is_found_before_anything_is_asked(vlm, tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError):
        find_known(vlm, questions_of(vlm), tmp_path / "file" / "known.json", dataset="grocery")
    made = find_known(vlm, questions_of(vlm), tmp_path / "new" / "known.json", dataset="grocery")
    assert Known.read(tmp_path / "new" / "known.json") == made


def test_the_command_asks_a_split_and_a_run_takes_what_is_known(
    vlm, root: Path, tmp_path: Path, mmedit_, monkeypatch
):
    monkeypatch.setattr(mmedit.vlm.loading, "load_vlm", lambda *_, **__: vlm)
    file, given = tmp_path / "known.json", ("--set", f"dataset.root={root}")
    done = mmedit_("data", "known", *given, "--out", file, "--limit", 60, "--batch-size", 60)
    assert done.code == 0, done.err
    assert f"of 60 questions right -> {file}" in done.out
    known = Known.read(file)
    assert known.vlm == vlm.name
    everything = dict.fromkeys(known.right, True)
    everything |= {key: True for key, _ in load_questions("grocery", "test", {"root": root})}
    everything |= {key: False for key in everything if "Banana" in key}
    Known(vlm="x", identity=known.identity, dataset="grocery", right=everything).write(file)
    done = mmedit_(
        "bench", "--editor", "ft", "--set", "ft.steps=1", "--dataset", "grocery-photo", *given,
        "--set", f"dataset.known={file}", "--no-generate", "--out", tmp_path / "run",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "N-Loc" in done.out
    assert "O-Loc" in done.out
    table = (tmp_path / "run" / "table.md").read_text(encoding="utf-8")
    assert "the base model does not answer the request's question right: 2" in table
    assert "O-Loc: object locality" in table


def test_a_wrong_split_or_dataset_is_found_before_the_vlm_is_loaded(mmedit_, tmp_path: Path):
    done = mmedit_("data", "known", "--split", "val", "--out", tmp_path / "x.json")
    assert (done.code, "split" in done.err) == (2, True)
    done = mmedit_("data", "known", "--dataset", "easyvqa", "--out", tmp_path / "x.json")
    assert (done.code, "use grocery" in done.err) == (2, True)
    assert not (tmp_path / "x.json").exists()
