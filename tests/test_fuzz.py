"""scripts/fuzz counts what it is made to find, and finds none of it in a short run."""

from __future__ import annotations

import json
import runpy
import sys
import time
from pathlib import Path

import pytest

FUZZ = Path(__file__).parents[1] / "scripts" / "fuzz"


@pytest.fixture(autouse=True)
def _modules_of_the_script(monkeypatch):
    monkeypatch.syspath_prepend(str(FUZZ))


@pytest.fixture
def watch(tmp_path):
    from watch import Watch

    return Watch("test", tmp_path, seconds=1)


def refuse():
    from mmedit.errors import DataError

    raise DataError("the file is empty; give another")


def refuse_with_a_whole_file():
    from mmedit.errors import DataError

    raise DataError("x" * 5000)


def skip():
    from watch import require

    require(False, "3 records of 4")


@pytest.mark.parametrize(
    ("attempt", "counted"),
    [
        (lambda: None, "taken"),
        (refuse, "refused"),
        (refuse_with_a_whole_file, "traceback"),
        (lambda: [].pop(), "traceback"),
        (lambda: time.sleep(30), "hang"),
        (skip, "silent skip"),
    ],
)
def test_an_input_is_counted_by_what_became_of_it(watch, attempt, counted):
    watch.one(attempt)
    assert watch.counts == {"inputs": 1, counted: 1}
    assert len(watch.faults) == (counted in ("traceback", "hang", "silent skip"))


@pytest.mark.parametrize("kind", ["metrics", "examples", "annotations", "tables"])
def test_a_short_run_finds_no_fault_and_notes_its_seed(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(
        sys, "argv", ["fuzz", "--inputs", "60", "--only", kind, "--out", str(tmp_path)]
    )
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(FUZZ / "__main__.py"), run_name="__main__")
    assert ended.value.code == 0, (tmp_path / "faults.jsonl").read_text()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["seed"] == 0
    assert summary["inputs"] == 60 == summary["taken"] + summary.get("refused", 0)
