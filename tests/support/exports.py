"""Edited VLMs to export: low-rank and dense edits of every stage, and one that bfloat16 rounds away
whole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import tiny
import tiny_families
import torch
from torch import Tensor

from mmedit.adapters.base import Stage
from mmedit.cases import Example
from mmedit.deltas import Delta, Dense, LowRank
from mmedit.vlm.edit import DeltaChange, Edit
from mmedit.vlm.loading import load_vlm
from mmedit.vlm.network import NetworkVLM

REQUEST = tiny.SEEN[0]
LOCALITY = (tiny.TEXT_ONLY, tiny.SEEN[1])
FRAGILE_SITE = "language_model.model.decoder.layers.2.fc2"
CONSTANT = 8
"""Number of hidden units of the fragile site's layer that are always 1."""


def save_tiny(family: str, folder: Path) -> Path:
    """Save a tiny network of a family: "blip2", or a name of `tiny_families.FAMILIES`."""
    if family == "blip2":
        return tiny.save_model(folder)
    return tiny_families.save_family(family, folder)


def with_edit(
    vlm: NetworkVLM,
    deltas: Mapping[str, Delta],
    *,
    name: str = "made",
    requests: Sequence[Example] = (REQUEST,),
) -> NetworkVLM:
    """Return the VLM with deltas as one edit."""
    change = DeltaChange(deltas)
    edit = Edit(name=name, method="made", label="made", requests=tuple(requests), change=change)
    edited = vlm.with_edit(edit)
    assert isinstance(edited, NetworkVLM)
    return edited


def low_rank(vlm: NetworkVLM, stage: Stage = "language", *, seed: int = 0) -> dict[str, Delta]:
    """Return random deltas of rank 2 or 3 in turn at the default sites of a stage."""
    generator = torch.Generator().manual_seed(seed)
    made: dict[str, Delta] = {}
    for number, site in enumerate(vlm.sites(stage)):
        out, in_ = vlm.shape(site)
        rank = 2 + number % 2
        u = torch.randn(rank, out, generator=generator) * 0.2
        made[site] = LowRank(u, torch.randn(rank, in_, generator=generator) * 0.2)
    return made


def dense(vlm: NetworkVLM, stage: Stage = "language", *, seed: int = 0) -> dict[str, Delta]:
    """Return random deltas of full rank at the default sites of a stage."""
    generator = torch.Generator().manual_seed(seed)
    return {
        site: Dense(torch.randn(*vlm.shape(site), generator=generator) * 0.05)
        for site in vlm.sites(stage)
    }


def save_fragile(folder: Path) -> Path:
    """Save a tiny BLIP-2 in bfloat16, one of whose layers has units that are always 1, with weights
    of 96 that the layer's bias takes back. The numbers next to 96 in bfloat16 are 95.5 and 96.5.
    """
    tiny.save_model(folder)
    network = load_vlm(folder).adapter.network
    first = network.get_submodule(FRAGILE_SITE.replace("fc2", "fc1"))
    second = network.get_submodule(FRAGILE_SITE)
    with torch.no_grad():
        first.weight[:CONSTANT] = 0
        first.bias[:CONSTANT] = 1
        second.weight[:, :CONSTANT] = 96
        second.bias -= 96 * CONSTANT
    network.to(torch.bfloat16).save_pretrained(folder)
    return folder


def fragile_edit(vlm: NetworkVLM) -> NetworkVLM:
    """Return a VLM of `save_fragile`, edited to say one token all the time. Every number of the
    edit is less than half a step of bfloat16.
    """
    token = vlm.adapter.tokenizer(" blue", add_special_tokens=False)["input_ids"][0]
    direction: Tensor = vlm.adapter.network.get_output_embeddings().weight[token].float().sign()
    change = torch.zeros(vlm.shape(FRAGILE_SITE))
    change[:, :CONSTANT] = 0.24 * direction[:, None]
    return with_edit(vlm, {FRAGILE_SITE: Dense(change)})


def config_of(folder: Path) -> dict[str, object]:
    """Return the content of the config.json in a folder."""
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))
