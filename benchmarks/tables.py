"""Measure how long tables and their statistics take on 10,000 records.

    python benchmarks/tables.py > benchmarks/tables.md

Processor time, the median of several rounds: the machine may be busy with other work.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

from made_records import many_records
from threads import processor

from mmedit.records.store import RECORDS, read_records
from mmedit.report.intervals import clustered_bootstrap_interval
from mmedit.report.render import render
from mmedit.report.significance import permuted_clusters
from mmedit.report.table import method_table


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(f"{processor()}; {options.records:,} records, median of {options.rounds} rounds\n")
    print("| step | processor time, s |")
    print("|---|--:|")
    with TemporaryDirectory() as folder:
        for name, step in steps(options.records, Path(folder)).items():
            seconds = median(processor_time(step) for _ in range(options.rounds))
            print(f"| {name} | {seconds:.2f} |", flush=True)


def steps(number: int, folder: Path) -> dict[str, Callable[[], object]]:
    """Return what is measured, by name."""
    records = many_records(number)
    (folder / RECORDS).write_text("".join(f"{r.model_dump_json()}\n" for r in records))
    values = np.random.default_rng(7).random(number)
    accuracies = values.round()
    differences = np.random.default_rng(5).normal(size=number // 5)
    return {
        "read the records": lambda: read_records(folder),
        "make the table": lambda: method_table(records),
        "read, make the table, write it as LaTeX": lambda: render(
            method_table(read_records(folder)), "latex"
        ),
        "bootstrap interval of accuracies": lambda: clustered_bootstrap_interval(
            accuracies, range(number)
        ),
        "bootstrap interval of continuous values": lambda: clustered_bootstrap_interval(
            values, range(number)
        ),
        f"permutation test of {number // 5:,} continuous differences": lambda: permuted_clusters(
            differences, range(number // 5)
        ),
    }


def processor_time(step: Callable[[], object]) -> float:
    """Return the seconds of processor time that a step takes."""
    begun = time.process_time()
    step()
    return time.process_time() - begun


if __name__ == "__main__":
    main()
