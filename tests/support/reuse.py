"""VLMs of every family whose layers are counted, and the same VLMs without any reuse of layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal
from unittest.mock import patch

import tiny
import torch
from tiny_families import FAMILIES, build_family
from torch import Tensor, nn

from mmedit.adapters import adapter_for
from mmedit.deltas import Delta, Dense, LowRank
from mmedit.vlm.loading import load_vlm
from mmedit.vlm.network import NetworkVLM
from mmedit.vlm.prefills import Prefills
from mmedit.vlm.states import States

NAMES = ("embedded", "blip2", *FAMILIES)
FORMS = ("blip2", "llava", "qwen2_5_vl", "qwen3_vl", "gemma3", "instructblip")
"""BLIP-2, and families with plain positions, with positions in three dimensions, with image
features that are read between decoder layers too, with sliding windows and image tokens that see
each other, and with texts that pass the language model alone. What does not depend on how a family
names and nests its layers needs no others.
"""
Place = Literal["three", "last", "head"]
PLACES: tuple[Place, ...] = ("three", "last", "head")
"""Where an edit is: the first three layers, the last one, the head behind them. The tiny models
have three layers.
"""
Kind = type[LowRank] | type[Dense]


def build(name: str) -> NetworkVLM:
    """Return a small VLM of a family, or the embedded one."""
    if name == "embedded":
        return load_vlm(name)
    if name == "blip2":
        processor: Any = tiny.build_processor()
        network: Any = tiny.build_network(processor)
    else:
        network, processor = build_family(name)
    return NetworkVLM(adapter_for(network.config)(network, processor))


def sites_at(vlm: NetworkVLM, place: Place) -> tuple[str, ...]:
    """Return the last Linear of each layer of a place, or the head."""
    network, layers = vlm.adapter.network, vlm.adapter.layers
    if place == "head":
        head = network.get_output_embeddings()
        return tuple(name for name, module in network.named_modules() if module is head)
    chosen = {"three": layers[:3], "last": layers[-1:]}[place]
    last = [
        [module for module in layer.modules() if isinstance(module, nn.Linear)][-1]
        for layer in chosen
    ]
    return tuple(name for name, module in network.named_modules() if any(module is m for m in last))


def deltas_at(
    vlm: NetworkVLM,
    sites: Sequence[str],
    *,
    kind: Kind = LowRank,
    edits: int | None = None,
    scale: float = 0.3,
) -> dict[str, Delta]:
    """Return seeded deltas: one edit of all rows, or so many separate ones."""
    generator = torch.Generator().manual_seed(0)
    lead = () if edits is None else (edits,)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*lead, *shape, generator=generator) * scale

    return {
        site: LowRank(*(drawn(2, n) for n in vlm.shape(site)))
        if kind is LowRank
        else Dense(drawn(*vlm.shape(site)) * scale)
        for site in sites
    }


def first_layer(vlm: NetworkVLM, sites: Sequence[str]) -> int:
    """Return the number of layers before the first of these sites."""
    names = {id(module): name for name, module in vlm.adapter.network.named_modules()}
    layers = [names[id(layer)] for layer in vlm.adapter.layers]
    inside = [n for n, name in enumerate(layers) if any(s.startswith(f"{name}.") for s in sites)]
    return min(inside, default=len(layers))


@contextmanager
def runs_of_layers(vlm: NetworkVLM) -> Iterator[list[int]]:
    """Count the forwards of every decoder layer; a skipped one runs nothing that is in it."""
    layers = vlm.adapter.layers
    runs, hooks = [0] * len(layers), []

    def count(number: int):
        def add(*_: object) -> None:
            runs[number] += 1

        return add

    for number, layer in enumerate(layers):
        attention = layer.get_submodule("self_attn")
        hooks.append(attention.register_forward_hook(count(number)))
    try:
        yield runs
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def no_reuse() -> Iterator[None]:
    """Let every forward run all layers, and keep nothing."""

    def whole(states: Any, inputs: Any, *_: Any, features: Any, **__: Any) -> Tensor:
        return states._adapter.logits(inputs, features())

    def as_it_is(*_: Any, **__: Any) -> Any:
        return nullcontext()

    with patch.object(States, "logits", whole), patch.object(Prefills, "used", as_it_is):
        yield
