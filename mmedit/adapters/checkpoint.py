"""Checks of a model folder: what it lacks, and what it holds that loading would pass over.

Transformers loads a folder without the files of its tokenizer, with a torn generation config, with
an adapter beside the weights, or with weights that no module reads. The answers are then those of
another model, so each is an error here.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn
from transformers.utils.peft_utils import find_adapter_config_file

from mmedit.errors import ModelError, shortened

CONFIG = "config.json"
ADAPTER = "adapter_config.json"
SETTINGS = (
    CONFIG, "generation_config.json", "processor_config.json", "preprocessor_config.json",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.json",
)  # fmt: skip
"""Small files that transformers reads, and passes over in part when they are not valid JSON."""
SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
WORDS = ("tokenizer.json", "*.model", "vocab.*", "tekken.json", "*.tiktoken")
"""Files that hold the words of a tokenizer."""
MERGE = (
    "Merge it into the weights first, with peft: PeftModel.from_pretrained(model, folder)"
    ".merge_and_unload().save_pretrained(new_folder), and load the new folder"
)
LORA = ("lora_", "base_layer.", "modules_to_save", "ia3_", "hada_", "adapter_")
"""Parts of the names of weights that peft adds to a network."""
QUANTISED_BY = "bitsandbytes"


def model_folder(path: Path) -> Path | None:
    """Return the path if it is a folder that may be a model; None if nothing is there.

    Raises ModelError for a file, a folder without config, and one that may not be read.
    """
    try:
        if not path.is_dir():
            if path.exists():
                raise ModelError(f"{path} is a file; expected a transformers model folder")
            return None
        names = {entry.name for entry in path.iterdir()}
        if CONFIG in names:
            return path
        with_adapter = ADAPTER in names
    except PermissionError as error:
        raise ModelError(
            f"{path} cannot be read: {error.strerror}; expected a transformers model folder. Give "
            "yourself the right to read it, or copy it"
        ) from error
    except OSError as error:  # a name that is too long
        raise ModelError(
            f"{shortened(str(path))} cannot be read: {error.strerror}; expected a transformers "
            "model folder"
        ) from error
    if with_adapter:
        raise ModelError(f"{path} holds an adapter (LoRA) alone, and no model. {MERGE}")
    raise ModelError(f"{path} has no {CONFIG}; expected a transformers model folder")


def require_readable(folder: Path) -> None:
    """Raise ModelError unless the settings in a folder are valid JSON and its files may be read."""
    for name in SETTINGS:
        file = folder / name
        if not file.exists():
            continue
        try:
            described = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise ModelError(f"{file} cannot be read: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise ModelError(
                f"{name} is not valid JSON: {error}; fetch or save the file again"
            ) from error
        if not isinstance(described, dict):
            raise ModelError(f"{name} holds {shortened(described)}; expected a JSON object")


def require_tokenizer_files(folder: Path) -> None:
    """Raise ModelError if a folder has no file with the words of a tokenizer."""
    if not any(True for pattern in WORDS for _ in folder.glob(pattern)):
        raise ModelError(
            "it has no tokenizer: expected tokenizer.json, or the files that the model was "
            "released with (tokenizer.model; vocab.json and merges.txt): put them into the folder"
        )


def require_no_adapter(source: str) -> None:
    """Raise ModelError if an adapter lies beside the weights of a folder or hub id."""
    if find_adapter_config_file(source) is not None:
        raise ModelError(
            f"an adapter (LoRA) lies beside its weights ({ADAPTER}), and would not be applied. "
            f"{MERGE}; to measure the base model alone, remove the adapter's files"
        )


def require_sentencepiece(folder: Path) -> None:
    """Raise ModelError if the tokenizer of a folder needs packages that are not installed."""
    models = [name for name in SENTENCEPIECE if (folder / name).is_file()]
    if not models or (folder / "tokenizer.json").is_file():
        return
    missing = [
        package
        for package, module in (("sentencepiece", "sentencepiece"), ("protobuf", "google.protobuf"))
        if not _is_installed(module)
    ]
    if missing:
        raise ModelError(
            f"its tokenizer is {models[0]}, without tokenizer.json; reading it needs the packages "
            f"sentencepiece and protobuf (not installed: {', '.join(missing)}): "
            "pip install 'mmedit[convert]'"
        )


def require_known_quantisation(config: Any) -> None:
    """Raise ModelError if the weights are quantised in a way that mmedit cannot read."""
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return
    described = settings if isinstance(settings, dict) else settings.to_dict()
    method = str(described.get("quant_method"))
    if not method.endswith(QUANTISED_BY):
        raise ModelError(
            f"its weights are quantised by {method!r}; expected plain weights or {QUANTISED_BY}: "
            "load the model that it was made from, with vlm.quantization if it is too large"
        )


def require_all_used(network: nn.Module, unexpected: Collection[str]) -> None:
    """Raise ModelError if weights of the files belong to the network, which does not read them.

    These are the weights of an adapter, and further weights of a module that the network has.
    """
    names = sorted(map(str, unexpected))
    if adapters := [name for name in names if any(part in name for part in LORA)]:
        raise ModelError(
            f"its files hold {len(adapters)} weights of an adapter (LoRA), for example "
            f"{adapters[0]}, which would not be applied. {MERGE}"
        )
    modules = {name for name, _ in network.named_modules() if name}
    if unread := [name for name in names if _is_own(name, modules)]:
        raise ModelError(
            f"its files hold {len(unread)} weights that its network does not read, for example "
            f"{unread[0]}; config.json is not that of these weights: fetch or save both again"
        )


def _is_own(name: str, modules: Collection[str]) -> bool:
    module, _, own = name.rpartition(".")
    return own in ("weight", "bias") and module in modules


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it lies in
        return False
