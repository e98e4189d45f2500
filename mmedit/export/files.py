"""The small files of an exported folder: configs, tokenizer, processor, chat template, licence.

They are those of the checkpoint, unchanged, except for the dtype in `config.json`. What mmedit
changes in a loaded network (it replaces the generation settings) does not get into the folder.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError

from mmedit.adapters.base import Adapter
from mmedit.adapters.checkpoint import CONFIG
from mmedit.export.places import write_json
from mmedit.storage import is_hub_id

KEPT = (".json", ".jinja", ".txt", ".model", ".tiktoken", ".py")
"""Endings of the files that are copied: all that a tokenizer or a processor may read."""
KEPT_NAMES = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY")
"""Beginnings of the names of further files that are copied. The model card is not: it would speak
of other weights.
"""
KEPT_FOLDERS = ("additional_chat_templates",)
LEFT_OUT = (".index.json",)
"""Endings of files that belong to the weights."""
DTYPE_KEYS = ("dtype", "torch_dtype")


def source_folder(network: Any) -> Path | None:
    """Return the folder that a network was loaded from; None if it was made by hand.

    The folder of a hub id is the one in which its files were kept when it was loaded.
    """
    name = str(network.name_or_path or "")
    if name and Path(name).is_dir():
        return Path(name)
    if not is_hub_id(name):
        return None
    try:
        revision = network.config._commit_hash
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (OSError, HFValidationError, ValueError):
        return None


def write_files(adapter: Adapter, folder: Path, *, dtype: str) -> None:
    """Write everything but the weights. `dtype` is what plain transformers opens the folder in."""
    source = source_folder(adapter.network)
    if source is None:
        _write_as_loaded(adapter, folder, dtype)
        return
    for file in sorted(source.iterdir()):
        if file.is_file() and _is_kept(file.name):
            shutil.copyfile(file, folder / file.name)
        elif file.is_dir() and file.name in KEPT_FOLDERS:
            shutil.copytree(file, folder / file.name)
    described = json.loads((source / CONFIG).read_text(encoding="utf-8"))
    described = {key: value for key, value in described.items() if key not in DTYPE_KEYS}
    write_json(folder / CONFIG, {**_with_dtype(described, dtype), "dtype": dtype})


def _write_as_loaded(adapter: Adapter, folder: Path, dtype: str) -> None:
    """Write the files of a network without a folder of its own."""
    config = copy.deepcopy(adapter.network.config)
    config.architectures = [type(adapter.network).__name__]
    config.dtype = dtype
    config.save_pretrained(folder)
    adapter.stops.greedy().save_pretrained(folder)
    adapter.processor.save_pretrained(folder)


def _is_kept(name: str) -> bool:
    if name.startswith(".") or name.endswith(LEFT_OUT):
        return False
    return name.endswith(KEPT) or name.upper().startswith(KEPT_NAMES)


def _with_dtype(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Return a config with another dtype wherever it names one."""
    return {
        key: _with_dtype(value, dtype)
        if isinstance(value, dict)
        else dtype
        if key in DTYPE_KEYS
        else value
        for key, value in config.items()
    }
