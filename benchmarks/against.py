"""Measure this mmedit against another checkout of it, in one run.

    python benchmarks/against.py --old ../mmedit-before > benchmarks/against.md

Each checkout has a worker process of one thread; both build the same VLM with the same random
weights and do the same work in turn, never at the same time. Ratios are medians over rounds of
neighbouring pairs of processor seconds, as machines differ. The scores that both give are compared
too.

- medium: ViT-B at 224 pixels, Q-Former of 6 layers and 32 queries, OPT-125M; random weights;
- deep: a small vision tower, 24 layers of width 1,024, 50,000 tokens; random weights;
- embedded: the VLM inside the package.

Editors are trained for one step, as times do not depend on how well they edit. An outer step is one
on all cases with what training keeps over its steps.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measuring import Clock, header, ratio

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # cases of this checkout

from against_worker import write_cases

HERE = Path(__file__).resolve().parent
CLOSE = 1e-5
"""Largest difference of a score between checkouts."""


@dataclass(frozen=True)
class Row:
    """A work, and how often faster than the old checkout it is to be."""

    title: str
    size: str
    do: str
    bar: float


ROWS = (
    Row("MEND evaluation, first editor of a table", "medium", "evaluate mend", 1.5),
    Row("MEND evaluation, base outputs known", "medium", "evaluate_again mend", 1.75),
    Row("MEND evaluation, first editor, cold images", "medium", "evaluate_cold mend", 1.4),
    Row("MEND outer step", "medium", "step mend", 2.0),
    Row("SERAC evaluation, first editor of a table", "embedded", "evaluate serac", 2.1),
    Row("SERAC outer step", "embedded", "step serac", 1.4),
    Row("MEND evaluation, base outputs known", "deep", "evaluate_again mend", 3.0),
    Row("MEND outer step", "deep", "step mend", 4.0),
)
SEQUENCES = {"mend": "embedded", "ft": "embedded"}
OVERHEAD_BAR, SEQUENCE_BAR, MEMORY_BAR = 1.03, 1.1, 1000
PARTS = ("medium", "embedded", "deep", "predict", "sequences", "memory")


WORKER = (sys.executable, str(HERE / "against_worker.py"))


def environment(checkout: Path) -> dict[str, str]:
    """Return the environment in which a process runs the mmedit of a checkout in one thread."""
    own = {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **own}


class Worker:
    """A process under the mmedit of one checkout."""

    def __init__(self, checkout: Path, size: str, options: argparse.Namespace) -> None:
        self.checkout = checkout
        self.process = subprocess.Popen(
            [*WORKER, str(options.file), "--size", size],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=tempfile.gettempdir(),
            env=environment(checkout),
        )

    def ask(self, work: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"do": work}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the worker of {self.checkout} stopped during {work!r}; see above")
        return json.loads(line)

    def stop(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@contextmanager
def workers(size: str, options: argparse.Namespace) -> Iterator[tuple[Worker, Worker]]:
    """Start a worker of the old checkout and one of this."""
    both = Worker(options.old, size, options), Worker(HERE.parent, size, options)
    try:
        yield both
    finally:
        for worker in both:
            worker.stop()


def in_turn(
    both: Sequence[Worker], works: Sequence[str], rounds: int
) -> dict[str, list[list[dict[str, Any]]]]:
    """Return what both answer by work and round, after one round that does not count. They take
    turns in going first.
    """
    found: dict[str, list[list[dict[str, Any]]]] = {work: [] for work in works}
    for number in range(rounds + 1):
        for work in works:
            order = both if number % 2 else both[::-1]
            answers = {worker: worker.ask(work) for worker in order}
            if number:
                found[work].append([answers[worker] for worker in both])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--old", type=Path, required=True, help="folder of the other checkout")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--cases", type=int, default=16, help="edits, all in one batch")
    parser.add_argument("--edits", type=int, default=100, help="edits of a sequence")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    options.old = options.old.resolve()
    if not (options.old / "mmedit" / "__init__.py").is_file():
        parser.error(f"--old {options.old} holds no package mmedit; name the folder of a checkout")
    names = {"old": commit_of(options.old), "new": commit_of(HERE.parent)}
    clock = Clock(torch.device("cpu"))
    settings = {**names, "edits": options.cases, "rounds": options.rounds}
    print(header("against.py", sys.argv[1:], clock, **settings))
    with tempfile.TemporaryDirectory() as folder:
        options.file = Path(folder) / "cases.json"
        write_cases(options.file, options.cases, options.edits)
        report_ratios([row for row in ROWS if row.size in options.parts], options)
        for part, report in REPORTS.items():
            if part in options.parts:
                report(options)


def commit_of(checkout: Path) -> str:
    """Return the commit of a checkout, and whether files differ from it."""
    said = subprocess.run(
        ["git", "-C", str(checkout), "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    )
    return said.stdout.strip() or "unknown"


def report_ratios(rows: Sequence[Row], options: argparse.Namespace) -> None:
    if not rows:
        return
    print("| VLM | work | old, ms an edit | new, ms an edit | old / new | bar | scores |")
    print("|---|---|--:|--:|--:|--:|---|")
    for size in dict.fromkeys(row.size for row in rows):
        here = [row for row in rows if row.size == size]
        with workers(size, options) as both:
            found = in_turn(both, [row.do for row in here], options.rounds)
        for row in here:
            pairs = found[row.do]
            old, new = ([answers[place]["seconds"] for answers in pairs] for place in (0, 1))
            shown = [f"{1000 * median(taken) / options.cases:.1f}" for taken in (old, new)]
            print(
                f"| {size} | {row.title} | {shown[0]} | {shown[1]} | {ratio(old, new):.2f} "
                f"| {row.bar} | {agreement(*pairs[-1])} |",
                flush=True,
            )


def agreement(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Say whether the scores of both are the same."""
    if "scores" not in old:
        return ""
    both = old["scores"].keys() & new["scores"].keys()
    most = max(abs(old["scores"][place] - new["scores"][place]) for place in both)
    same = "same" if most <= CLOSE else "DIFFERENT"
    return f"{same}: {len(both):,}, at most {most:.0e} apart"


