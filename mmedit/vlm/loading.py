"""Loads a VLM from a folder or a hub id, in the same way for every family."""

from __future__ import annotations

import os
from collections.abc import Mapping
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
    ProcessorMixin,
)

from mmedit.adapters import ADAPTERS, adapter_for
from mmedit.adapters.base import STAGES, Adapter, Stage
from mmedit.adapters.checkpoint import (
    model_folder,
    require_all_used,
    require_known_quantisation,
    require_no_adapter,
    require_readable,
    require_sentencepiece,
    require_tokenizer_files,
)
from mmedit.adapters.compiled import compile_layers, require_compiler
from mmedit.adapters.matching import require_matching_processor
from mmedit.adapters.weights import keep_weights_in_place, require_finite
from mmedit.cache import TensorCache
from mmedit.catalog import built_in_vlms, require_made
from mmedit.errors import ModelError, UnknownNameError, one_line, shortened
from mmedit.storage import is_hub_id
from mmedit.vlm.network import NetworkVLM

LOADING_ERRORS = (
    OSError, ValueError, RuntimeError, ImportError, SafetensorError, StrictDataclassError,
    LookupError, TypeError, AttributeError, ArithmeticError,
)  # fmt: skip
"""Errors that transformers raises for the files of a folder; the last four for settings of a wrong
type or size, which it does not check.
"""
DTYPES = ("float32", "float16", "bfloat16", "float64")
Quantization = Literal["8bit", "4bit"]
DeviceMap = str | Mapping[str, str | int]


def resolve_vlm(name_or_path: str | Path) -> str:
    """Return the folder or hub id of a name, without loading anything.

    Raises UnknownNameError or ModelError.
    """
    name = str(name_or_path)
    if name in (built_in := built_in_vlms()):
        require_made(name)
        return str(built_in[name])
    if (folder := model_folder(Path(name).expanduser())) is not None:
        return str(folder)
    if is_hub_id(name):
        return name
    raise UnknownNameError("VLM (nor model folder, nor hub id like owner/name)", name, built_in)


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
    compile: bool
    """Whether `torch.compile` makes the layers of vision and bridge faster. False by default."""


def load_vlm(
    name_or_path: str | Path,
    *,
    features: TensorCache | None = None,
    name: str | None = None,
    **options: Unpack[LoadingOptions],
) -> NetworkVLM:
    """Load a VLM: the built-in "embedded" or "photo", a transformers folder, or a hub id.

    `features` is a cache of image features to use; `name` is the VLM's `name`, by default
    `name_or_path`. `LoadingOptions` describes the other keywords. Weights are read from safetensors
    only, and no code of the checkpoint runs unless `trust_remote_code` is given.

    Beside loading it costs one pass over the weights, to find NaN and infinity (about 0.3 s for
    each GB on one slow core; offloaded weights are checked when `identity` is read), and one pass
    of a small image through vision and bridge. Raises UnknownNameError, ModelError, SiteError.
    """
    if unknown := sorted(options.keys() - LoadingOptions.__annotations__.keys()):
        raise TypeError(f"load_vlm() got an unexpected keyword argument {unknown[0]!r}")
    if options.get("compile"):
        require_compiler()
    source = resolve_vlm(name_or_path)
    sites = _known_stages(options.get("sites") or {})
    try:
        adapter = _adapter(source, options)
    except LOADING_ERRORS as error:
        if isinstance(error, UnknownNameError):
            raise
        raise ModelError(
            f"{name_or_path} cannot be loaded: {one_line(error)}{_advice(source, error)}"
        ) from error
    vlm = NetworkVLM(adapter, name=name or str(name_or_path), features=features, sites=sites)
    for site in (site for stage in sites for site in vlm.sites(stage)):
        vlm.shape(site)  # raises SiteError
    return vlm


