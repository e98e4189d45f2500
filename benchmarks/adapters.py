"""What an adapter costs over plain transformers, and what the cache of image features saves.

    python benchmarks/adapters.py --rounds 9 > benchmarks/adapters.md
    python benchmarks/adapters.py --full smolvlm-256m --rows 2 --rounds 3 --dtype bfloat16 \\
        >> benchmarks/adapters.md

Models have random values: speed does not depend on them. Every family as the tests' tiny model, or,
with `--full`, a network of a released checkpoint's size (tests/support/full_size.py), on
`--device`.
Per family, with a batch of `--rows` questions about one image each:

- overhead, warm: `VLM.predict` with features looked up, over transformers' forward of the language
  model with the same features given (`mm_encoder_outputs`) and the tokens ready;
- overhead, cold: `VLM.predict` with an empty cache, over the processor and transformers' forward
  with pixels;
- a case of five probes (request, rephrase, other image, text, image locality), before and after:
  passes of an image through vision with and without the cache, and the time saved, in passes.

Both sides run in turn; the median of the ratios is what counts, as machines differ and are noisy.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from inspect import signature
from pathlib import Path
from statistics import median
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

import full_size
import tiny
import tiny_families

from mmedit import Example
from mmedit.adapters import adapter_for
from mmedit.images import open_image
from mmedit.vlm.network import NetworkVLM

ROUNDS = 7
PROMPT, TARGET = "what is in the image, and where does it stand?", "a small teal triangle"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", choices=sorted(full_size.RUNNABLE), help="a released size")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    options = parser.parse_args()
    names = [options.full] if options.full else ["blip2", *tiny_families.FAMILIES]
    size = "full size" if options.full else "tiny"
    device = torch.device(options.device)
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(
        f"torch {torch.__version__}, {hardware}, {torch.get_num_threads()} threads, "
        f"{options.dtype}, {size}, {options.rows} rows, median of {options.rounds}\n"
    )
    print(
        "| model | parameters, M | predict warm, ms | overhead | predict cold, ms | overhead "
        "| vision passes, 5 probes | case, s | saved, in passes |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    for name in names:
        network, processor = built(name, options.full, getattr(torch, options.dtype), device)
        network.eval().requires_grad_(False)
        print(row(name, network, processor, options.rows, options.rounds), flush=True)
        del network


def built(name: str, full: str | None, dtype: torch.dtype, device: torch.device) -> Any:
    if full:
        return full_size.with_random_values(name, dtype, device)
    if name == "blip2":
        processor = tiny.build_processor()
        return tiny.build_network(processor).to(device, dtype), processor
    network, processor = tiny_families.build_family(name)
    return network.to(device, dtype), processor


def row(name: str, network: Any, processor: Any, rows: int, rounds: int) -> str:
    adapter = adapter_for(network.config)(network, processor)
    examples = [example(seed) for seed in range(rows)]
    vlm = NetworkVLM(adapter)
    vlm.predict(examples)
    warm, bare = paired(lambda: vlm.predict(examples), language_forward(vlm, examples), rounds)
    cold, plain = paired(
        lambda: NetworkVLM(adapter).predict(examples), whole_forward(vlm, examples), rounds
    )
    passes, seconds, saved = case_of_five_probes(adapter, rounds)
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    return (
        f"| {name} | {millions:.1f} | {1e3 * median(warm):.1f} | {overhead(warm, bare)} "
        f"| {1e3 * median(cold):.1f} | {overhead(cold, plain)} | {passes} "
        f"| {seconds} | {saved} |"
    )


@cache
def picture(seed: int) -> Path:
    """A photograph's size, in a file as datasets have it."""
    file = Path(tempfile.gettempdir()) / f"mmedit-benchmark-{seed}.png"
    tiny.random_image(seed, width=640, height=480).save(file)
    return file


def example(seed: int) -> Example:
    return Example(prompt=PROMPT, target=TARGET, image=picture(seed))


def language_forward(vlm: NetworkVLM, examples: Sequence[Example]) -> Callable[[], Any]:
    """Transformers alone, from ready tokens and features."""
    adapter = vlm.adapter
    images = {number: adapter.see(example) for number, example in enumerate(examples)}
    inputs = adapter.inputs(examples, images, padding_side="right")
    with torch.no_grad():
        features = adapter.encode(list(images.values()))
    return lambda: adapter.logits(inputs, features)


def whole_forward(vlm: NetworkVLM, examples: Sequence[Example]) -> Callable[[], Any]:
    """Decoding, the processor, and transformers' own forward with pixels; tokens are ready."""
    adapter = vlm.adapter
    images = {number: adapter.see(example) for number, example in enumerate(examples)}
    inputs = adapter.inputs(examples, images, padding_side="right")
    network, kind = adapter.network, adapter.network.dtype
    read: dict[str, Any] = {}
    if "qformer_input_ids" in signature(network.forward).parameters:
        tokens = adapter.processor.qformer_tokenizer(
            [example.prompt for example in examples], padding=True, return_tensors="pt"
        )
        read = {f"qformer_{name}": tokens[name] for name in ("input_ids", "attention_mask")}

    def run() -> Any:
        made = [adapter.prepare(open_image(e.image))[1] for e in examples if e.image]
        pixels = {name: torch.cat([one[name] for one in made]) for name in made[0]}
        placed = {
            name: t.to(adapter.device, kind if t.is_floating_point() else None)
            for name, t in {**pixels, **inputs.extras, **read}.items()
        }
        return network(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, **placed)

    return run


def case_of_five_probes(adapter: Any, rounds: int) -> tuple[str, str, str]:
    """Vision passes without and with the cache, seconds of both, and (saved seconds) / (decoding,
    preparing and encoding one image)."""
    request, other, elsewhere = (example(seed) for seed in range(3))
    rephrased = replace(request, prompt="tell me what can be seen here")
    text = Example(prompt="what is the capital of Albania?", target="Tirana")
    probes = [request, rephrased, replace(request, image=other.image), text, elsewhere]
    images = [probe for probe in probes if probe.image is not None]

    def ask(*, cached: bool) -> None:
        vlm = NetworkVLM(adapter)
        for _ in ("before", "after"):
            for probe in probes:
                (vlm if cached else NetworkVLM(adapter)).predict([probe])

    without, cached = paired(lambda: ask(cached=False), lambda: ask(cached=True), rounds)
    seen = [adapter.see(probe) for probe in images]
    one = [seconds(lambda: adapter.encode([adapter.see(request)])) for _ in range(rounds)]
    distinct = len({adapter.feature_key(image) for image in seen})
    avoided = 2 * len(images) - distinct
    saved = median(a - b for a, b in zip(without, cached, strict=True)) / median(one)
    return (
        f"{2 * len(images)} -> {distinct}",
        f"{median(without):.2f} -> {median(cached):.2f}",
        f"{saved:.1f} of {avoided}",
    )


def paired(
    first: Callable[[], Any], second: Callable[[], Any], rounds: int
) -> tuple[list[float], list[float]]:
    """Seconds of both, run in turn, after one round that does not count."""
    pairs = [(seconds(first), seconds(second)) for _ in range(rounds + 1)][1:]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


@torch.no_grad()
def seconds(run: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def overhead(ours: Sequence[float], bare: Sequence[float]) -> str:
    ratio = median(a / b for a, b in zip(ours, bare, strict=True))
    return f"{100 * (ratio - 1):+.1f} %"


if __name__ == "__main__":
    main()
