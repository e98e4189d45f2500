"""From a name, a folder or a hub id to a VLM: the same code path for all."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoProcessor

from mmedit.adapters import ADAPTERS
from mmedit.errors import ModelError, UnknownNameError
from mmedit.features import TensorCache
from mmedit.vlm.network import NetworkVLM

BUILT_IN = {"embedded": "assets/embedded-vlm"}
"""VLMs shipped inside the package: ordinary transformers folders."""

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


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
    if HUB_ID.fullmatch(name) and not name.startswith((".", "/")):
        return name
    raise UnknownNameError("VLM (nor model folder, nor hub id like owner/name)", name, BUILT_IN)


def load_vlm(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    device_map: str | dict[str, str | int] | None = None,
    features: TensorCache | None = None,
) -> NetworkVLM:
    """A VLM from a built-in name ("embedded"), a transformers folder, or a hub id.

    Without a GPU `dtype` defaults to float32; with one to the checkpoint's own, and `device_map`
    (transformers') to "auto". The adapter follows from the config's model type. Raises
    UnknownNameError, ModelError.
    """
    source = resolve_vlm(name_or_path)
    on_gpu = torch.cuda.is_available()
    try:
        config = AutoConfig.from_pretrained(source)
        adapter_class = ADAPTERS.get(config.model_type)
        if adapter_class is None:
            raise ModelError(
                f"{name_or_path} is of model type {config.model_type!r}, which has no adapter "
                "yet; there are: "
                f"{', '.join(sorted(ADAPTERS))}"
            )
        processor = AutoProcessor.from_pretrained(source)
        loaded = adapter_class.network_class.from_pretrained(
            source,
            dtype=dtype or ("auto" if on_gpu else torch.float32),
            device_map=device_map or ("auto" if on_gpu else None),
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{name_or_path} cannot be loaded: {error}") from error
    network, loading = cast("tuple[Any, dict[str, Any]]", loaded)
    if missing := sorted(loading["missing_keys"]):
        raise ModelError(
            f"{name_or_path} cannot be loaded: its files lack {len(missing)} of the network's "
            "weights, "
            f"for instance {missing[0]}, which would be random"
        )
    network.eval().requires_grad_(False)
    return NetworkVLM(adapter_class(network, processor), features=features)
