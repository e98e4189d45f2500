"""Checks of a saved editor, which may come from anyone, before anything is built from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from mmedit.adapters.weights import not_finite
from mmedit.errors import EditorError, shortened
from mmedit.storage import broken_text

FIELDS: Mapping[str, type] = {"method": str, "config": dict, "notes": dict, "sha256": str}
ORIGIN: Mapping[str, type] = {
    "vlm": dict, "sites": list, "dataset": str, "cases": int, "seed": int, "versions": dict,
}  # fmt: skip
IDENTITY: Mapping[str, type] = {"family": str, "config": str, "weights": str}
NAMES = {dict: "an object", list: "a list", str: "a text", int: "a whole number"}
SPARE = 100
"""Parts of a network that may be made and thrown away while it is built."""


def require_description(described: Any) -> None:
    """Raise ValueError, which names the key, unless this may be the content of an `editor.json`."""
    _require_kinds("", described, FIELDS)
    origin = described.get("origin")
    if origin is None:
        return
    _require_kinds("origin.", origin, ORIGIN)
    _require_kinds("origin.vlm.", origin["vlm"], IDENTITY)
    for place, site in enumerate(origin["sites"]):
        _require_kinds("origin.sites.", {str(place): site}, {str(place): str})
    versions = origin["versions"]
    _require_kinds("origin.versions.", versions, dict.fromkeys(versions, str))


def _require_kinds(where: str, found: Any, kinds: Mapping[str, type]) -> None:
    if not isinstance(found, dict):
        raise ValueError(f"{where or 'its content'} is {shortened(found)}, expected an object")
    for name, kind in kinds.items():
        if name not in found:
            raise ValueError(f"{where}{name} is missing")
        value = found[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(
                f"{where}{shortened(name)} is {shortened(value)}, expected {NAMES[kind]}"
            )
        if isinstance(value, str) and (fault := broken_text(value)):
            raise ValueError(f"{where}{shortened(name)} {fault}")


def require_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise EditorError, which names the tensor, if a value is NaN or infinite."""
    if broken := not_finite(tensors):
        raise EditorError(
            f"the tensor {shortened(broken[0])} holds NaN or infinite values, so every edit would; "
            "fit the editor anew"
        )


def require_same_tensors(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], method: str
) -> None:
    """Raise EditorError unless the tensors agree with those of the network by name, shape and
    number format.
    """
    for name in sorted(found.keys() | expected.keys()):
        there, here = (_form(tensors.get(name)) for tensors in (found, expected))
        if there != here:
            raise EditorError(
                f"the tensors do not fit the {method} network of these settings: "
                f"{shortened(name)} is {there}, expected {here}; fit the editor anew"
            )


def _form(tensor: Tensor | None) -> str:
    if tensor is None:
        return "missing"
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {list(tensor.shape)}"


@contextmanager
def at_most_parts(tensors: int) -> Iterator[None]:
    """Raise ValueError as soon as a network gets far more parts than a file has tensors.

    A description may ask for any number of layers, and each takes memory, even without weights.
    """
    left = {"parameters": 2 * tensors + SPARE, "modules": 10 * tensors + SPARE}

    def count(kind: str) -> None:
        left[kind] -= 1
        if left[kind] < 0:
            raise ValueError(f"it describes a network of more {kind} than its file of tensors has")

    def on_parameter(_: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        count("parameters")

    def on_module(_: nn.Module, name: str, module: nn.Module | None) -> None:
        count("modules")

    hooks = (
        register_module_parameter_registration_hook(on_parameter),
        register_module_module_registration_hook(on_module),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
