"""The programs that measure speed run, the floor is of the whole work, and `make bench` fails if a
ratio to the floor became worse.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from closeness import assert_close

from mmedit.methods import EDITORS

REPOSITORY = Path(__file__).parents[2]
BENCHMARKS = REPOSITORY / "benchmarks"
COMMITTED = {"mend": {"fit": [1.0, 2.0], "apply": [1.0, 1.0]}}


@pytest.fixture(scope="module")
def programs() -> Iterator[Any]:
    """The modules of `benchmarks/` by name; what is short is not repeated."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        patch.setattr(import_module("measuring"), "MOST", 1)
        yield import_module


@pytest.fixture(scope="module")
def subject(programs: Any) -> Any:
    clock = programs("measuring").Clock(torch.device("cpu"))
    return programs("subjects").subject_of("embedded", clock, 1, torch.float32)


LOCATED = {"rome", "memit", "alphaedit", "ultraedit"}
"""Methods whose cost benchmarks/locate.py measures."""
WITHOUT_A_FLOOR = {
    "lora", "more", "grace", "tpatcher", "balancedit", "wise", "liveedit", "visedit",
}  # fmt: skip
"""Methods that have no bare program yet; benchmarks/edits_at_size.py measures what they cost."""


def test_the_floor_of_every_method_is_printed(
    programs: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    file = tmp_path / "floor.json"
    methods = [method for method in programs("bare_methods").METHODS if method != "ft-l"]
    arguments = ["--cases", "1", "--rounds", "1", "--methods", *methods, "--write", str(file)]
    assert programs("floor").main(arguments) == 0
    found = json.loads(file.read_text())
    assert set(found) == set(EDITORS) - LOCATED - WITHOUT_A_FLOOR
    assert {work for works in found.values() for work in works} == set(
        programs("bare_methods").WORKS
    )
    table = capsys.readouterr().out
    assert "1 thread, processor time" in table
    for works in found.values():
        for without, reusing in works.values():
            assert without > 0
            assert f"| {reusing:.2f} |" in table


def test_the_floor_gives_the_logits_that_the_vlm_gives(subject: Any):
    examples = subject.examples
    rows = subject.rows_of(subject.all_questions, layers=[2], size=len(examples))
    [group] = rows.groups
    with torch.no_grad():
        whole, upper = (group.logits(group.hidden(start)) for start in (0, 2))
        assert torch.equal(whole, upper)
        for question in subject.all_questions:
            predicted = subject.vlm.predict([question.example])
            needed = predicted.is_text if question.probe.is_locality else predicted.is_answer
            for logits in predicted.logits[needed]:
                nearest = (whole - logits).abs().amax(-1).argmin()
                assert_close(whole[nearest], logits)


@pytest.mark.parametrize(
    ("first", "again", "code"),
    [
        ([[1.0, 2.5], [1.0, 1.0]], None, 0),
        ([[1.0, 2.7], [1.0, 1.0]], [[1.0, 2.5], [1.0, 1.4]], 0),
        ([[1.0, 2.7], [1.0, 1.0]], [[1.0, 2.8], [1.0, 1.4]], 1),
    ],
    ids=["no worse", "worse once", "worse twice"],
)
def test_the_guard_fails_if_a_ratio_is_worse_twice(
    first: Any, again: Any, code: int, programs: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    floor, file = programs("floor"), tmp_path / "floor.json"
    file.write_text(json.dumps(COMMITTED))
    rounds = [{"mend": dict(zip(("fit", "apply"), r, strict=True))} for r in (first, again) if r]
    monkeypatch.setattr(floor, "report", lambda *_: rounds.pop(0))
    assert floor.check(None, ["mend"], 1, file) == code
    assert not rounds
    said = capsys.readouterr().out
    failed = "mend, fit: 2.80 times the floor with reuse; 2.00 are committed in floor.json"
    assert (failed in said) == bool(code)
    assert "mend, apply" not in said


def test_the_committed_ratios_are_of_every_method(programs: Any):
    committed = json.loads((BENCHMARKS / "floor.json").read_text())
    assert set(committed) == set(programs("bare_methods").METHODS)


def test_two_checkouts_are_measured_in_turn_and_give_the_same_scores(
    programs: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    small = ["--cases", "1", "--edits", "1", "--rounds", "1"]
    arguments = ["--old", REPOSITORY, "--parts", "embedded", *small]
    monkeypatch.setattr(sys, "argv", ["against.py", *map(str, arguments)])
    programs("against").main()
    rows = re.findall(r"^\| embedded \| .*$", capsys.readouterr().out, re.MULTILINE)
    assert len(rows) == 2
    assert "| same: 52, at most 0e+00 apart |" in rows[0]


def test_a_folder_without_mmedit_is_refused(
    programs: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(sys, "argv", ["against.py", "--old", str(tmp_path)])
    with pytest.raises(SystemExit, check=lambda ended: ended.code == 2):
        programs("against").main()
    assert "holds no package mmedit; name the folder of a checkout" in capsys.readouterr().err
