"""From a folder or a hub id to a VLM: the same code path for every family."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, cast

import torch
from accelerate import PartialState
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
)

from mmedit.adapters import ADAPTERS, adapter_for
from mmedit.adapters.base import Adapter, Stage
from mmedit.adapters.weights import keep_weights_in_place
from mmedit.cache import TensorCache
from mmedit.errors import ModelError, UnknownNameError
from mmedit.storage import is_hub_id
from mmedit.vlm.network import NetworkVLM

BUILT_IN = {"embedded": "assets/embedded-vlm"}
"""VLMs shipped inside the package: ordinary transformers folders."""

LOADING_ERRORS = (
    OSError, ValueError, RuntimeError, ImportError, SafetensorError, StrictDataclassError,
)  # fmt: skip
Quantization = Literal["8bit", "4bit"]
DeviceMap = str | Mapping[str, str | int]


def resolve_vlm(name_or_path: str | Path) -> str:
    """The folder or hub id behind a name, without loading anything. Raises UnknownNameError or
    ModelError.
    """
    name = str(name_or_path)
    if name in BUILT_IN:
        return str(resources.files("mmedit").joinpath(BUILT_IN[name]))
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{path} has no config.json; a transformers model folder was wanted")
        return str(path)
    if path.exists():
        raise ModelError(f"{path} is a file; a transformers model folder was wanted")
    if is_hub_id(name):
        return name
    raise UnknownNameError("VLM (nor model folder, nor hub id like owner/name)", name, BUILT_IN)


def load_vlm(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    device_map: DeviceMap | None = None,
    adapter: str | type[Adapter] | None = None,
    quantization: Quantization | None = None,
    max_memory: Mapping[int | str, int | str] | None = None,
    offload_folder: str | Path | None = None,
    sites: Mapping[Stage, tuple[str, ...]] | None = None,
    trust_remote_code: bool = False,
    features: TensorCache | None = None,
) -> NetworkVLM:
    """A VLM from a built-in name ("embedded"), a transformers folder, or a hub id.

    Without a GPU `dtype` defaults to float32; with one to the checkpoint's own, and `device_map` to
    "auto", as where a limit of memory is given. `device_map`, `max_memory` ({0: "20GiB", "cpu":
    "60GiB"}) and `offload_folder` are Accelerate's: what fits no device is kept in main memory or
    on disk. `quantization` needs bitsandbytes (the extra `quantized`). `adapter` is a name of
    `ADAPTERS`, or a class of your own; by default it follows from the config's model type. `sites`
    replaces the family's default edit sites.

    Weights are read from safetensors only; no code of the checkpoint runs unless
    `trust_remote_code` is given. Raises UnknownNameError, ModelError, SiteError.
    """
    source = resolve_vlm(name_or_path)
    on_gpu = torch.cuda.is_available()
    placed = on_gpu or max_memory is not None or offload_folder is not None
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
        adapter_class = _adapter_class(adapter, config)
        if why := adapter_class.unsupported(config):
            raise ModelError(why)
        processor = AutoProcessor.from_pretrained(source, trust_remote_code=trust_remote_code)
        loaded = AutoModelForImageTextToText.from_pretrained(
            source,
            dtype=dtype or ("auto" if on_gpu else torch.float32),
            device_map=device_map or _placement(placed),
            max_memory=dict(max_memory) if max_memory else None,
            offload_folder=str(offload_folder) if offload_folder else None,
            quantization_config=_quantized(quantization, dtype),
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
        )
    except LOADING_ERRORS as error:
        if isinstance(error, UnknownNameError):
            raise
        raise ModelError(
            f"{name_or_path} cannot be loaded: {error}{_advice(source, error)}"
        ) from error
    network, loading = cast("tuple[Any, dict[str, Any]]", loaded)
    if missing := sorted(loading["missing_keys"]):
        raise ModelError(
            f"{name_or_path} cannot be loaded: its files lack {len(missing)} of the network's "
            f"weights, for instance {missing[0]}, which would be random"
        )
    network.eval().requires_grad_(False)
    keep_weights_in_place(network)
    vlm = NetworkVLM(adapter_class(network, processor), features=features, sites=sites)
    for stage in sites or {}:
        for site in vlm.sites(stage):
            vlm.shape(site)
    return vlm


def _placement(placed: bool) -> DeviceMap | None:
    """All GPUs for one process; of several (`accelerate launch`), each its own."""
    if not placed:
        return None
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return "auto"
    return {"": str(PartialState().device)}


def _adapter_class(adapter: str | type[Adapter] | None, config: Any) -> type[Adapter]:
    if adapter is None:
        return adapter_for(config)
    if not isinstance(adapter, str):
        return adapter
    if adapter not in ADAPTERS:
        raise UnknownNameError("adapter", adapter, ADAPTERS)
    named = ADAPTERS[adapter]
    if named.model_types and config.model_type not in named.model_types:
        raise ModelError(
            f"the adapter {adapter!r} speaks to {', '.join(named.model_types)}, and this model is "
            f"of type {config.model_type!r}; leave the adapter out, or take 'auto'"
        )
    return named


def _quantized(
    quantization: Quantization | None, dtype: torch.dtype | str | None
) -> BitsAndBytesConfig | None:
    if quantization is None:
        return None
    if find_spec("bitsandbytes") is None:
        raise ModelError(
            f"{quantization} weights need bitsandbytes, which is not installed: "
            "pip install 'mmedit[quantized]'"
        )
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype or torch.bfloat16,
    )


def _advice(source: str, error: Exception) -> str:
    """What to do about an error of transformers whose text does not tell."""
    folder = Path(source)
    if "custom code" in str(error):
        return " Look at that code; if you trust it, load with trust_remote_code=True."
    if folder.is_dir() and any(folder.glob("*.bin")) and not any(folder.glob("*.safetensors")):
        return (
            " The folder holds pickled weights (.bin), which can run code when they are opened and "
            "are refused; save the model as safetensors: save_pretrained does."
        )
    return ""
