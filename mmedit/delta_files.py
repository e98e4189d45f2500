"""Deltas in a safetensors file: one tensor `site|kind|name`, or `site|sum|number.kind.name`.

Beside them a file may hold rows that later edits must know, as `kept/name`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmedit.deltas import Delta, Dense, LowRank, Sum
from mmedit.errors import DataError, shortened
from mmedit.neurons import Neurons

NUMBERED = ("number", "kind", "name")
"""Parts of the name of a tensor in a sum."""
KINDS: dict[str, type[LowRank] | type[Dense] | type[Neurons]] = {
    kind.kind: kind for kind in (LowRank, Dense, Neurons)
}
"""Deltas by the name of their kind. A `Sum` is called "sum"."""
KEPT = "kept/"
"""Beginning of the names of tensors that are no deltas."""


def as_tensors(
    deltas: Mapping[str, Delta], kept: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Return deltas, by site, and kept rows, by name, as the tensors of a safetensors file."""
    rows = {f"{KEPT}{name}": tensor for name, tensor in (kept or {}).items()}
    return rows | {
        f"{site}|{delta.kind}|{name}": tensor.detach().clone(
            memory_format=torch.contiguous_format
        )  # safetensors refuses memory that two names share
        for site, delta in deltas.items()
        for name, tensor in delta.tensors().items()
    }


def save_deltas(
    path: Path, deltas: Mapping[str, Delta], kept: Mapping[str, Tensor] | None = None
) -> None:
    """Write deltas, by site, and kept rows, by name, to one safetensors file."""
    save_file(as_tensors(deltas, kept), path)


def load_deltas(path: Path, device: str | torch.device = "cpu") -> dict[str, Delta]:
    """Read the deltas that `save_deltas` wrote. Raises DataError if the file is damaged, or has
    other tensors.
    """
    return from_tensors(path, read_tensors(path, device))


def read_tensors(path: Path, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """Read the tensors that `save_deltas` wrote. Raises DataError if the file is damaged."""
    try:
        return load_file(path, device=str(device))
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} cannot be read: {error}; expected a file of deltas") from error


def kept_in(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the kept rows in the tensors that `as_tensors` gave, by name."""
    return {
        name.removeprefix(KEPT): rows for name, rows in tensors.items() if name.startswith(KEPT)
    }


def from_tensors(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Delta]:
    """Return the deltas in the tensors that `as_tensors` gave; `path` is the file for errors.
    Raises DataError if they are not deltas.
    """
    groups: dict[tuple[str, str], dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith(KEPT):
            continue
        site, kind, name = _split(path, key, "|")
        groups.setdefault((site, kind), {})[name] = tensor
    if len({site for site, _ in groups}) < len(groups):
        raise DataError(f"{path}: one site has deltas of two kinds; expected a file of deltas")
    return {site: _build(path, kind, named) for (site, kind), named in groups.items()}


def _split(path: Path, key: str, separator: str) -> tuple[str, str, str]:
    parts = key.split(separator)
    if len(parts) != 3:
        form = separator.join(("site", "kind", "name") if separator == "|" else NUMBERED)
        raise DataError(
            f"{path}: the name of tensor {shortened(key)} is not {form}; expected a file of deltas"
        )
    return parts[0], parts[1], parts[2]


def _build(path: Path, kind: str, tensors: dict[str, Tensor]) -> Delta:
    if kind == "sum":
        numbered: dict[tuple[str, str], dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            number, part_kind, part_name = _split(path, name, ".")
            numbered.setdefault((number, part_kind), {})[part_name] = tensor
        order = sorted(numbered, key=lambda part: (len(part[0]), part))  # 2 before 10
        return Sum(tuple(_build(path, part[1], numbered[part]) for part in order))
    if kind not in KINDS:
        raise DataError(
            f"{path}: unknown kind of delta {shortened(kind)}; known: {', '.join(KINDS)}"
        )
    _require_sound(path, kind, tensors)
    return KINDS[kind].of_tensors(tensors)


def _require_sound(path: Path, kind: str, tensors: Mapping[str, Tensor]) -> None:
    """Raise DataError unless the tensors can be those of a delta of this kind."""
    expected = {field.name for field in fields(KINDS[kind]) if field.default is MISSING}
    if tensors.keys() != expected:
        raise DataError(
            f"{path}: a {kind} delta has the tensors {', '.join(map(shortened, sorted(tensors)))}; "
            f"expected {', '.join(sorted(expected))}"
        )
    if kind == Neurons.kind:
        tensors = _numbers_of_neurons(path, tensors)
    shapes = [tuple(tensor.shape) for tensor in tensors.values()]
    heads = {shape[:-1] for shape in shapes}  # edits and rank are those of both factors
    if len(heads) > 1 or not all(len(shape) in (2, 3) for shape in shapes):
        found = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items())
        raise DataError(
            f"{path}: the shapes of a {kind} delta are {found}; expected 2 axes, or 3 for separate "
            "edits, and factors of one rank"
        )
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise DataError(
                f"{path}: the tensor {name} of a {kind} delta is of dtype {tensor.dtype}; expected "
                "floating-point numbers"
            )


def _numbers_of_neurons(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return keys, biases and values with an axis for their width. Raises DataError unless what is
    beside them is the name of a Linear and a width.
    """
    name, width = tensors["read_at"], tensors["width"]
    try:
        is_name = name.dtype == torch.uint8 and name.ndim == 1 and bytes(name.tolist()).decode()
    except UnicodeDecodeError:
        is_name = False
    if not is_name or width.dtype != torch.int64 or width.ndim or int(width) < 1:
        raise DataError(
            f"{path}: read_at and width of neurons are of dtypes {name.dtype}, {width.dtype} and "
            f"shapes {list(name.shape)}, {list(width.shape)}; expected the name of a Linear as "
            "uint8, and a positive int64"
        )
    numbers = {"key": tensors["key"], "value": tensors["value"]}
    return numbers | {"bias": tensors["bias"].unsqueeze(-1)}
