"""What an outer step of training costs, against one edit at a time and against the bare network.

    python benchmarks/training.py > benchmarks/training.md
    for editor in mend ke serac; do
        python benchmarks/training.py --memory blip2-opt-2.7b --dtype bfloat16 --editor $editor
    done >> benchmarks/training.md

A step trains on a batch of separate edits. Run in turn with it, on the same cases, with image
features looked up:

(a) the same step done one edit at a time: gradients added up, then one optimiser step;
(b) the floor: a bare forward and backward of the network's language model over the same tokens
    (requests and probes) with tokens and features ready, and a forward over the locality probes.
    SERAC sends no gradient through the VLM: a forward, and a forward and backward of its own
    counterfactual model over the same questions.

(a) / (b) is the most that batching can save here. Medians of ratios are what counts, as machines
differ and are noisy.

`--memory`: the most memory of one outer step with an editor's published settings, on a network of a
released checkpoint's size with random values; on a GPU torch's own figure, on a CPU the most that
the whole process held.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from learners import full_size, learner_of, memory_of_a_step, outer_step, random_vlm
from measuring import Clock, Work, in_turn, ratio

from mmedit import EditCase, Example, load_cases, load_editor, load_vlm
from mmedit.cases import Probe
from mmedit.editors.learned import LearnedEditor
from mmedit.editors.objective import groups
from mmedit.methods.serac.counterfactual import make_inputs
from mmedit.metrics.multiclass_log_probs import answer_nll
from mmedit.vlm.network import NetworkVLM
from mmedit.vlm.passes import aligned


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--memory", choices=sorted(full_size.RUNNABLE), help="a released size")
    parser.add_argument("--editor", default="mend", choices=["mend", "ke", "serac"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    options = parser.parse_args()
    if options.memory:
        dtype, device = getattr(torch, options.dtype), torch.device(options.device)
        vlm = random_vlm(options.memory, dtype, device)
        print(f"\n{memory_of_a_step(options.editor, options.memory, vlm)}")
    else:
        report_steps(options.batch, options.rounds)


def report_steps(batch: int, rounds: int) -> None:
    vlm = load_vlm("embedded")
    cases = load_cases("easyvqa", "train", limit=batch)
    clock = Clock(vlm.device, torch.get_num_threads())
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch {batch}, median of "
        f"{rounds}; the embedded VLM, settings of configs/editor\n"
    )
    print("| editor | step, s | 1,000 edits, s | (a) / step | step / (b) | (a) / (b) |")
    print("|---|--:|--:|--:|--:|--:|")
    for name in ("mend", "ke", "serac"):
        editor = load_editor(name, vlm)
        assert isinstance(editor, LearnedEditor)
        step, alone = steps(editor, vlm, cases)
        floor = bare(vlm, cases, gradient=name != "serac")
        if name == "serac":
            floor = both(floor, counterfactual(editor, vlm, cases))
        works = {"step": Work(step), "alone": Work(alone), "floor": Work(floor)}
        times = list(in_turn(works, rounds, clock).values())
        seconds = median(times[0])
        faster, above = ratio(times[1], times[0]), ratio(times[0], times[2])
        bound = ratio(times[1], times[2])
        print(
            f"| {editor.label} | {seconds:.3f} | {1000 * seconds / batch:.1f} | {faster:.1f} "
            f"| {above:.2f} | {bound:.1f} |",
            flush=True,
        )


def steps(
    editor: LearnedEditor, vlm: NetworkVLM, cases: Sequence[EditCase]
) -> tuple[Callable[[], None], Callable[[], None]]:
    """An outer step on all cases, and the same one edit at a time."""
    learner = learner_of(editor, vlm, cases)
    optimizer = learner.optimizer()

    def one_at_a_time() -> None:
        optimizer.zero_grad()
        for case in cases:
            loss, _ = learner([case])
            (loss / len(cases)).backward()
        optimizer.step()

    return outer_step(learner, cases, optimizer=optimizer), one_at_a_time


def bare(vlm: NetworkVLM, cases: Sequence[EditCase], *, gradient: bool) -> Callable[[], None]:
    """The language model alone over all examples of the step."""
    kinds = [probe for probe in Probe if probe in cases[0].probes]
    forwards, again = (
        [
            language_model(vlm, [case.probes[probe][0] for probe in group for case in cases])
            for group in groups(cases, probes)
        ]
        for probes in (kinds, [probe for probe in kinds if probe.is_locality])
    )

    def run() -> None:
        for forward in forwards:
            with torch.set_grad_enabled(gradient):
                loss = forward()
                if gradient:
                    loss.backward()
        with torch.no_grad():
            for forward in again:
                forward()

    return run


def counterfactual(
    editor: LearnedEditor, vlm: NetworkVLM, cases: Sequence[EditCase]
) -> Callable[[], None]:
    """SERAC's small model alone, told of all questions."""
    model: Any = editor.build(editor.facts(vlm))
    kinds = [probe for probe in Probe if probe in cases[0].probes]
    asked = [case.probes[probe][0] for probe in kinds for case in cases]
    rows = make_inputs([case.request for _ in kinds for case in cases], asked, vlm.frozen)

    def run() -> None:
        model.counterfactual(rows, vlm.frozen).logsumexp(-1).mean().backward()

    return run


def both(first: Callable[[], None], second: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        first()
        second()

    return run


def language_model(vlm: NetworkVLM, examples: Sequence[Example]) -> Callable[[], Any]:
    """The mean NLL, with a gradient from the embeddings on."""
    adapter = vlm.adapter
    images = vlm.frozen.see(examples)
    inputs = adapter.inputs(examples, images, padding_side="right")
    features = vlm.frozen.stage("bridge", list(images.values()))
    embeddings = adapter.network.get_input_embeddings()

    def run() -> Any:
        leaf = embeddings.register_forward_hook(lambda _, ids, made: made.requires_grad_())
        try:
            predictions = aligned(inputs, adapter.logits(inputs, features))
        finally:
            leaf.remove()
        nll = answer_nll(predictions.logits, predictions.target, predictions.is_answer)
        return nll.mean()

    return run


if __name__ == "__main__":
    main()
