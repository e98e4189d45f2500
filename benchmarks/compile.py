"""What `torch.compile` and bfloat16 change, part by part.

    python benchmarks/compile.py --size embedded > benchmarks/compile.md
    python benchmarks/compile.py --size medium --rounds 3 >> benchmarks/compile.md

Vision and bridge run on groups of four images, as in a run; the language model on four rows. The
same network runs as it was loaded in float32, compiled (`vlm.compile`), and in bfloat16, in turn.
The ratios are float32 over the other: above 1 the other is faster. `pays from` is the number of
images or rows after which compiling has saved what it took. `vlm.compile` leaves the language model
alone: its layers are compiled here only to show what that leaves out.
"""

from __future__ import annotations

import argparse
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measuring import SUPPORT, Clock, Work, header, in_turn, ratio

sys.path.insert(0, SUPPORT)

import shapes

from mmedit import load_cases
from mmedit.adapters import adapter_for
from mmedit.adapters.base import Adapter
from mmedit.adapters.compiled import compile_layers, compiled_unless_heard
from mmedit.vlm.frozen import GROUP

Runs = Mapping[str, Callable[[], Any]]
PARTS = ("vision", "bridge", "language")
FORMATS = Path("/proc/cpuinfo")
FAST_BFLOAT16 = ("avx512_bf16", "amx_bf16")
"""Flags of x86 processors that multiply matrices in bfloat16."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=shapes.SHAPES, default="embedded")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    clock = Clock(torch.device("cpu"))
    found = [flag for flag in FAST_BFLOAT16 if flag in _flags()]
    print(header("compile.py", sys.argv[1:], clock, rounds=options.rounds))
    print(f"Fast bfloat16 (avx512_bf16, amx_bf16): {', '.join(found) or 'neither'}\n")
    print(
        f"| {options.size} | float32, ms each | compiled | difference | compiling, s | pays from "
        "| bfloat16 | difference |\n|---|--:|--:|--:|--:|--:|--:|--:|"
    )
    network, processor = shapes.build(options.size)
    if options.size in shapes.RANDOM:
        for weight in network.vision_model.parameters():
            if weight.ndim > 1:  # transformers draws them so small that no layer changes a feature
                weight.normal_(std=0.02)
    for part in PARTS:
        print(row(part, network, processor, options.rounds, clock), flush=True)


def row(part: str, network: Any, processor: Any, rounds: int, clock: Clock) -> str:
    """Return the row of one part. Only its own layers are compiled."""
    plain = runs_of(network, processor)[part]
    halved = runs_of(deepcopy(network).to(torch.bfloat16), processor)[part]
    fast = runs_of(deepcopy(network), processor, compiled=part == "language" or "images")[part]
    expected = plain()
    before = _used()
    found = fast()
    compiling = _used() - before
    works = {"plain": Work(plain), "fast": Work(fast), "half": Work(halved)}
    times = in_turn(works, rounds, clock)
    each, saved = (median(times[name]) / GROUP for name in ("plain", "fast"))
    gain = ratio(times["plain"], times["fast"])
    pays = f"{compiling / (each - saved):,.0f}" if gain > 1 and saved < each else "never"
    return (
        f"| {part} | {1e3 * each:.1f} | {gain:.2f} | {apart(found, expected):.0e} "
        f"| {compiling:.0f} | {pays} | {ratio(times['plain'], times['half']):.2f} "
        f"| {apart(halved(), expected):.0e} |"
    )


def runs_of(network: Any, processor: Any, *, compiled: bool | str = False) -> Runs:
    """Return what runs each part of a network; `compiled` is True for the language model's layers,
    "images" for those of vision and bridge.
    """
    adapter = adapter_for(network.config)(network, processor)
    cases = load_cases("easyvqa", "test", limit=GROUP)
    examples = [case.request for case in cases]
    seen = {number: adapter.see(example) for number, example in enumerate(examples)}
    images = list(seen.values())
    vision = adapter.vision(images)
    features = adapter.bridge(vision, images)
    inputs = adapter.inputs(examples, seen, padding_side="right")
    if compiled == "images":
        compile_layers(adapter)
    elif compiled:
        compile_language(adapter)
    return {
        "vision": lambda: adapter.vision(images),
        "bridge": lambda: adapter.bridge(vision, images),
        "language": lambda: adapter.logits(inputs, features),
    }


def compile_language(adapter: Adapter) -> None:
    for layer in adapter.layers:
        layer.forward = compiled_unless_heard(layer, torch.compile)


def apart(found: Sequence[Any] | Any, expected: Sequence[Any] | Any) -> float:
    """Return the largest difference, as a share of the largest number."""
    one, other = (torch.stack(list(tensors)).float() for tensors in (found, expected))
    return ((one - other).abs().max() / other.abs().max()).item()


def _used() -> float:
    """Return the processor time of this process and of the compilers it has started, in seconds."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _flags() -> set[str]:
    return set(FORMATS.read_text().split()) if FORMATS.is_file() else set()


if __name__ == "__main__":
    main()
