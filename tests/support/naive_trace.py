"""Causal tracing as a reader would write it first: one restoration per forward, starting anew."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from mmedit.cases import Example
from mmedit.trace.corruption import Corrupted
from mmedit.trace.settings import COMPONENTS
from mmedit.vlm.network import NetworkVLM


def naive_trace(
    vlm: NetworkVLM, item: Corrupted, masks: Tensor, width: int
) -> tuple[Tensor, Tensor]:
    """Return p(answer) of the draws, and with each component, group and layer put back, a mean over
    the draws.
    """
    parts = {one: [_part(layer, one) for layer in vlm.adapter.layers] for one in COMPONENTS}
    clean_features = _features(vlm, item.example)
    kept: dict[nn.Module, Tensor] = {}
    with ExitStack() as hooks:
        for module in {module for one in parts.values() for module in one}:
            hooks.callback(module.register_forward_hook(_keep(kept)).remove)
        _answer(vlm, item.example, clean_features)
    layers = len(vlm.adapter.layers)
    corrupt = torch.zeros(item.draws)
    found = torch.zeros(len(COMPONENTS), len(masks), layers, item.draws)
    for draw in range(item.draws):
        features = [item.features[draw]] if item.features else []
        with _noised(vlm, item, draw):
            corrupt[draw] = _answer(vlm, item.example, features)
            for c, component in enumerate(COMPONENTS):
                for g, mask in enumerate(masks):
                    for layer in range(layers):
                        span = 1 if component == "block" else width
                        low = layer - span // 2
                        restored = range(max(0, low), min(layers, low + span))
                        with ExitStack() as hooks:
                            for n in restored:
                                module = parts[component][n]
                                hook = module.register_forward_hook(_put(kept[module], mask))
                                hooks.callback(hook.remove)
                            found[c, g, layer, draw] = _answer(vlm, item.example, features)
    return corrupt, found.mean(-1)


def _part(layer: Any, component: str) -> nn.Module:
    if component == "block":
        return layer
    if component == "attention":
        return layer.self_attn
    return layer.mlp if hasattr(layer, "mlp") else layer.fc2


def _features(vlm: NetworkVLM, example: Example) -> list[Tensor]:
    return vlm.frozen.stage("bridge", list(vlm.frozen.see([example]).values()))


@torch.no_grad()
def _answer(vlm: NetworkVLM, example: Example, features: list[Tensor]) -> float:
    inputs = vlm.adapter.inputs([example], vlm.frozen.see([example]), padding_side="right")
    logits = vlm.adapter.logits(inputs, features)[0].float().log_softmax(-1)
    total = 0.0
    for place, position in enumerate(inputs.position[0].tolist()):
        if inputs.is_answer[0, position]:
            total += float(logits[place, inputs.input_ids[0, position]])
    return float(torch.tensor(total).exp())


def _keep(kept: dict[nn.Module, Tensor]) -> Callable[..., None]:
    def keep(module: nn.Module, _: Any, output: Any) -> None:
        kept[module] = (output[0] if isinstance(output, tuple) else output).detach().clone()

    return keep


def _put(clean: Tensor, mask: Tensor) -> Callable[..., Any]:
    def put(_module: nn.Module, _: Any, output: Any) -> Any:
        changed = (output[0] if isinstance(output, tuple) else output).clone()
        flat, from_clean = changed.view(-1, changed.shape[-1]), clean.view(-1, clean.shape[-1])
        for position in mask.nonzero().flatten().tolist():
            flat[position] = from_clean[position]
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    return put


def _noised(vlm: NetworkVLM, item: Corrupted, draw: int) -> ExitStack:
    hooks = ExitStack()
    if item.noise is not None:
        noise = item.noise[draw : draw + 1]
        embeddings = vlm.adapter.network.get_input_embeddings()
        hook = embeddings.register_forward_hook(lambda _m, _i, output: output + noise)
        hooks.callback(hook.remove)
    return hooks
