"""Loads a VLM from a folder or a hub id, in the same way for every family."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, cast

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
    """Return the folder or hub id of a name, without loading anything.

    Raises UnknownNameError or ModelError.
    """
    name = str(name_or_path)
    if name in BUILT_IN:
        return str(resources.files("mmedit").joinpath(BUILT_IN[name]))
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{path} has no config.json; expected a transformers model folder")
        return str(path)
    if path.exists():
        raise ModelError(f"{path} is a file; expected a transformers model folder")
    if is_hub_id(name):
        return name
    raise UnknownNameError("VLM (nor model folder, nor hub id like owner/name)", name, BUILT_IN)


class LoadingOptions(TypedDict, total=False):
    """Keywords of `load_vlm` that say how the network is loaded. Each may be left out or None."""

    dtype: torch.dtype | str | None
    """float32 without a GPU; with one, the checkpoint's own dtype."""
    device_map: DeviceMap | None
    """Accelerate's. "auto" with a GPU, or when a limit of memory is given."""
    adapter: str | type[Adapter] | None
    """A name of `ADAPTERS`, or a class of your own. By default it follows from the model type."""
    quantization: Quantization | None
    """Needs bitsandbytes (the extra `quantized`)."""
    max_memory: Mapping[int | str, int | str] | None
    """Accelerate's limits, for example {0: "20GiB", "cpu": "60GiB"}."""
    offload_folder: str | Path | None
    """A folder for the weights that fit neither a device nor main memory."""
    sites: Mapping[Stage, tuple[str, ...]] | None
    """Edit sites by stage, in place of the family's default ones."""
    trust_remote_code: bool
    """Whether code of the checkpoint may run. False by default."""


def load_vlm(
    name_or_path: str | Path,
    *,
    features: TensorCache | None = None,
    name: str | None = None,
    **options: Unpack[LoadingOptions],
) -> NetworkVLM:
    """Load a VLM: the built-in "embedded", a transformers folder, or a hub id.

    `features` is a cache of image features to use; `name` is the VLM's `name`, by default
    `name_or_path`. `LoadingOptions` describes the other keywords. Weights are read from safetensors
    only, and no code of the checkpoint runs unless `trust_remote_code` is given. Raises
    UnknownNameError, ModelError, SiteError.
    """
    if unknown := sorted(options.keys() - LoadingOptions.__annotations__.keys()):
        raise TypeError(f"load_vlm() got an unexpected keyword argument {unknown[0]!r}")
    source = resolve_vlm(name_or_path)
    try:
        adapter_class, processor, (network, loading) = _loaded(source, options)
    except LOADING_ERRORS as error:
        if isinstance(error, UnknownNameError):
            raise
        raise ModelError(
            f"{name_or_path} cannot be loaded: {error}{_advice(source, error)}"
        ) from error
    if missing := sorted(loading["missing_keys"]):
        raise ModelError(
            f"{name_or_path} cannot be loaded: its files lack {len(missing)} of the network's "
            f"weights, for example {missing[0]}, which would be random"
        )
    network.eval().requires_grad_(False)
    keep_weights_in_place(network)
    adapter = adapter_class(network, processor)
    sites = options.get("sites") or {}
    vlm = NetworkVLM(adapter, name=name or str(name_or_path), features=features, sites=sites)
    for site in (site for stage in sites for site in vlm.sites(stage)):
        vlm.shape(site)  # raises SiteError
    return vlm


def _loaded(
    source: str, options: LoadingOptions
) -> tuple[type[Adapter], Any, tuple[Any, dict[str, Any]]]:
    """Return the adapter's class, the processor, and the network with what loading reports."""
    trusted = options.get("trust_remote_code", False)
    dtype, max_memory = options.get("dtype"), options.get("max_memory")
    offload_folder = options.get("offload_folder")
    on_gpu = torch.cuda.is_available()
    placed = on_gpu or max_memory is not None or offload_folder is not None
    config = AutoConfig.from_pretrained(source, trust_remote_code=trusted)
    adapter_class = _adapter_class(options.get("adapter"), config)
    if why := adapter_class.unsupported(config):
        raise ModelError(why)
    processor = AutoProcessor.from_pretrained(source, trust_remote_code=trusted)
    loaded = AutoModelForImageTextToText.from_pretrained(
        source,
        dtype=dtype or ("auto" if on_gpu else torch.float32),
        device_map=options.get("device_map") or _placement(placed),
        max_memory=dict(max_memory) if max_memory else None,
        offload_folder=str(offload_folder) if offload_folder else None,
        quantization_config=_quantized(options.get("quantization"), dtype),
        trust_remote_code=trusted,
        use_safetensors=True,
        output_loading_info=True,
    )
    return adapter_class, processor, cast("tuple[Any, dict[str, Any]]", loaded)


def _placement(placed: bool) -> DeviceMap | None:
    """Return all GPUs for one process, and one GPU each for several (`accelerate launch`)."""
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
            f"the adapter {adapter!r} serves models of type {', '.join(named.model_types)}, and "
            f"this one is of type {config.model_type!r}; leave the adapter out, or use 'auto'"
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
    """Return what to do about an error of transformers whose text does not say it."""
    folder = Path(source)
    if "custom code" in str(error):
        return " Read that code; if you trust it, load with trust_remote_code=True."
    if folder.is_dir() and any(folder.glob("*.bin")) and not any(folder.glob("*.safetensors")):
        return (
            " The folder has pickled weights (.bin), which are refused, as opening them can run "
            "code; save the model as safetensors, as save_pretrained does."
        )
    return ""
