"""Editors that learn, for the measuring programs: a fresh learner, its outer step, and the memory
that a step takes at the size of a released checkpoint.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from measuring import SUPPORT

sys.path.insert(0, SUPPORT)

import full_size
import tiny

from mmedit import EditCase, Example
from mmedit.adapters import adapter_for
from mmedit.bench.costs import forget_peak_memory, peak_memory_bytes
from mmedit.cases import Probe
from mmedit.editors.base import Editor
from mmedit.editors.learned import LearnedEditor
from mmedit.methods import EDITORS
from mmedit.training.learner import Learner
from mmedit.vlm.network import NetworkVLM

GIGABYTE = 1e9
PUBLISHED_GB = {
    ("blip2-opt-2.7b", "mend"): "21-23",
    ("blip2-opt-2.7b", "serac"): "15-17",
    ("llava-1.5-7b", "mend"): "54-61",
    ("llava-1.5-7b", "serac"): "71-80",
}
"""GPU memory of the published code, in GB, for MMKE-Bench's three kinds of edits (its README)."""


def learner_of(editor: LearnedEditor, vlm: NetworkVLM, cases: Sequence[EditCase]) -> Learner:
    torch.manual_seed(0)
    network = editor.build(editor.facts(vlm)).to(vlm.device)
    return editor.learner(vlm, network, cases).train()


def outer_step(
    learner: Learner, cases: Sequence[EditCase], *, optimizer: torch.optim.Optimizer | None = None
) -> Callable[[], None]:
    """Return a step on all cases: forward, backward, optimiser."""
    optimizer = optimizer or learner.optimizer()

    def step() -> None:
        optimizer.zero_grad()
        loss, _ = learner(cases)
        loss.backward()
        optimizer.step()

    return step


def prepared(
    editor: Editor, vlm: NetworkVLM, cases: Sequence[EditCase]
) -> AbstractContextManager[None]:
    """Keep what the training of an editor keeps of these cases over its steps."""
    if isinstance(editor, LearnedEditor):
        return vlm.frozen.prepared(editor.asked(vlm, cases))
    return nullcontext()


def random_vlm(name: str, dtype: torch.dtype, device: torch.device) -> NetworkVLM:
    """Return a VLM of a released checkpoint's size, with random values."""
    network, processor = full_size.with_random_values(name, dtype, device)
    network.eval().requires_grad_(False)
    return NetworkVLM(adapter_for(network.config)(network, processor))


def memory_of_a_step(method: str, name: str, vlm: NetworkVLM) -> str:
    """Return a sentence: the most memory of one outer step with the method's published settings."""
    kind = EDITORS[method]
    editor = kind(kind.config_class())
    assert isinstance(editor, LearnedEditor)
    cases = random_cases(editor.config.training.batch_size)
    learner, device = learner_of(editor, vlm, cases), vlm.device
    forget_peak_memory(vlm.devices)
    begun = time.perf_counter()
    outer_step(learner, cases)()
    seconds = time.perf_counter() - begun
    network = vlm.adapter.network
    sizes = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (network, learner)]
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    published = PUBLISHED_GB.get((name, method))
    beside = f" (published code: {published} GB)" if published else ""
    return (
        f"One outer step of {method.upper()} ({len(cases)} edits) on {name}, random values, "
        f"{str(network.dtype).removeprefix('torch.')}, {hardware}: network {sizes[0]:,.0f} M "
        f"parameters, editor {sizes[1]:,.0f} M in float32; at most "
        f"{peak_memory_bytes(vlm.devices) / GIGABYTE:.1f} GB{beside}, {seconds:.0f} s."
    )


def random_cases(number: int) -> list[EditCase]:
    """Return cases with E-VQA's kinds of probes, about noise."""
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
