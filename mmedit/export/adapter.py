"""Edits as LoRA adapters that PEFT opens on the base model: y = W x + b + B A x.

An adapter keeps the edit beside the weights, as mmedit does, so a base model in half precision or
in 4 bits cannot round it away. `lora_alpha` is the rank, so that peft scales nothing.
"""

from __future__ import annotations

import copy
import json
import re
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mmedit.cases import Example
from mmedit.deltas import Delta
from mmedit.errors import ConfigError, EditError, ModelError
from mmedit.export.check import Check, ask, compare, questions_for
from mmedit.export.low_rank import Factors, factors_of
from mmedit.export.places import appearing, require_new, write_json
from mmedit.export.report import (
    Asked,
    Export,
    ask_edited,
    described,
    exportable,
    finish,
)
from mmedit.export.shards import main_dtype
from mmedit.progress import Progress, silent
from mmedit.storage import size_of
from mmedit.vlm.edit import Edit
from mmedit.vlm.interface import VLM
from mmedit.vlm.network import NetworkVLM

FACTORING, CHECKING = "making factors", "opening and asking"
ALL = "default"
"""Name that peft gives to an adapter without one."""
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True, kw_only=True)
class AdapterForm:
    """How edits become adapters."""

    rank: int = 64
    """Largest rank of a dense edit (fine-tuning), whose error is reported. Low-rank edits (MEND,
    KE) are exact, with the rank that they have.
    """
    each: bool = False
    """Whether every edit gets an adapter of its own, in a folder of its name."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"--rank is {self.rank}; expected at least 1")


def export_peft(
    load: Callable[[], VLM],
    out: str | Path,
    locality: Sequence[Example] = (),
    *,
    form: AdapterForm | None = None,
    allow_lost: bool = False,
    progress: Progress = silent,
) -> Export:
    """Write the edits of a VLM as one LoRA adapter, or one each, open it with peft, and compare.

    `load` returns the edited VLM; it is called once. The requests of its edits and the `locality`
    questions are asked of it, and then of the base model with the adapter. Memory holds one
    network: the check puts the adapter on a copy that shares all weights. The folder appears whole
    or not at all. Raises LostEditError, and leaves no folder, if a request is then answered
    differently (`allow_lost` keeps it); EditError for an edit that is not a change of weights;
    ModelError, RunError, ConfigError.

    >>> edited = load_vlm("embedded").with_edit(load_edit("edits/x"))  # doctest: +SKIP
    >>> export_peft(lambda: edited, "adapters/x").checks  # doctest: +SKIP
    """
    out, form = Path(out).expanduser().absolute(), form or AdapterForm()
    require_new(out)
    _require_peft()
    edited = exportable(load())
    adapters = _adapters(edited, form)
    asked = ask_edited(edited, questions_for(edited, locality), progress)
    with appearing(out) as folder:
        places = {name: folder / name if form.each else folder for name in adapters}
        stored = _write(edited, adapters, places, form.rank, progress)
        export = Export(
            form="peft",
            folder=out,
            size=size_of(folder),
            stored=stored,
            right=asked.right,
            checks=(_check(edited, places, asked, progress),),
        )
        finish(export, described(edited), folder, allow_lost=allow_lost)
    return export


def _write(
    edited: NetworkVLM,
    adapters: Mapping[str, Sequence[Edit]],
    places: Mapping[str, Path],
    rank: int,
    progress: Progress,
) -> dict[str, Any]:
    """Write every adapter, and return their names, the largest rank and the largest error."""
    made = []
    for number, (name, edits) in enumerate(adapters.items()):
        progress(FACTORING, number, len(adapters), name)
        made.append(_write_adapter(edited.adapter.network, edits, places[name], rank=rank))
    progress(FACTORING, len(adapters), len(adapters), "")
    return {
        "adapters": list(adapters),
        "rank": max(one["rank"] for one in made),
        "truncation": max(one["truncation"] for one in made),
    }


def _adapters(edited: NetworkVLM, form: AdapterForm) -> dict[str, tuple[Edit, ...]]:
    """Return the edits of every adapter, by its name in peft. Raises EditError."""
    if not form.each:
        return {ALL: edited.edits}
    found: dict[str, tuple[Edit, ...]] = {}
    for edit in edited.edits:
        name = re.sub(
            r"[^\w-]", "_", edit.name
        )  # peft takes no full stop in the name of an adapter
        if name in found:
            raise EditError(
                f"two edits would have adapters of the name {name!r}; give one of them another: "
                "edit.named('another')"
            )
        found[name] = (edit,)
    return found


def _write_adapter(
    network: Any, edits: Sequence[Edit], folder: Path, *, rank: int
) -> dict[str, float]:
    """Write an adapter's two files. Return its largest rank, and |ΔW - B A| / |ΔW| over all sites.

    Raises OSError or SafetensorError if a file cannot be written.
    """
    deltas: dict[str, list[Delta]] = {}
    for edit in edits:
        for site, delta in (edit.deltas or {}).items():
            deltas.setdefault(site, []).append(delta)
    made = {site: factors_of(found, rank) for site, found in deltas.items()}
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    for site, factors in made.items():
        tensors[f"base_model.model.{site}.lora_A.weight"] = factors.a.contiguous()
        tensors[f"base_model.model.{site}.lora_B.weight"] = factors.b.contiguous()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    _config(network, made).save_pretrained(str(folder))
    _sort_targets(folder / CONFIG)
    left_out = sum(factors.left_out**2 for factors in made.values()) ** 0.5
    size = sum(factors.size**2 for factors in made.values()) ** 0.5
    return {
        "rank": max(factors.rank for factors in made.values()),
        "truncation": left_out / size if size else 0.0,
    }


def _sort_targets(path: Path) -> None:
    """Sort the names of the modules, which peft keeps in a set: one edit gives one file."""
    described = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(described["target_modules"], list):
        described["target_modules"].sort()
        write_json(path, described)


def _config(network: Any, made: Mapping[str, Factors]) -> Any:
    """Return peft's LoraConfig of an adapter; sites with another rank are in its patterns."""
    from peft import LoraConfig

    rank = max(factors.rank for factors in made.values())
    others = {f"^{site}": f.rank for site, f in made.items() if f.rank != rank}
    return LoraConfig(
        base_model_name_or_path=str(network.name_or_path or "") or None,
        revision=getattr(network.config, "_commit_hash", None),
        auto_mapping={
            "base_model_class": type(network).__name__,
            "parent_library": type(network).__module__,
        },
        inference_mode=True,
        r=rank,
        lora_alpha=rank,
        rank_pattern=others,
        alpha_pattern=others,
        lora_dropout=0.0,
        bias="none",
        target_modules=_targets(network, made),
    )


