"""`mmedit bench` by several processes, and by processes that are killed: the records are those of
one process that ran through.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from processes import SECONDS, Started, finished_all, start, start_several

from mmedit.records.schema import Record
from mmedit.records.store import RECORDS, read_records
from mmedit.report.render import render
from mmedit.report.table import method_table

FT = ("--editor", "ft", "--set", "ft.steps=2", "--limit", "8", "--batch-size", "3")
INDEPENDENT = ("bench", *FT, "--editor", "ft-l", "--set", "ft-l.steps=2")
SEQUENTIAL = (
    "bench", *FT, "--mode", "sequential", "--set", "sequential.gaps=[2]",
    "--set", "sequential.orders=2", "--set", "sequential.ability_every=3",
    "--set", "sequential.ability_cases=4", "--set", "sequential.snapshot_every=3",
)  # fmt: skip
COMMANDS = {"independent": INDEPENDENT, "sequential": SEQUENTIAL}


def mmedit(folder: Path, *arguments: object) -> Started:
    return start(folder / "printed", "-m", "mmedit", *arguments)


def finished(folder: Path, *arguments: object) -> None:
    """Run mmedit to its end."""
    running = mmedit(folder, *arguments)
    assert running.finish() == 0, running.err.read_text()


def without_costs(records: list[Record]) -> list[Record]:
    """Wall times and memory differ from run to run; nothing else may."""
    unmeasured = {"seconds": 0.0, "peak_memory_bytes": 0}
    return [record.model_copy(update=unmeasured) for record in records]


def table(records: list[Record]) -> bytes:
    return render(method_table(without_costs(records)), "md").encode()


@pytest.fixture(scope="module", params=list(COMMANDS))
def whole(request, tmp_path_factory) -> tuple[str, list[Record]]:
    """A mode, and what one process measures that runs through."""
    folder = tmp_path_factory.mktemp(request.param)
    finished(folder, *COMMANDS[request.param], "--out", folder / "run")
    return request.param, read_records(folder / "run")


def test_several_processes_write_the_records_of_one(whole, tmp_path):
    mode, records = whole
    processes = {"independent": 3, "sequential": 2}[mode]
    command = ("-m", "mmedit", *COMMANDS[mode], "--out", tmp_path / "run")
    out = finished_all(start_several(tmp_path / "printed", *command, processes=processes))
    shared = read_records(tmp_path / "run")
    assert without_costs(shared) == without_costs(records)
    assert table(shared) == table(records)
    assert out.count("records, tables and report.html:") == 1


def test_a_killed_run_ends_with_the_table_of_one_that_ran_through(whole, tmp_path):
    mode, records = whole
    random = np.random.default_rng(len(records))
    # A line that is being written, a snapshot, the manifest, loading: wherever it hits.
    for place in sorted(random.integers(0, len(records), size=3)):
        kill_after(int(place), float(random.uniform(0, 0.3)), mode, tmp_path)
    finished(tmp_path, *COMMANDS[mode], "--out", tmp_path / "run")
    continued = read_records(tmp_path / "run")
    assert without_costs(continued) == without_costs(records)
    assert table(continued) == table(records)


def kill_after(lines: int, seconds: float, mode: str, folder: Path) -> None:
    """Start the run, and kill it so many seconds after it has written so many lines."""
    running = mmedit(folder, *COMMANDS[mode], "--out", folder / "run")
    wait_for(lines, running, folder / "run")
    time.sleep(seconds)
    running.kill()


def wait_for(lines: int, running: Started, folder: Path) -> None:
    """Wait until the run has written so many lines, or has ended."""
    deadline = time.monotonic() + SECONDS
    while written(folder) < lines and running.is_running():
        assert time.monotonic() < deadline, "no progress"
        time.sleep(0.01)


def written(folder: Path) -> int:
    try:
        return (folder / RECORDS).read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def test_a_second_process_on_the_same_run_is_refused(tmp_path):
    command = (*SEQUENTIAL, "--out", tmp_path / "run")
    first = mmedit(tmp_path, *command)
    try:
        wait_for(1, first, tmp_path / "run")
        assert first.is_running()
        os.kill(first.pid, signal.SIGSTOP)  # it must not end before the other one has begun
        second = mmedit(tmp_path, *command)
        code = second.finish()
    finally:
        first.kill()
    assert code == 2
    assert "is being written by another process" in " ".join(second.err.read_text().split())


def test_an_error_in_one_process_ends_all(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / RECORDS).write_text("{}\n")
    (tmp_path / "run" / "manifest.json").write_text(json.dumps({}))
    command = ("-m", "mmedit", *INDEPENDENT, "--out", tmp_path / "run")
    started = start_several(tmp_path / "printed", *command, processes=2)
    assert all(one.finish() for one in started)
    assert "manifest.json" in "".join(one.err.read_text() for one in started)
