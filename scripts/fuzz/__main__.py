"""Give mmedit thousands of odd inputs, and count what it does not handle.

    python scripts/fuzz [--inputs 10000] [--seed 0] [--only KIND] [--out runs/fuzz]

An input is right if mmedit takes it, or refuses it with one message of its own. Three things are
faults: a traceback (any other exception), a hang (more than `--seconds`), and a silent skip (the
input was taken, and a part of it was dropped or changed without a word). Hypothesis draws the
inputs; the same seed draws the same ones. `faults.jsonl` gets a line per fault, `refused.txt` the
messages, `summary.json` the seed and the counts; the exit code is 1 if there is a fault.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before the hub's library is imported

import commands
import files
import values
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from watch import Fault, Kind, Watch

KINDS: dict[str, Kind] = {**values.KINDS, **files.KINDS, **commands.KINDS}
"""Kinds of inputs: their share of all inputs, and the function that draws and tries one."""


def main() -> int:
    chosen = _arguments()
    kinds = {chosen.only: KINDS[chosen.only]} if chosen.only else KINDS
    whole = sum(kind.share for kind in kinds.values())
    chosen.out.mkdir(parents=True, exist_ok=True)
    counts: Counter[str] = Counter()
    faults: list[Fault] = []
    refused: list[str] = []
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for place, (name, kind) in enumerate(kinds.items()):
            inputs = round(chosen.inputs * kind.share / whole)
            watch = Watch(name, Path(folder) / name, chosen.seconds)
            _try_all(kind, watch, inputs, chosen.seed + place)
            counts.update(watch.counts)
            faults += watch.faults
            refused += [f"{name}: {message}\n" for message in watch.messages]
            print(f"{name:12} {inputs:6,} inputs: {watch.summary()}", flush=True)
    taken = time.perf_counter() - begun
    _write(chosen, counts, faults, taken)
    (chosen.out / "refused.txt").write_text("".join(refused), encoding="utf-8", errors="replace")
    print(f"{counts['inputs']:,} inputs in {taken:.0f} s, seed {chosen.seed}: {_counted(counts)}")
    for fault in faults[:20]:
        print(f"  {fault}", file=sys.stderr)
    return int(bool(faults))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python scripts/fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=10_000, help="number of inputs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=KINDS, help="one kind of inputs")
    parser.add_argument("--seconds", type=int, default=60, help="an input that takes longer hangs")
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"))
    return parser.parse_args()


def _try_all(kind: Kind, watch: Watch, inputs: int, first_seed: int) -> None:
    """Draw and try this many inputs of a kind. Hypothesis stops early where it knows no other
    input, so it is asked again with further seeds.
    """
    warnings.simplefilter("ignore")
    further = 0
    while watch.counts["inputs"] < inputs:

        @seed(first_seed + 1000 * further)
        @settings(
            max_examples=inputs - watch.counts["inputs"],
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=[*HealthCheck.__members__.values()],
        )
        @given(data=st.data())
        def one(data: st.DataObject) -> None:
            watch.one(lambda: kind.attempt(data, watch.fresh_folder()))

        one()
        further += 1


def _counted(counts: Counter[str]) -> str:
    return ", ".join(
        f"{counts[what]:,} {name}"
        for what, name in (
            ("taken", "taken"),
            ("refused", "refused"),
            ("traceback", "tracebacks"),
            ("hang", "hangs"),
            ("silent skip", "silent skips"),
        )
    )


def _write(
    chosen: argparse.Namespace, counts: Counter[str], faults: list[Fault], taken: float
) -> None:
    every = {"taken": 0, "refused": 0, **counts}
    summary = {"seed": chosen.seed, "only": chosen.only, "seconds": round(taken), **every}
    (chosen.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    lines = [json.dumps(fault.as_json()) for fault in faults]
    (chosen.out / "faults.jsonl").write_text("".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    sys.exit(main())