def report_predict(options: argparse.Namespace) -> None:
    with workers("medium", options) as (_, new):
        found = in_turn_alone(new, ["predict ", "bare "], options.rounds)
    predict, bare = (found[name] for name in ("predict ", "bare "))
    print(
        f"\n`predict` over the bare forward of transformers, medium: {ratio(predict, bare):.3f} "
        f"(bar {OVERHEAD_BAR})",
        flush=True,
    )


def in_turn_alone(worker: Worker, works: Sequence[str], rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {work: [] for work in works}
    for number in range(rounds + 1):
        for work in works:
            seconds = worker.ask(work)["seconds"]
            if number:
                times[work].append(seconds)
    return times


def report_sequences(options: argparse.Namespace) -> None:
    print(f"\n{options.edits} sequential edits, bar {SEQUENCE_BAR}:\n")
    print("| VLM | method | last edit / first, old | new | question after / before, old | new |")
    print("|---|---|--:|--:|--:|--:|")
    for method, size in SEQUENCES.items():
        with workers(size, options) as both:
            found = in_turn(both, [f"sequence {method}"], options.rounds)[f"sequence {method}"]
        cells = [
            f"{median(answers[place][what] for answers in found):.2f}"
            for what in ("edit", "question")
            for place in (0, 1)
        ]
        print(f"| {size} | {method} | {' | '.join(cells)} |", flush=True)


def report_memory(options: argparse.Namespace) -> None:
    """Print the memory of a step in a process of its own: what a process held at most stays so."""
    print(
        f"\nMB that an outer step of MEND on {options.cases} edits needs beside the network, "
        f"medium, cold images (bar {MEMORY_BAR:,} for 16):\n"
    )
    print("| | in all | of these the editor's weights, gradients and Adam's state |")
    print("|---|--:|--:|")
    for name, checkout in (("old", options.old), ("new", HERE.parent)):
        worker = Worker(checkout, "medium", options)
        answer = worker.ask("memory mend")
        worker.stop()
        print(f"| {name} | {answer['megabytes']:,.0f} | {answer['editor']:,.0f} |", flush=True)


REPORTS = {"predict": report_predict, "sequences": report_sequences, "memory": report_memory}

if __name__ == "__main__":
    main()
