"""Finds the Linear modules of a network that are edited by default."""

from __future__ import annotations

import re

from torch import nn


def sites_in(
    network: nn.Module, pattern: re.Pattern[str], *, last: int, until: int | None = None
) -> tuple[str, ...]:
    """Return the names of the Linear modules that match, in the `last` layers before layer `until`.

    The pattern's first group is the number of the layer.
    """
    found = [
        (int(match[1]), name)
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and (match := pattern.search(name))
    ]
    layers = sorted({layer for layer, _ in found if until is None or layer < until})[-last:]
    return tuple(name for layer, name in found if layer in layers)


def linears(module: nn.Module, prefix: str) -> tuple[str, ...]:
    """Return the names of all Linear modules inside a module, in order."""
    return tuple(
        f"{prefix}.{name}" if name else prefix
        for name, inner in module.named_modules()
        if isinstance(inner, nn.Linear)
    )
