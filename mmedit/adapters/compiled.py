"""`torch.compile` for the layers of the vision tower and of the bridge.

They run in the same form for every image and are rarely edited. The language model stays as it is:
edits reach its layers, and a layer that is compiled in the base model and not in the edited one
would move the last digits of answers that an edit leaves alone, in half precision the ranks too.

Every layer is compiled by itself. Layers of one kind share their code, so a tower of 40 takes as
long to compile as one of 2; the first size of images is compiled as it is, and a second one once
more for all sizes. A convolutional tower has a new shape in nearly every layer and is compiled as
one. A layer with a hook at a Linear (an edit, a recorder) runs as it was loaded, and so does one
with gradients.
"""

from __future__ import annotations

import inspect
import os
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from mmedit.adapters.base import Adapter
from mmedit.errors import ModelError

Compiler = Callable[[Callable[..., Any]], Callable[..., Any]]
COMPILED = "_is_compiled"
"""Attribute that tells a compiled forward."""
COMPILERS = {"win32": "cl", "darwin": "clang++"}
"""The C++ compilers that torch.compile looks for; on other systems it is g++."""


def require_compiler() -> None:
    """Raise ModelError unless this machine has what `torch.compile` needs: a C++ compiler and the
    headers of Python.
    """
    named = os.environ.get("CXX") or COMPILERS.get(sys.platform, "g++")
    if shutil.which(shlex.split(named)[0]) is None:
        raise ModelError(
            f"vlm.compile needs a C++ compiler, and {named} is not installed: install it (on "
            "Debian and Ubuntu: apt install g++), name another one in the variable CXX, or leave "
            "vlm.compile out"
        )
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.is_file():
        raise ModelError(
            f"vlm.compile needs the headers of Python, and {header} does not exist: install them "
            "(on Debian and Ubuntu: apt install python3-dev), or leave vlm.compile out"
        )


def compile_layers(adapter: Adapter, compiler: Compiler = torch.compile) -> None:
    """Compile the layers of vision and bridge, each when it first runs. The answers are the same
    up to rounding.

    Raises ModelError if the weights are quantised, offloaded or on several devices.
    """
    layers = tuple(repeated_layers(adapter))
    modules = [module for layer in layers for module in layer.modules()]
    if any(hasattr(module, "_hf_hook") for module in modules):
        raise ModelError(
            "vlm.compile needs vision and bridge on one device, and here Accelerate moves their "
            "weights: give them more memory (vlm.max_memory, vlm.device_map), or leave "
            "vlm.compile out"
        )
    if getattr(adapter.network, "is_quantized", False):
        raise ModelError(
            "vlm.compile and quantised weights do not go together: leave vlm.compile or "
            "vlm.quantization out"
        )
    for layer in layers:
        layer.forward = compiled_unless_heard(layer, compiler)


def is_compiled(network: nn.Module) -> bool:
    """Return whether layers of a network are compiled."""
    return any(hasattr(module.forward, COMPILED) for module in network.modules())


def repeated_layers(adapter: Adapter) -> Iterator[nn.Module]:
    """Give the layers of vision and bridge: what their lists of modules hold, the outer ones. A
    tower that is compiled whole is one layer.
    """
    if adapter.compiled_whole:
        yield adapter.network.get_encoder(modality="image")
        return
    within = ""
    for name, module in adapter.network.named_modules():
        if within and name.startswith(within):
            continue
        if isinstance(module, nn.ModuleList) and adapter.stage(f"{name}.0") != "language":
            within = f"{name}."
            yield from module


def is_heard(layer: nn.Module) -> bool:
    """Return whether a Linear inside a layer has a hook or another forward for the time of a call:
    an edit, or a recorder.

    Transformers has hooks of its own on other modules.
    """
    return any(
        module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
        for module in layer.modules()
        if isinstance(module, nn.Linear)
    )


def compiled_unless_heard(layer: nn.Module, compiler: Compiler) -> Callable[..., Any]:
    """Return a forward of a layer that is compiled while no Linear inside is heard."""
    plain = layer.forward
    fast = compiler(_own_forward(layer))

    @wraps(plain)  # its arguments are read from its signature
    def forward(*args: Any, **kwargs: Any) -> Any:
        chosen = plain if torch.is_grad_enabled() or is_heard(layer) else fast
        return chosen(*args, **kwargs)

    setattr(forward, COMPILED, True)
    return forward


def _own_forward(layer: nn.Module) -> Callable[..., Any]:
    """Return a layer's forward without transformers' wrapper around it, which all kinds of layers
    share: torch.compile gives a function up that it has compiled in eight forms.
    """
    if isinstance(layer, GradientCheckpointingLayer):
        return inspect.unwrap(type(layer).forward).__get__(layer)
    return layer.forward
