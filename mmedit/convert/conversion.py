"""Converts original checkpoints to a folder that `load_vlm` opens."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast, get_args

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import Blip2ForConditionalGeneration

from mmedit.adapters.minigpt4 import MiniGPT4Config, MiniGPT4ForConditionalGeneration
from mmedit.convert.account import Account, Conversion, account
from mmedit.convert.files import OPEN_CLIP, TIMM, check_source, file_hash, read_vision
from mmedit.convert.language import (
    STOP_STRINGS,
    Format,
    build_processor,
    check_language,
    end_at_line_feed,
    image_token_of,
    language_config,
    load_language,
    with_row_for,
)
from mmedit.convert.parts import BUFFER, Parts, Sources, behind_patches, behind_qformer
from mmedit.convert.vision import VisionSizes, vision_sizes, vision_weights
from mmedit.errors import ModelError, UnknownNameError
from mmedit.storage import replaced_folder

FAMILIES = ("blip2", "minigpt4")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
MMEDIT_SIZE = 364
REPORT = "conversion.json"
ZERO_ROW = "a row of zeros for <image>, as the vocabulary had no row for it"
IN_FLOAT32 = ("qformer.", "query_tokens")
"""Weights that transformers runs in float32, with any dtype of the rest."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Values that are not in the files, and choices of the user."""

    image_size: int = MMEDIT_SIZE
    vision_heads: int | None = None
    vision_layers: int | None = None
    qformer_heads: int | None = None
    format: str | None = None
    """Conversation format of MiniGPT-4. By default it follows from the variant."""
    dtype: str | None = None
    """Dtype of the written weights. By default it is the language model's."""
    drop: tuple[str, ...] = ()
    """Shell patterns of tensors to leave out that are neither known nor needed."""


def convert(
    family: str, sources: Sources, folder: Path, options: Options | None = None
) -> Conversion:
    """Write a VLM's folder.

    `blip2` needs vision, Q-Former file and language model. `minigpt4` also needs the projection;
    without a Q-Former file it is the Llama-2 variant. The folder appears when all of it is written.
    Raises UnknownNameError, and ModelError if a source does not exist, cannot be read safely, or
    does not fit.
    """
    options = options or Options()
    _check(family, sources, folder, options)
    with _appearing(folder) as unfinished:
        network, processor, finished = _convert(family, sources, folder, options)
        _save(network, processor, finished, unfinished)
    return finished


def _convert(
    family: str, sources: Sources, folder: Path, options: Options
) -> tuple[Any, Any, Conversion]:
    """Return network, processor, and the account of all sources."""
    format = _format(family, sources, options)
    text_config = language_config(sources.language)
    parts = _parts(sources, options, text_config)
    processor = build_processor(
        sources.language,
        image_size=options.image_size,
        image_tokens=parts.config.num_query_tokens,
        format=format,
    )
    parts.config.image_token_index = image_token_of(
        processor, sources.language, text_config.vocab_size
    )
    language = load_language(
        sources.language, DTYPES[options.dtype] if options.dtype is not None else None
    )
    if family == "blip2":
        end_at_line_feed(language, processor.tokenizer)
    filled = dict(parts.filled)
    if with_row_for(language, parts.config.image_token_index):
        filled["language_model: embeddings and head"] = ZERO_ROW
    network = _assemble(parts, language)
    if format in STOP_STRINGS:
        network.generation_config.stop_strings = list(STOP_STRINGS[format])
    finished = Conversion(
        folder=folder,
        model_type=parts.config.model_type,
        image_size=options.image_size,
        dtype=str(language.dtype).removeprefix("torch."),
        accounts=(*parts.accounts, *_language_accounts(sources.language, language)),
        filled=filled,
        versions=_versions(sources),
    )
    return network, processor, finished


def _check(family: str, sources: Sources, folder: Path, options: Options) -> None:
    """Raise UnknownNameError or ModelError for faults that show before anything is read."""
    for kind, name, known in (
        ("family to convert", family, FAMILIES),
        ("dtype", options.dtype, DTYPES),
        ("conversation format", options.format, get_args(Format)),
    ):
        if name is not None and name not in known:
            raise UnknownNameError(kind, name, known)
    if family == "blip2" and (sources.projection or options.format):
        raise ModelError(
            "blip2 has its projection in the file of --qformer and does not use a conversation "
            "format; leave out --projection and --format"
        )
    if family == "blip2" and sources.qformer is None:
        raise ModelError("blip2 needs --qformer, a file like LAVIS' blip2_pretrained_opt2.7b.pth")
    if family == "minigpt4" and sources.projection is None:
        raise ModelError("minigpt4 needs --projection, a file like pretrained_minigpt4_7b.pth")
    for role, source in (
        ("--vision", sources.vision),
        ("--qformer", sources.qformer),
        ("--projection", sources.projection),
    ):
        if source is not None:
            check_source(role, source, by_name=role == "--vision")
    check_language(sources.language)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ModelError(f"--out {folder} exists already; name a new folder, or empty it")


