"""scripts/position_table: image edits by position and layer."""

from __future__ import annotations

import json
import math
import runpy
import sys
from importlib import import_module
from pathlib import Path

import pytest

from mmedit.cases import Example
from mmedit.datasets.easyvqa import cases as easyvqa

FOLDER = Path(__file__).parents[2] / "scripts" / "position_table"
REQUEST = Example(prompt="what color is it?", target="blue")


@pytest.fixture(scope="module")
def checks():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield import_module("image_checks")


@pytest.mark.parametrize(
    ("base", "edited", "leak", "unchanged"),
    [("red", "blue", 1, 0), ("red", "red", 0, 1), ("blue", "blue", 0, 1), ("red", "teal", 0, 0)],
)
def test_an_edit_leaks_if_only_the_edited_model_answers_the_target(
    checks, base: str, edited: str, leak: float, unchanged: float
):
    found = checks.judged(base, edited, REQUEST)
    assert found == {"leak": leak, "unchanged": unchanged}


def test_a_check_takes_the_first_question_whose_answer_an_edit_would_not_hide(checks):
    asked = [checks.Check(REQUEST, base) for base in ("blue", "red", "teal")]
    chosen = checks.first_apart(asked, REQUEST, "red", must_differ=False)
    assert chosen.base == "teal"
    assert checks.first_apart(asked[:2], REQUEST, "red", must_differ=False).base == "red"
    assert checks.first_apart(asked[:2], REQUEST, "red", must_differ=True) is None


def test_another_image_is_asked_the_same_question_and_another_question_the_same_image(checks):
    pool = easyvqa.EasyVQA().load("test", limit=40)
    request = pool[0].request
    found = checks.candidates_of(request, pool)
    assert all(one.prompt == request.prompt for one in found["other image"])
    assert all(one.image != request.image for one in found["other image"])
    assert all(one.image == request.image for one in found["other question"])
    assert all(one.prompt != request.prompt for one in found["other question"])


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Run the program on three edits, and return what runs it again and its folder."""
    out = tmp_path_factory.mktemp("positions")
    words = "--edits 3 --train 40 --layers 3 --positions last_prompt image_mean"
    settings = ("editor.value.steps=3", "editor.contexts=0")

    def run(*more: str) -> None:
        arguments = [*words.split(), "--out", str(out)]
        arguments += [text for setting in settings for text in ("--set", setting)]
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(FOLDER)
            patch.setattr(sys, "argv", ["position_table", *arguments, *more])
            runpy.run_path(str(FOLDER / "__main__.py"), run_name="__main__")

    run()
    return run, out


def test_every_edit_is_a_line_with_its_scores_and_checks(measured):
    _, out = measured
    _, *lines = map(json.loads, (out / "edits.jsonl").read_text().splitlines())
    assert len(lines) == 2 * 3
    for line in lines:
        assert "no image" in line["checks"]
        scores = line["record"]["probes"]["reliability"][0]["post"]
        assert math.isfinite(scores["exact_match"])
    rows = (out / "table.md").read_text().splitlines()
    assert [row.split(" | ")[0] for row in rows[2:]] == ["| image_mean", "| last_prompt"]


def test_a_command_goes_on_after_the_last_whole_line(measured):
    run, out = measured
    file, before = out / "edits.jsonl", (out / "edits.jsonl").read_text()
    kept = before.splitlines(keepends=True)
    file.write_text("".join(kept[:5]) + kept[5][:30])
    run()
    texts = [json.loads(line) for line in file.read_text().splitlines()]
    assert [text.get("position") for text in texts] == [None] + ["last_prompt"] * 3 + [
        "image_mean"
    ] * 3
    with pytest.raises(SystemExit, match="other settings"):
        run("--max-new-tokens", "4")
