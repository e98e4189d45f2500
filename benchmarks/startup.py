"""How long commands that need no model take to start, beside `import torch`.

    python benchmarks/startup.py > benchmarks/startup.md

Every command runs in a process of its own. The commands take turns, so that a busy machine slows
all of them alike; the median of the shares of torch's time is what counts.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median

ROUNDS = 5
RUN = str(Path(__file__).parents[1] / "results" / "embedded-vqa")
COMMANDS = (["--help"], ["--version"], ["ls"], ["ls", "vlms"], ["table", RUN])


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    torch = [sys.executable, "-c", "import torch"]
    mmedit = [[sys.executable, "-m", "mmedit", *arguments] for arguments in COMMANDS]
    seconds(torch)  # from the disk
    rounds = [[seconds(command) for command in (torch, *mmedit)] for _ in range(ROUNDS)]
    print(f"torch {version('torch')}, Python {platform.python_version()}, median of {ROUNDS}\n")
    print("| command | s | share of `import torch` |")
    print("|---|--:|--:|")
    names = ["import torch", *(f"mmedit {' '.join(command)}" for command in COMMANDS)]
    for place, name in enumerate(names):
        column = [taken[place] for taken in rounds]
        share = median(taken[place] / taken[0] for taken in rounds)
        shown = name.replace(RUN, "RUN")
        print(f"| `{shown}` | {median(column):.2f} | {share:.0%} |")


def seconds(command: list[str]) -> float:
    begun = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