def _adapter(source: str, options: LoadingOptions) -> Adapter:
    """Load a network with its processor and check both. Raises ModelError or a loading error."""
    adapter_class, processor, (network, loading) = _loaded(source, options)
    if missing := sorted(loading["missing_keys"]):
        raise ModelError(
            f"its files lack {len(missing)} of the network's weights, for example {missing[0]}, "
            "which would be random"
        )
    require_all_used(network, loading["unexpected_keys"])
    network.eval().requires_grad_(False)
    require_finite(network.state_dict())
    keep_weights_in_place(network)
    adapter = adapter_class(network, processor)
    require_matching_processor(adapter)
    if options.get("compile"):
        compile_layers(adapter)
    return adapter


def _loaded(
    source: str, options: LoadingOptions
) -> tuple[type[Adapter], Any, tuple[Any, dict[str, Any]]]:
    """Return the adapter's class, the processor, and the network with what loading reports."""
    trusted = options.get("trust_remote_code", False)
    dtype, max_memory = _known_dtype(options.get("dtype")), options.get("max_memory")
    offload_folder = options.get("offload_folder")
    on_gpu = torch.cuda.is_available()
    placed = on_gpu or max_memory is not None or offload_folder is not None
    if Path(source).is_dir():
        require_readable(Path(source))
    config = AutoConfig.from_pretrained(source, trust_remote_code=trusted)
    adapter_class = _adapter_class(options.get("adapter"), config)
    if why := adapter_class.unsupported(config):
        raise ModelError(why)
    require_known_quantisation(config)
    require_no_adapter(source)
    processor = _processor(source, trusted=trusted)
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


def _processor(source: str, *, trusted: bool) -> Any:
    """Load the processor. Raises ModelError if its folder has none, or a part of one."""
    folder = Path(source)
    if folder.is_dir():
        require_sentencepiece(folder)
        if not trusted:  # code of a checkpoint may read other files
            require_tokenizer_files(folder)
    try:
        processor: Any = AutoProcessor.from_pretrained(source, trust_remote_code=trusted)
    except Exception as error:  # `tokenizers` raises bare ones for a tokenizer.json of a wrong form
        if type(error) is not Exception:
            raise
        raise ModelError(f"its tokenizer.json is not of the form that is read: {error}") from error
    if isinstance(processor, ProcessorMixin):
        return processor
    raise ModelError(
        f"its folder has the files of a {type(processor).__name__} alone; expected those of a "
        "processor for images and text (processor_config.json or preprocessor_config.json, and "
        "the tokenizer's): put them into the folder"
    )


def _known_stages(
    sites: Mapping[Any, tuple[str, ...]],
) -> Mapping[Stage, tuple[str, ...]]:
    for stage in sites:
        if stage not in STAGES:
            raise UnknownNameError("stage of a VLM", str(stage), STAGES)
    return sites


def _known_dtype(dtype: Any) -> torch.dtype | str | None:
    """Return a dtype by its name in torch. "auto" is the checkpoint's own."""
    if dtype is None or isinstance(dtype, torch.dtype) or dtype == "auto":
        return dtype
    if str(dtype) not in DTYPES:
        raise UnknownNameError("dtype", str(dtype), ("auto", *DTYPES))
    return getattr(torch, dtype)


def _placement(placed: bool) -> DeviceMap | None:
    """Return all GPUs for one process, and one GPU each for several (`accelerate launch`)."""
    if not placed:
        return None
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return "auto"
    return {"": str(PartialState().device)}


def _adapter_class(adapter: object, config: Any) -> type[Adapter]:
    if adapter is None:
        return adapter_for(config)
    if isinstance(adapter, type) and issubclass(adapter, Adapter):
        return adapter
    if not isinstance(adapter, str):
        raise ModelError(
            f"the adapter is {shortened(adapter)}; expected a name ({', '.join(ADAPTERS)}) or a "
            "class derived from mmedit.adapters.base.Adapter"
        )
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