def _targets(network: nn.Module, sites: Mapping[str, object]) -> list[str] | str:
    """Return the full names of the sites. If one of them ends the name of another module, which
    peft would take for it, return a pattern that fits the sites alone.
    """
    names = [name for name, _ in network.named_modules()]
    if any(name.endswith(f".{site}") for name in names for site in sites):
        return f"({'|'.join(map(re.escape, sites))})"
    return sorted(sites)


def _check(
    edited: NetworkVLM, places: Mapping[str, Path], asked: Asked, progress: Progress
) -> Check:
    progress(CHECKING, 0, 1, "")
    opened = open_adapters(edited.base, places, edited.deltas)
    found = ask(opened, asked.questions, max_new_tokens=asked.max_new_tokens)
    progress(CHECKING, 1, 1, "")
    dtype = str(main_dtype(edited.adapter.network)).removeprefix("torch.")
    return compare(asked.questions, asked.outputs, found, opened_in=dtype)


@torch.no_grad()
def open_adapters(
    base: NetworkVLM, places: Mapping[str, Path], sites: Collection[str]
) -> NetworkVLM:
    """Return the base model with adapters that peft reads from their folders, all of them active.

    The modules are copied, and their weights shared, so that the base model stays as it is. Raises
    ModelError if peft changes other modules than the `sites`.
    """
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    network = base.adapter.network
    if any(tensor.is_meta for tensor in network.parameters()):
        raise ModelError(
            "weights of this VLM are offloaded, so peft cannot be checked on it; load the VLM with "
            "more memory (--set vlm.max_memory=...), or with vlm.quantization"
        )
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    copied = copy.deepcopy(network, shared)
    (first, place), *others = places.items()
    with warnings.catch_warnings():  # peft 0.21 reads what transformers 5.24 calls deprecated
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
        model = PeftModel.from_pretrained(copied, str(place), adapter_name=first)
        for name, place in others:
            model.load_adapter(str(place), adapter_name=name)
    lora: Any = model.base_model
    lora.set_adapter([*places], inference_mode=True)
    changed = {name for name, module in copied.named_modules() if isinstance(module, LoraLayer)}
    if changed != set(sites):
        wrong = sorted(changed ^ set(sites))[0]
        raise ModelError(
            f"peft puts the adapter on other modules than it names, for example {wrong}"
        )
    adapter = type(base.adapter)(copied, base.adapter.processor)
    return NetworkVLM(adapter, name=base.name, padding_side=base.padding_side)


def _require_peft() -> None:
    if find_spec("peft") is None:
        raise ModelError(
            "an adapter is written with peft, which is not installed: pip install 'mmedit[peft]'"
        )