def _parts(sources: Sources, options: Options, text_config: Any) -> Parts:
    """Return all parts but the language model."""
    file = read_vision(sources.vision)
    sizes: VisionSizes = vision_sizes(
        file,
        image_size=options.image_size,
        heads=options.vision_heads,
        layers=options.vision_layers,
    )
    seen = account(file, sizes.shapes, sizes.drops, also_drop=options.drop)
    if sources.qformer is not None:
        parts = behind_qformer(
            sources.qformer, sources.projection, sizes, text_config,
            heads=options.qformer_heads, drop=options.drop,
        )  # fmt: skip
    else:
        parts = behind_patches(
            cast("str", sources.projection), sizes, text_config, drop=options.drop
        )
    weights = {f"vision_model.{n}": tensor for n, tensor in vision_weights(file, sizes).items()}
    return replace(parts, weights={**weights, **parts.weights}, accounts=(seen, *parts.accounts))


def _format(family: str, sources: Sources, options: Options) -> Format | None:
    if family == "blip2":
        return None
    by_variant = "llama2" if sources.qformer is None else "vicuna"
    return cast("Format", options.format or by_variant)


def _assemble(parts: Parts, language: Any) -> Any:
    """Return the network around the loaded language model. No weight is copied."""
    parts.config.text_config = language.config
    network_class = {
        MiniGPT4Config.model_type: MiniGPT4ForConditionalGeneration,
    }.get(parts.config.model_type, Blip2ForConditionalGeneration)
    with torch.device("meta"):
        network: Any = network_class(parts.config)
    network.language_model = language
    weights = {name: _cast(name, tensor, language.dtype) for name, tensor in parts.weights.items()}
    found = network.load_state_dict(weights, strict=False, assign=True)
    missing = [name for name in found.missing_keys if not name.startswith("language_model.")]
    if missing or found.unexpected_keys:
        raise ModelError(
            f"transformers' network and the key map do not agree: missing {missing}, unexpected "
            f"{found.unexpected_keys}; mmedit was tested with transformers 5.24"
        )
    return network


def _cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    cast_ = tensor.to(torch.float32 if name.startswith(IN_FLOAT32) else dtype).contiguous()
    if not bool(cast_.isfinite().all()):
        raise ModelError(
            f"{name} reaches {tensor.abs().max().item():g}, too large for {str(dtype)[6:]}; give "
            "--dtype bfloat16 or float32"
        )
    return cast_


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """Make a folder beside `folder` that gets its name when the block ends.

    It is removed if the block fails, so that an interrupted conversion is not taken for a finished
    one. Raises ModelError if the folder cannot be made.
    """
    with ExitStack() as entered:
        try:
            unfinished = entered.enter_context(replaced_folder(folder.resolve()))
        except OSError as error:
            raise ModelError(
                f"--out {folder.resolve()} cannot be made: {error.strerror} ({error.filename}); "
                "name a folder that you can write to"
            ) from error
        yield unfinished


def _save(network: Any, processor: Any, finished: Conversion, folder: Path) -> None:
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    # transformers takes the dtype of the first weight, which is the Q-Former's, for that of all
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    _write_json(folder / "config.json", {**config, "dtype": finished.dtype})
    report = asdict(finished)
    del report["folder"]
    _write_json(folder / REPORT, report)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _language_accounts(source: str, language: Any) -> list[Account]:
    """Return the account of the language model: one for each file, or one for a hub id's commit.

    Old files contain rotary buffers, which transformers leaves out; `load_language` uses all other
    tensors.
    """
    used, folder = len(language.state_dict()), Path(source)
    if not folder.is_dir():
        commit = language.config._commit_hash
        where = f"{source}@{commit}" if commit else source
        return [Account(role="--language", source=where, sha256=None, used=used, dropped={})]
    files = sorted(folder.glob("*.safetensors"))
    return [_language_account(path) for path in files]


def _language_account(path: Path) -> Account:
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
    dropped = {name: BUFFER for name in names if name.endswith("rotary_emb.inv_freq")}
    return Account(
        role="--language",
        source=str(path),
        sha256=file_hash(path),
        used=len(names) - len(dropped),
        dropped=dropped,
    )


def _versions(sources: Sources) -> dict[str, str]:
    packages = ["mmedit", "torch", "transformers"]
    packages += ["timm"] if sources.vision.startswith((TIMM, OPEN_CLIP)) else []
    packages += ["open_clip_torch"] if sources.vision.startswith(OPEN_CLIP) else []
    return {package: version(package) for package in packages}
