"""Edits that are timed one at a time, beside those that a run measures in batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import tiny
from made_records import reliability
from plans import make_plan

from mmedit.bench.protocol import NoEdit
from mmedit.bench.run import run
from mmedit.cases import EditCase, Example, Probe
from mmedit.errors import ConfigError
from mmedit.progress import silent
from mmedit.records.store import read_manifest
from mmedit.report.render import render
from mmedit.report.runs import read_runs
from mmedit.report.table import method_table
from mmedit.vlm.interface import VLM
from mmedit.vlm.network import NetworkVLM


def case(number: int) -> EditCase:
    request = Example(prompt=f"{number}?", target="no", image=tiny.IMAGES[0])
    return EditCase(id=str(number), request=request, probes={Probe.RELIABILITY: (request,)})


CASES = [case(number) for number in range(4)]


class Noted(NoEdit):
    """Notes the requests of every edit that is made by itself; stops after so many."""

    def __init__(self, stop_after: int = 99) -> None:
        super().__init__()
        self.alone: list[str] = []
        self.stop_after = stop_after

    def apply(self, vlm: VLM, requests: Sequence[Example]) -> VLM:
        if len(self.alone) == self.stop_after:
            raise KeyboardInterrupt
        self.alone += [request.prompt for request in requests]
        return vlm


def timed(editor: Noted, folder: Path, vlm: VLM, latency: int) -> tuple[float, ...]:
    plan = make_plan(editors={"X": editor}, latency=latency)
    run(plan, folder, vlm, CASES, lambda _: [], progress=silent)
    return read_manifest(folder).latencies.get("X", ())


def test_edits_are_timed_one_at_a_time_after_one_that_is_not(tiny_vlm: NetworkVLM, tmp_path):
    editor = Noted()
    seconds = timed(editor, tmp_path, tiny_vlm, 3)
    assert editor.alone == ["0?", "0?", "1?", "2?"]
    assert len(seconds) == 3
    assert min(seconds) > 0
    assert read_manifest(tmp_path).latencies.keys() == {"X"}  # not the base model


def test_a_run_that_was_stopped_times_what_is_missing(tiny_vlm: NetworkVLM, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        timed(Noted(stop_after=3), tmp_path, tiny_vlm, 3)
    first = read_manifest(tmp_path).latencies["X"]
    assert len(first) == 2
    editor = Noted()
    seconds = timed(editor, tmp_path, tiny_vlm, 3)
    assert editor.alone == ["2?", "2?"]
    assert seconds[:2] == first
    assert timed(editor, tmp_path, tiny_vlm, 0) == timed(editor, tmp_path, tiny_vlm, 3) == seconds
    assert len(editor.alone) == 2


def test_more_edits_than_cases_are_refused(tiny_vlm: NetworkVLM, tmp_path):
    with pytest.raises(ConfigError, match="and the run has 4 cases; choose a number from 0"):
        timed(Noted(), tmp_path, tiny_vlm, 5)


def test_a_table_shows_both_times(tmp_path: Path):
    records = [*reliability("base", [0.0, 1.0]), *reliability("FT", [0.0, 1.0], seconds=0.5)]
    table = method_table(records, latencies={"FT": (1.0, 3.0, 2.0)})
    assert table["cost", "s alone"].to_dict() == {"base": None, "FT": 2.0}
    assert table["cost", "p95 alone"].to_dict()["FT"] == pytest.approx(2.9)
    assert table["cost", "s/edit"].to_dict()["FT"] == 0.5
    shown = render(table, "md")
    assert "s alone: median wall time of an edit that is made by itself" in shown
    assert ("cost", "s alone") not in method_table(records).columns


def test_times_stay_with_their_row_in_a_table_of_several_runs(tiny_vlm: NetworkVLM, tmp_path):
    for name in "ab":
        timed(Noted(), tmp_path / name, tiny_vlm, 2)
    [read] = read_runs([tmp_path / "a", tmp_path / "b"])
    assert read.latencies.keys() == {f"X ({tmp_path / name})" for name in "ab"}
