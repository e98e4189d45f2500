"""Measure how much a second busy process slows training down, for several thread settings.

    python benchmarks/threads.py > benchmarks/threads.md

Each setting runs in a process of its own: outer steps of MEND on the embedded VLM, alone and then
beside a process that keeps one core busy, in turn, several times. The ratio of the two is what
counts, as machines differ.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

SETTINGS: dict[str, dict[str, str]] = {
    "libgomp's own: threads spin while they wait": {},
    "OMP_WAIT_POLICY=PASSIVE: threads sleep while they wait": {"OMP_WAIT_POLICY": "PASSIVE"},
    "GOMP_SPINCOUNT=2000: threads spin shortly, then sleep": {"GOMP_SPINCOUNT": "2000"},
    "OMP_NUM_THREADS=1": {"OMP_NUM_THREADS": "1"},
}
EXPLANATION = """
torch runs an operation on all its threads, and the threads wait for each other after each one. The
OpenMP that torch's Linux wheels ship (libgomp) lets them spin while they wait: 300,000 rounds, if
OMP_WAIT_POLICY and GOMP_SPINCOUNT are not set. If another process needs a core, one thread of torch
has to wait for it, and the others spend their turns spinning. With PASSIVE they sleep at once and
leave their core to the thread that they wait for, but waking them costs time when nothing else
runs. A short spin keeps most of both: the command line sets GOMP_SPINCOUNT=2000 unless the user has
set it or OMP_WAIT_POLICY. `make test` runs processes of one thread each, which wait for nobody.
"""
CHOSEN_BY_USERS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--probe", action="store_true", help="measure in this process, print JSON")
    options = parser.parse_args()
    if options.probe:
        print(json.dumps(measure(options.steps, options.rounds, options.batch)))
        return
    print(
        f"{processor()}, {os.cpu_count()} cores; {options.steps} steps of MEND, batch "
        f"{options.batch}, on the embedded VLM; median of {options.rounds}\n"
    )
    print("| setting | alone, s | beside a busy process, s | ratio |")
    print("|---|--:|--:|--:|")
    for name, variables in SETTINGS.items():
        pairs = in_a_process_of_its_own(variables, sys.argv[1:])
        alone, beside = (median(column) for column in zip(*pairs, strict=True))
        ratio = median(second / first for first, second in pairs)
        print(f"| {name} | {alone:.1f} | {beside:.1f} | {ratio:.1f} |", flush=True)
    print(EXPLANATION, end="")


def in_a_process_of_its_own(
    variables: dict[str, str], arguments: list[str]
) -> list[tuple[float, float]]:
    """Return pairs of seconds (alone, beside a busy process) under these environment variables."""
    kept = {key: value for key, value in os.environ.items() if key not in CHOSEN_BY_USERS}
    done = subprocess.run(
        [sys.executable, __file__, *arguments, "--probe"],
        env=kept | variables,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [(alone, beside) for alone, beside in json.loads(done.stdout)]


def measure(steps: int, rounds: int, batch: int) -> list[tuple[float, float]]:
    """Train alone and beside a busy process, in turn."""
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from learners import learner_of, outer_step

    from mmedit import load_cases, load_editor, load_vlm

    vlm, cases = load_vlm("embedded"), load_cases("easyvqa", "train", limit=batch)
    editor = load_editor("mend", vlm)
    step = outer_step(learner_of(editor, vlm, cases), cases)

    def seconds(number: int) -> float:
        begun = time.perf_counter()
        for _ in range(number):
            step()
        return time.perf_counter() - begun

    seconds(2)  # image features, allocations
    pairs = []
    for _ in range(rounds):
        alone = seconds(steps)
        with busy_process():
            pairs.append((alone, seconds(steps)))
    return pairs


@contextmanager
def busy_process() -> Iterator[None]:
    """Keep one core busy."""
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        busy.kill()
        busy.wait()


def processor() -> str:
    """Return the name of this machine's processor."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
