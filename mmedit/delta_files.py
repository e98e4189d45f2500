"""Deltas in a safetensors file: one tensor `site|kind|name`, or `site|sum|number.kind.name`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmedit.deltas import KINDS, Delta, Sum, kind_of
from mmedit.errors import DataError


def save_deltas(path: Path, deltas: Mapping[str, Delta]) -> None:
    """Write deltas, by site, to one safetensors file."""
    tensors = {
        f"{site}|{kind_of(delta)}|{name}": tensor.detach().clone(
            memory_format=torch.contiguous_format
        )  # safetensors refuses memory that two names share
        for site, delta in deltas.items()
        for name, tensor in delta.tensors().items()
    }
    save_file(tensors, path)


def load_deltas(path: Path, device: str | torch.device = "cpu") -> dict[str, Delta]:
    """Read the deltas that `save_deltas` wrote. Raises DataError if the file has other tensors."""
    groups: dict[tuple[str, str], dict[str, Tensor]] = {}
    for key, tensor in load_file(path, device=str(device)).items():
        site, kind, name = _split_key(path, key)
        groups.setdefault((site, kind), {})[name] = tensor
    return {site: _build(path, kind, tensors) for (site, kind), tensors in groups.items()}


def _split_key(path: Path, key: str) -> tuple[str, str, str]:
    parts = key.split("|")
    if len(parts) != 3:
        raise DataError(
            f"{path}: the name of tensor {key!r} is not site|kind|name; expected a file of deltas"
        )
    return parts[0], parts[1], parts[2]


def _build(path: Path, kind: str, tensors: dict[str, Tensor]) -> Delta:
    if kind == "sum":
        numbered: dict[tuple[int, str], dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            number, part_kind, part_name = name.split(".")
            numbered.setdefault((int(number), part_kind), {})[part_name] = tensor
        return Sum(tuple(_build(path, part, numbered[n, part]) for n, part in sorted(numbered)))
    if kind not in KINDS:
        raise DataError(f"{path}: unknown kind of delta {kind!r}; known: {', '.join(KINDS)}")
    return KINDS[kind](**tensors)
