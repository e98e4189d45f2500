"""What the last edit of a sequence costs beside the first one, what the edits take up, and what an
unrelated question costs afterwards.

    python benchmarks/sequences.py > benchmarks/sequences.md
    python benchmarks/sequences.py --edits 1000 --editors grace serac ft >> benchmarks/sequences.md

The edits are made one after another, as `mmedit bench --mode sequential` makes them. The last ten
have the same requests as the first ten, so that they are equally long. Editors that train a
network are not trained, and the edits of MEND and KE are made small: costs do not depend on how
well they edit. Editors with statistics or a memory are fitted to `--train` cases. Questions are
those of training cases, about other images, asked one at a time and sixteen together, of the edited
model and of the base model in turn. All of them are new, so nothing is kept of them but image
features. MB are those of the folder that `edited.save` writes. Processor time of one thread;
medians.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

from threads import processor

from mmedit import EditCase, Example, load_cases, load_editor, load_vlm
from mmedit.editors.base import Editor
from mmedit.editors.config import SitesConfig
from mmedit.editors.fitting import Fitting
from mmedit.editors.learned import LearnedEditor, TrainedNetwork
from mmedit.editors.saved import origin_of
from mmedit.vlm.interface import VLM

ENDS, BATCH, ROUNDS = 10, 16, 60
SMALL = {"mend": {"edit_lr": 1e-6}, "ke": {"max_scale": 1e-6}}
"""Settings that keep the edits of untrained networks small."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--edits", type=int, default=100)
    parser.add_argument("--train", type=int, default=100, help="training cases of the fit")
    parser.add_argument("--editors", nargs="+", default=["ft-l", "ft", "mend", "ke"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    vlm = load_vlm("embedded")
    cases = load_cases("easyvqa", "test", limit=options.edits, questions_per_picture=2)
    requests = [case.request for case in cases[: options.edits - ENDS]]
    requests += requests[:ENDS]
    print(f"{processor()}, torch {torch.__version__}, 1 thread, {len(requests)} edits, embedded\n")
    numbers = count(10**6)  # of one length
    training = load_cases("easyvqa", "train", limit=options.train)
    others = [case.request for case in training[:BATCH]]
    print(
        "| editor | first edits, ms | last / first | MB | question after / before | 16 questions |"
    )
    print("|---|--:|--:|--:|--:|--:|")
    for name in options.editors:
        editor = ready(load_editor(name, vlm, **SMALL.get(name, {})), vlm, training)
        edited, taken = in_sequence(editor, vlm, requests)
        first, last = median(taken[:ENDS]), median(taken[-ENDS:])
        one = ratio(vlm, edited, others[:1], numbers)
        many = ratio(vlm, edited, others, numbers)
        print(
            f"| {editor.label} | {1000 * first:.1f} | {last / first:.2f} "
            f"| {megabytes(edited):.1f} | {one:.2f} | {many:.2f} |",
            flush=True,
        )


def ready(editor: Editor[Any], vlm: VLM, training: Sequence[EditCase]) -> Editor[Any]:
    """Return the editor fitted; one that trains a network gets a new one instead."""
    if not isinstance(editor, LearnedEditor):
        return editor.fit(vlm, Fitting(training)) if editor.needs_fit else editor
    torch.manual_seed(0)
    facts = editor.facts(vlm)
    network = editor.build(facts).to(vlm.device).requires_grad_(False).eval()
    config = editor.config
    sites = config.sites_of(vlm) if isinstance(config, SitesConfig) else ()
    origin = origin_of(vlm, sites, [], 0)
    return editor.with_learnt(TrainedNetwork(facts, network), origin)


def in_sequence(
    editor: Editor[Any], vlm: VLM, requests: Sequence[Example]
) -> tuple[VLM, list[float]]:
    """Return the VLM with an edit of every request, and the seconds of each edit."""
    vlm.predict(requests[:BATCH])  # looks at their images
    editor.apply(vlm, requests[:1])  # one that does not count
    edited, taken = vlm, []
    for request in requests:
        begun = time.process_time()
        edited = editor.apply(edited, [request]).merged()
        taken.append(time.process_time() - begun)
    return edited, taken


def megabytes(edited: VLM) -> float:
    """Return the size of the saved edits."""
    with TemporaryDirectory() as folder:
        edited.save(Path(folder) / "edits")
        return sum(file.stat().st_size for file in Path(folder).rglob("*")) / 1e6


@torch.no_grad()
def ratio(base: VLM, edited: VLM, requests: Sequence[Example], numbers: Iterator[int]) -> float:
    """Return the cost of new questions to the edited model over that to the base model."""

    def cost(vlm: VLM) -> float:
        number = next(numbers)
        asked = [replace(one, prompt=f"{number} {one.prompt}") for one in requests]
        return seconds(partial(vlm.predict, asked))

    after, before = zip(*[(cost(edited), cost(base)) for _ in range(ROUNDS + 1)][1:], strict=True)
    return median(after) / median(before)


def seconds(step: Callable[[], object]) -> float:
    begun = time.process_time()
    step()
    return time.process_time() - begun


if __name__ == "__main__":
    main()
