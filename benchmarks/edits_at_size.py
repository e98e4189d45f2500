"""What an edit costs at the size of a released checkpoint, with random weights.

    python benchmarks/edits_at_size.py --size llava-1.5-7b >> benchmarks/edits_at_size.md

Speed and memory do not depend on the values of the weights. For each method: the time of an edit
made alone and of `--requests` edits in one pass, the largest memory, and what a question costs with
all these edits in place of the base model's (`apply_each`, each row under its own). Methods that
search until a loss is small are given no such end, so all of them take all their steps. Settings
are those of configs/editor for the VLM. Methods that train a network are left out: see training.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from learners import GIGABYTE, full_size, random_vlm
from measuring import Clock, Work, header, in_turn, ratio

from mmedit import Editor, Example, load_cases, load_editor
from mmedit.bench.costs import forget_peak_memory, peak_memory_bytes
from mmedit.editors.fitting import Fitting
from mmedit.vlm.network import NetworkVLM

METHODS = ("ft", "ultraedit", "rome", "memit", "alphaedit")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=sorted(full_size.RUNNABLE), default="llava-1.5-7b")
    parser.add_argument("--methods", nargs="+", default=[*METHODS])
    parser.add_argument("--requests", type=int, default=8, help="edits in one pass")
    parser.add_argument("--train", type=int, default=32, help="training cases of the fit")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    vlm = random_vlm(options.size, dtype, device)
    clock = Clock(device, torch.get_num_threads())
    requests = [case.request for case in load_cases("easyvqa", "test", limit=options.requests)]
    settings = {"size": options.size, "dtype": dtype, "training cases": options.train}
    print(header("edits_at_size.py", sys.argv[1:], clock, **settings))
    number = len(requests)
    print(
        f"| method | alone, ms | {number} at once, ms an edit | ratio | peak GB "
        "| question under edits / base |"
    )
    print("|---|--:|--:|--:|--:|--:|")
    for name in options.methods:
        report(name, vlm, requests, options, clock)


def report(
    name: str, vlm: NetworkVLM, requests: Sequence[Example], options: Any, clock: Clock
) -> None:
    """Print the row of one method."""
    if clock.device.type == "cuda":
        torch.cuda.empty_cache()
    forget_peak_memory(vlm.devices)
    editor = fitted(name, vlm, options)
    works = {
        "one": Work(partial(editor.apply_each, vlm, requests[:1])),
        "many": Work(partial(editor.apply_each, vlm, requests)),
    }
    times = in_turn(works, options.rounds, clock)
    peak = peak_memory_bytes(vlm.devices) / GIGABYTE
    edited = editor.apply_each(vlm, requests)
    asked = {
        "edited": Work(partial(answer, edited, requests)),
        "base": Work(partial(answer, vlm, requests)),
    }
    questions = in_turn(asked, options.rounds, clock)
    one, many = 1000 * median(times["one"]), 1000 * median(times["many"]) / len(requests)
    saved = len(requests) * ratio(times["one"], times["many"])
    slower = ratio(questions["edited"], questions["base"])
    print(
        f"| {editor.label} | {one:.0f} | {many:.0f} | {saved:.1f} | {peak:.1f} | {slower:.2f} |",
        flush=True,
    )


def fitted(name: str, vlm: NetworkVLM, options: Any) -> Editor:
    """Return an editor with the settings for a VLM of this size, which ends no search early."""
    editor = load_editor(name, options.size)
    fields = type(editor.config).model_fields
    if "value" in fields:
        editor = load_editor(name, options.size, value={"stop_loss": 0.0})
    elif "stop_loss" in fields:
        editor = load_editor(name, options.size, stop_loss=0.0)
    if not editor.needs_fit:
        return editor
    # Random weights answer with tokens that are no text, which statistics would leave out.
    answers = partial(replies, "blue")
    with patch.object(NetworkVLM, "generate", answers):
        return editor.fit(vlm, Fitting(load_cases("easyvqa", "train", limit=options.train)))


def replies(text: str, examples: Sequence[Example], **_: Any) -> list[str]:
    return [text] * len(examples)


@torch.no_grad()
def answer(vlm: Any, examples: Sequence[Example]) -> None:
    vlm.predict(examples, answers_only=[True] * len(examples))


if __name__ == "__main__":
    main()
