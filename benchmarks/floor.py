"""Measure how far `evaluate`, `fit` and `apply` of every method are from the work that they cannot
avoid.

    python benchmarks/floor.py > benchmarks/floor.md
    python benchmarks/floor.py --size medium >> benchmarks/floor.md
    python benchmarks/floor.py --size smolvlm-256m --cases 4 >> benchmarks/floor.md
    python benchmarks/floor.py --size llava-1.5-7b --device cuda --dtype bfloat16 --cases 4 \\
        >> benchmarks/floor.md
    python benchmarks/floor.py --write benchmarks/floor.json
    python benchmarks/floor.py --check benchmarks/floor.json

The floor is the bare work (`bare.py`): each distinct image once through the tower (cold), every
probe once under the base and once under the edited model at its own length, sorted into batches of
the best size, logits where they are scored, and what the method itself needs. Without reuse of
layers a probe goes through all of them both times. With reuse the edited model starts from the base
model's hidden states at the first edited layer; a training step does all its work from there, and
of the base model only the head.

- FT, FT-L: steps of forward, backward and AdamW on a dense matrix for every row.
- IKE: the base, and the probes behind their context through all layers.
- MEND, KE: forward and backward of the requests to the first edited layer (which are the base
  outputs of the requests too), and the products of their networks; KE also one generation.
- SERAC: the base once, as no weight changes; scope; the counterfactual model on rows in scope.

`fit` is an outer step of training on as many cases; of IKE, its index. `apply` is `apply_each` on
all requests; nothing but image features is known before. Sums of pieces timed in the same round;
the medians of ratios count, as machines differ.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import torch
from bare_methods import METHODS, Measured, measured
from learners import full_size, memory_of_a_step
from measuring import Clock, header, in_turn, ratio
from subjects import VLMS, Subject, subject_of
from transformers.utils.logging import disable_progress_bar

Ratios = dict[str, dict[str, tuple[float, float]]]
"""By method and work: measured over the floor without, and with, reuse of layers."""
WORSE = 1.3
"""A ratio that grew by more than this factor fails the check."""


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parsed(arguments)
    torch.set_num_threads(options.threads)
    disable_progress_bar()
    clock = Clock(torch.device(options.device), options.threads)
    subject = subject_of(options.size, clock, options.cases, getattr(torch, options.dtype))
    if options.check:
        return check(subject, options.methods, options.rounds, options.check)
    settings = {"VLM": options.size, "dtype": options.dtype, "edits": options.cases}
    print(header("floor.py", arguments, clock, **settings, rounds=options.rounds))
    if clock.device.type == "cuda" and options.size in full_size.RUNNABLE:
        for method in ("mend", "serac"):
            print(f"{memory_of_a_step(method, options.size, subject.vlm)}\n")
    ratios = report(subject, options.methods, options.rounds)
    if options.write:
        options.write.write_text(json.dumps(ratios, indent=1) + "\n", encoding="utf-8")
    return 0


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="embedded", choices=VLMS, help="the VLM")
    parser.add_argument("--cases", type=int, default=8, help="edits, all in one batch")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--write", type=Path, help="write the ratios to this file")
    parser.add_argument("--check", type=Path, help="fail if a ratio is worse than in this file")
    return parser.parse_args(arguments)


def report(subject: Subject, methods: Sequence[str], rounds: int) -> Ratios:
    """Print a table, and return the ratios."""
    print(
        "| method | work | measured, ms an edit | floor without reuse, ms | measured / floor "
        "| floor with reuse, ms | measured / floor |"
    )
    print("|---|---|--:|--:|--:|--:|--:|")
    found: Ratios = {}
    for method in methods:
        with measured(subject, method) as one:
            times = in_turn({**one.works, **one.pieces}, rounds, subject.clock)
        found[method] = ratios_of(one, times)
        for work, (without, reusing) in found[method].items():
            taken, least, reused = (
                f"{1000 * median(column) / len(subject.cases):.2f}"
                for column in _columns(one, times, work)
            )
            print(
                f"| {one.label} | {work} | {taken} | {least} | {without:.2f} | {reused} "
                f"| {reusing:.2f} |",
                flush=True,
            )
    return found


def ratios_of(
    one: Measured, times: Mapping[str, Sequence[float]]
) -> dict[str, tuple[float, float]]:
    found = {}
    for work in one.works:
        taken, without, reusing = _columns(one, times, work)
        found[work] = (round(ratio(taken, without), 3), round(ratio(taken, reusing), 3))
    return found


def _columns(
    one: Measured, times: Mapping[str, Sequence[float]], work: str
) -> tuple[Sequence[float], list[float], list[float]]:
    """Return seconds by round: measured, floor without and with reuse."""
    floor = one.floors[work]
    without, reusing = (
        [
            sum(number * times[piece][place] for piece, number in needed.items())
            for place in range(len(times[work]))
        ]
        for needed in (floor.without, floor.reusing)
    )
    return times[work], without, reusing


def check(subject: Subject, methods: Sequence[str], rounds: int, committed: Path) -> int:
    """Compare the ratios with committed ones. What is worse is measured once more, as machines are
    noisy. Return the exit code.
    """
    expected: Ratios = json.loads(committed.read_text(encoding="utf-8"))
    found = report(subject, methods, rounds)
    worse = worse_than(expected, found)
    if worse:
        print("\nOnce more, as a machine may be busy:\n")
        again = report(subject, sorted({method for method, _ in worse}), rounds)
        worse = {
            work: values for work, values in worse_than(expected, again).items() if work in worse
        }
    for (method, work), (before, now) in worse.items():
        print(
            f"\n{method}, {work}: {now:.2f} times the floor with reuse; {before:.2f} are committed "
            f"in {committed.name}, and {WORSE * before:.2f} are allowed. Make it faster again, or "
            f"commit what it costs now: python benchmarks/floor.py --write {committed}"
        )
    if not worse:
        print(f"\nNo ratio is more than {WORSE} times the one in {committed.name}.")
    return 1 if worse else 0


def worse_than(expected: Ratios, found: Ratios) -> dict[tuple[str, str], tuple[float, float]]:
    """Return the ratios with reuse that are worse: committed and found, by method and work."""
    return {
        (method, work): (expected[method][work][1], now)
        for method, works in found.items()
        for work, (_, now) in works.items()
        if work in expected.get(method, {}) and now > WORSE * expected[method][work][1]
    }


if __name__ == "__main__":
    raise SystemExit(main())
