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
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

import full_size
import tiny

from mmedit import EditCase, Example, load_cases, load_editor, load_vlm
from mmedit.adapters import adapter_for
from mmedit.bench.protocol import peak_memory_bytes
from mmedit.cases import Probe
from mmedit.editors.learned import LearnedEditor
from mmedit.editors.objective import groups
from mmedit.methods import EDITORS
from mmedit.methods.serac.counterfactual import make_inputs
from mmedit.metrics.multiclass_log_probs import answer_nll
from mmedit.training.learner import Learner
from mmedit.vlm.network import NetworkVLM
from mmedit.vlm.passes import aligned

GIGABYTE = 1e9


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
        report_memory(options.editor, options.memory, dtype, device)
    else:
        report_steps(options.batch, options.rounds)


def report_steps(batch: int, rounds: int) -> None:
    vlm = load_vlm("embedded")
    cases = load_cases("easyvqa", "train", limit=batch)
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
        times = in_turn([step, alone, floor], rounds)
        seconds = median(times[0])
        faster = median(one / whole for one, whole in zip(times[1], times[0], strict=True))
        above = median(whole / least for whole, least in zip(times[0], times[2], strict=True))
        bound = median(one / least for one, least in zip(times[1], times[2], strict=True))
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

    def together() -> None:
        optimizer.zero_grad()
        loss, _ = learner(cases)
        loss.backward()
        optimizer.step()

    def one_at_a_time() -> None:
        optimizer.zero_grad()
        for case in cases:
            loss, _ = learner([case])
            (loss / len(cases)).backward()
        optimizer.step()

    return together, one_at_a_time


def learner_of(editor: LearnedEditor, vlm: NetworkVLM, cases: Sequence[EditCase]) -> Learner:
    torch.manual_seed(0)
    network = editor.build(editor.facts(vlm)).to(vlm.device)
    return editor.learner(vlm, network, cases).train()


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


def in_turn(runs: Sequence[Callable[[], Any]], rounds: int) -> list[list[float]]:
    """Seconds of each, run in turn, after one round that does not count."""
    times: list[list[float]] = [[] for _ in runs]
    for number in range(rounds + 1):
        for place, run in enumerate(runs):
            begun = time.perf_counter()
            run()
            if number:
                times[place].append(time.perf_counter() - begun)
    return times


def report_memory(method: str, name: str, dtype: torch.dtype, device: torch.device) -> None:
    network, processor = full_size.with_random_values(name, dtype, device)
    network.eval().requires_grad_(False)
    vlm = NetworkVLM(adapter_for(network.config)(network, processor))
    kind = EDITORS[method]
    editor = kind(kind.config_class())
    assert isinstance(editor, LearnedEditor)
    cases = random_cases(editor.config.training.batch_size)
    learner = learner_of(editor, vlm, cases)
    optimizer = learner.optimizer()
    begun = time.perf_counter()
    loss, _ = learner(cases)
    loss.backward()
    optimizer.step()
    seconds = time.perf_counter() - begun
    sizes = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (network, learner)]
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(
        f"\nOne outer step of {method.upper()} ({len(cases)} edits) on {name}, random values, "
        f"{str(dtype).removeprefix('torch.')}, {hardware}: network {sizes[0]:,.0f} M parameters, "
        f"editor {sizes[1]:,.0f} M in float32; at most "
        f"{peak_memory_bytes(device) / GIGABYTE:.1f} GB, {seconds:.0f} s."
    )


def random_cases(number: int) -> list[EditCase]:
    """E-VQA's kinds of probes about noise."""
    images = [tiny.random_image(seed, width=640, height=480) for seed in range(3 * number)]
    prompt, answer = "which color does the rectangle have?", "blue"

    def example(image: int | None, prompt: str = prompt) -> Example:
        picture = None if image is None else images[image]
        return Example(prompt=prompt, target=answer, image=picture)

    return [
        EditCase(
            id=str(row),
            request=example(3 * row),
            probes={
                Probe.TEXT_GENERALITY: (example(3 * row, "what color is the shape?"),),
                Probe.IMAGE_GENERALITY: (example(3 * row + 1),),
                Probe.TEXT_LOCALITY: (example(None, "what is the capital of Albania?"),),
                Probe.IMAGE_LOCALITY: (example(3 * row + 2),),
            },
        )
        for row in range(number)
    ]


if __name__ == "__main__":
    main()
