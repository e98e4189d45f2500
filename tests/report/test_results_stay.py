"""The tables of the committed results keep their numbers, whatever is changed in the code.

tests/golden/tables holds what `mmedit table RUN --format csv` gave on every folder of results/. The
means are those of the first versions; the intervals and tests count identical probes once.
"""

from __future__ import annotations

import lzma
import re
import shutil
from collections.abc import Iterable
from io import StringIO
from pathlib import Path

import pandas
import pytest
from golden_files import REPOSITORY

from mmedit.records.store import MANIFEST, PACKED, RECORDS
from mmedit.report.render import render
from mmedit.report.runs import read_runs
from mmedit.report.table import method_table

RESULTS, GOLDEN = REPOSITORY / "results", REPOSITORY / "tests" / "golden" / "tables"
RUNS = sorted(file.parent.relative_to(RESULTS) for file in RESULTS.rglob(MANIFEST))


def only_what_a_table_shows(run: Path, folder: Path) -> Path:
    """Copy a packed sequence with the lines of each editor's last checkpoint alone.

    Reading all lines of a sequence takes 20 seconds; the table needs one in seven of them.
    """
    shutil.copy(run / MANIFEST, folder)
    with lzma.open(run / PACKED, "rt", encoding="utf-8") as lines:
        (folder / RECORDS).write_text("".join(last_checkpoints(lines)), encoding="utf-8")
    return folder


def last_checkpoints(lines: Iterable[str]) -> list[str]:
    """Return the lines of each editor's last checkpoint; all lines of separate edits."""
    lines = list(lines)
    tests = [line for line in lines if '"test":"checkpoint"' in line]
    if not tests:
        return lines
    edits = [int(re.findall(r'"edits":(\d+)', line)[0]) for line in tests]
    editors = [re.findall(r'"editor":("[^"]*")', line)[0] for line in tests]
    last: dict[str, int] = {}
    for editor, number in zip(editors, edits, strict=True):
        last[editor] = max(number, last.get(editor, 0))
    kept = zip(tests, editors, edits, strict=True)
    return [line for line, editor, number in kept if number == last[editor]]


def table_of(run: Path) -> pandas.DataFrame:
    [read] = read_runs([run])
    frame = method_table(read.records, training_seconds=read.training_seconds or None)
    return pandas.read_csv(StringIO(render(frame, "csv")))


def test_every_folder_of_results_has_its_numbers_here():
    assert (
        sorted(file.relative_to(GOLDEN).with_suffix("") for file in GOLDEN.rglob("*.csv")) == RUNS
    )


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_the_table_of_a_committed_run_keeps_its_numbers(run, tmp_path):
    folder = RESULTS / run
    if (folder / PACKED).exists():
        folder = only_what_a_table_shows(folder, tmp_path)
    expected = pandas.read_csv(GOLDEN / f"{run}.csv")
    pandas.testing.assert_frame_equal(table_of(folder), expected, rtol=1e-9, atol=1e-9)
