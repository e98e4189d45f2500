"""Writes the weights of an edited network, W + ΔW, as safetensors shards.

One shard is made at a time, so that beside the network only one shard is in memory. Names and
forms of the tensors are those of the checkpoint, which transformers renames when it loads a folder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from mmedit.adapters.weights import not_finite, read_back
from mmedit.deltas import Delta, fold
from mmedit.errors import ModelError, SiteError
from mmedit.export.places import require_space, write_json
from mmedit.progress import Progress, silent

PATTERN = "model{suffix}.safetensors"
INDEX = "model.safetensors.index.json"
WRITING = "writing weights"
HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """The number format of every tensor in the files."""

    dtype: torch.dtype
    loaded: torch.dtype
    """The dtype of most weights of the network in memory."""
    edited: frozenset[str]
    """Names of the edited weights."""
    kept: frozenset[str]
    """Names of modules that transformers opens in float32 (`_keep_in_fp32_modules`)."""
    keep_float32: bool
    """Whether the edited weights are stored in float32."""

    def of(self, name: str, tensor: Tensor) -> torch.dtype:
        """Return the dtype that a tensor of the network is stored in."""
        if not tensor.is_floating_point():
            return tensor.dtype
        if name in self.edited and self.keep_float32:
            return torch.float32
        if self.dtype == self.loaded:
            return tensor.dtype  # some checkpoints keep a few tensors in float32
        return torch.float32 if self.kept & set(name.split(".")) else self.dtype

    def planned(self, name: str, tensor: Tensor) -> Tensor:
        """Return a tensor of the same shape in its stored dtype, without numbers."""
        return torch.empty(tensor.shape, dtype=self.of(name, tensor), device="meta")


def main_dtype(network: Any) -> torch.dtype:
    """Return the dtype of most weights of a network: some families keep a few in float32."""
    counted: Counter[torch.dtype] = Counter()
    for weight in network.parameters():
        counted[weight.dtype] += weight.numel() if weight.is_floating_point() else 0
    return counted.most_common(1)[0][0]


def numbers_for(
    network: Any, sites: Collection[str], dtype: torch.dtype, *, keep_float32: bool
) -> Numbers:
    """Return the number formats of an export of this network."""
    kept = {*(network._keep_in_fp32_modules_strict or ())}
    kept |= {*(network._keep_in_fp32_modules or ())} if dtype == torch.float16 else set()
    return Numbers(
        dtype=dtype,
        loaded=main_dtype(network),
        edited=frozenset(f"{site}.weight" for site in sites),
        kept=frozenset(kept if dtype in HALF else ()),
        keep_float32=keep_float32,
    )


def write_shards(
    network: Any,
    deltas: Mapping[str, Delta],
    folder: Path,
    numbers: Numbers,
    *,
    max_shard_size: int,
    progress: Progress = silent,
) -> float:
    """Write all weights. Return the part of ΔW that rounding changed, at the worst edited weight:
    |W' - W - ΔW| / |ΔW| in the Frobenius norm, for the stored weight W'.

    Raises ModelError, SiteError, RunError, and `WRITING_ERRORS`.
    """
    stored = _stored_weights(network)
    _require_own_weights(network, deltas)
    planned = {name: numbers.planned(name, tensor) for name, tensor in stored.items()}
    split = split_torch_state_dict_into_shards(
        planned, filename_pattern=PATTERN, max_shard_size=max_shard_size
    )
    groups = split.filename_to_tensors
    _require_whole_groups(network, planned, list(groups.values()))
    require_space(folder, sum(tensor.nbytes for tensor in planned.values()))
    weight_map: dict[str, str] = {}
    rounding = [0.0]
    for number, (file, names) in enumerate(groups.items()):
        progress(WRITING, number, len(groups), "")
        shard: dict[str, Tensor] = {}
        for name in names:
            delta = deltas.get(name.removesuffix(".weight")) if name in numbers.edited else None
            shard[name], lost = _made(network, name, stored[name], delta, planned[name].dtype)
            rounding.append(lost)
        whole = _as_in_files(network, shard)
        save_file(whole, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(whole, file)
    progress(WRITING, len(groups), len(groups), "")
    if split.is_sharded:
        write_json(folder / INDEX, {"metadata": split.metadata, "weight_map": weight_map})
    return max(rounding)


def _as_in_files(network: Any, shard: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors in the names and forms that a checkpoint has."""
    renamed = revert_weight_conversion(network, shard)
    return {name: tensor.contiguous() for name, tensor in renamed.items()}


def _stored_weights(network: Any) -> dict[str, Tensor]:
    """Return the tensors that a checkpoint of the network holds: each tied weight once."""
    state = remove_tied_weights_from_state_dict(network.state_dict(), network)
    ignored = {*(network._keys_to_ignore_on_save or ())}
    return {name: tensor for name, tensor in state.items() if name not in ignored}


def _require_own_weights(network: Any, sites: Collection[str]) -> None:
    """Raise SiteError if the weight of a site is also that of another module."""
    named = list(network.named_parameters(remove_duplicate=False))
    for site in sites:
        weight = network.get_submodule(site).weight
        others = [name for name, other in named if other is weight and name != f"{site}.weight"]
        if others:
            raise SiteError(
                f"{site} shares its weight with {others[0]}, so that folding the edit in would "
                "change both; export it as an adapter (--to peft)"
            )


def _require_whole_groups(
    network: Any, planned: Mapping[str, Tensor], groups: Sequence[Sequence[str]]
) -> None:
    """Raise ModelError if a shard holds a part of the tensors that become one in the files."""
    try:
        whole = {**revert_weight_conversion(network, dict(planned))}
        parts: dict[str, Tensor] = {}
        for names in groups:
            parts |= revert_weight_conversion(network, {name: planned[name] for name in names})
        fits = {n: t.shape for n, t in parts.items()} == {n: t.shape for n, t in whole.items()}
    except (RuntimeError, ValueError, LookupError) as error:
        raise ModelError(
            f"the form in which transformers stores a {network.config.model_type} cannot be made "
            f"shard by shard: {error}; export it as an adapter (--to peft)"
        ) from error
    if not fits:
        raise ModelError(
            "a shard would hold a part of the tensors that are one in the files; choose a larger "
            "--shard-size"
        )


def _made(
    network: Any, name: str, tensor: Tensor, delta: Delta | None, dtype: torch.dtype
) -> tuple[Tensor, float]:
    """Return a tensor as it is stored, on the CPU, and the part of ΔW that rounding changed."""
    weight = read_back(network, name) if tensor.is_meta else tensor.detach()
    if delta is None:
        made, rounding = weight.to("cpu", dtype), 0.0
    else:
        change = delta.weight().detach().float()
        before = weight.to(change.device).float()
        folded = fold(before, delta)
        made = folded.to(dtype)
        size = change.norm()
        rounding = float((made.float() - before - change).norm() / size) if size else 0.0
        made = made.cpu()
    if dtype != weight.dtype and not_finite({name: made}):
        raise ModelError(
            f"{name} has numbers that are too large for {str(dtype)[6:]}; give --dtype bfloat16 or "
            "float32"
        )
    return made, rounding
