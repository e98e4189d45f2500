"""Reads original checkpoints. Anyone may have made them, so files that need pickle are refused."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mmedit.convert.account import Checkpoint, listed
from mmedit.errors import ModelError

TIMM, OPEN_CLIP = "timm:", "open_clip:"
TRUNK = "visual.trunk."
"""OpenCLIP's prefix of a tower from timm."""
WHOLE = "visual_encoder."
"""LAVIS' prefix of the tower in files of whole models."""
BEGINNINGS = (b"PK", b"\x80")
"""First bytes of a file by torch.save: a zip archive, or a bare pickle."""
TRAINING = ("optimizer", "scaler", "config", "epoch", "iters")
"""Entries that the original trainers write beside `model`."""


def check_source(role: str, source: str, *, by_name: bool) -> None:
    """Raise ModelError if a source does not exist. Nothing is read.

    With `by_name` it may be a name of timm's or OpenCLIP's.
    """
    for prefix, package, example in (
        (TIMM, "timm", "timm:eva_giant_patch14_224"),
        (OPEN_CLIP, "open_clip", "open_clip:EVA01-g-14/laion400m_s11b_b41k"),
    ):
        if not (by_name and source.startswith(prefix)):
            continue
        if find_spec(package) is None:
            raise ModelError(
                f"{role} {source} needs the package {package}, which is not installed: "
                "pip install 'mmedit[convert]'"
            )
        parts = source.removeprefix(prefix).split("/", 1)
        if not all(parts) or len(parts) != (2 if prefix == OPEN_CLIP else 1):
            raise ModelError(f"{role} {source} is not a valid name; expected one like {example}")
        return
    if not Path(source).is_file():
        found = "is a folder" if Path(source).is_dir() else "does not exist"
        raise ModelError(f"{role} {source} {found}; expected a checkpoint file")


def read_vision(source: str) -> Checkpoint:
    """Read a vision tower from a file, or by name from timm or OpenCLIP. Raises ModelError.

    The file has a flat dictionary, with or without `model` around it, and with or without the
    prefix of OpenCLIP or LAVIS.
    """
    if source.startswith(TIMM):
        name = source.removeprefix(TIMM)
        return Checkpoint(role="--vision", source=source, tensors=fetch_timm(name))
    if source.startswith(OPEN_CLIP):
        name, pretrained = source.removeprefix(OPEN_CLIP).split("/", 1)
        tensors = fetch_open_clip(name, pretrained)
        return _trunk(Checkpoint(role="--vision", source=source, tensors=tensors))
    content = _read("--vision", source)
    if isinstance(content.get("model"), Mapping):
        content, dropped = _model(content)
    else:
        dropped = {}
    file = _checkpoint("--vision", source, content, dropped)
    if any(name.startswith(TRUNK) for name in file.tensors):
        return _trunk(file)
    tensors = {name.removeprefix(WHOLE): tensor for name, tensor in file.tensors.items()}
    return replace(file, tensors=tensors)


def read_trained(role: str, source: str) -> Checkpoint:
    """Read a file of LAVIS' or MiniGPT-4's trainers, with tensors under `model`.

    Raises ModelError.
    """
    content = _read(role, source)
    if not isinstance(content.get("model"), Mapping):
        raise ModelError(
            f"{role} {source} contains {listed(map(str, content))}; expected a dictionary under "
            "'model', as in the files of LAVIS and MiniGPT-4"
        )
    return _checkpoint(role, source, *_model(content))


def fetch_timm(name: str) -> dict[str, Tensor]:
    """Return the weights of timm's model of that name. Raises ModelError."""
    import timm

    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(f"timm cannot give {name!r} with weights: {error}") from error


def fetch_open_clip(name: str, pretrained: str) -> dict[str, Tensor]:
    """Return the weights of OpenCLIP's model of that name. Raises ModelError."""
    import open_clip

    try:
        return open_clip.create_model(name, pretrained=pretrained).state_dict()
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"OpenCLIP cannot give {name!r} with weights {pretrained!r}: {error}"
        ) from error


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _trunk(model: Checkpoint) -> Checkpoint:
    trunk = {
        name.removeprefix(TRUNK): tensor
        for name, tensor in model.tensors.items()
        if name.startswith(TRUNK)
    }
    if not trunk:
        raise ModelError(
            f"{model} has no {TRUNK}*; it contains {listed(model.tensors)}; expected a model whose "
            "vision tower is from timm, for example open_clip:EVA01-g-14/..."
        )
    text = [name for name in model.tensors if not name.startswith(TRUNK)]
    dropped = {**model.dropped, **dict.fromkeys(text, "CLIP's text tower, head or scale")}
    return replace(model, tensors=trunk, dropped=dropped)


def _read(role: str, source: str) -> Mapping[str, Any]:
    path = Path(source)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        _check_beginning(role, path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise ModelError(
            f"{role} {source} contains more than tensors and plain values, so reading it could run "
            f"code, and is refused ({_code_of(error)}); save its tensors alone, for example as "
            "safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, SafetensorError) as error:
        if isinstance(error, ModelError):
            raise
        why = str(error).partition("\n")[0] or "it ends too soon"
        raise ModelError(
            f"{role} {source} cannot be read: {why}; expected a file by torch.save or a "
            ".safetensors file"
        ) from error
    if not isinstance(content, Mapping):
        raise ModelError(
            f"{role} {source} contains a {type(content).__name__}; expected a dictionary"
        )
    return content


def _check_beginning(role: str, path: Path) -> None:
    """Raise ModelError if a file does not begin as a checkpoint does.

    Web pages and Git LFS pointers are sometimes saved in the place of one.
    """
    with path.open("rb") as file:
        found = file.read(40)
    if not found.startswith(BEGINNINGS):
        raise ModelError(
            f"{role} {path} is not a checkpoint: it begins with {found!r}; expected a file by "
            "torch.save. Was a web page or a Git LFS pointer saved in its place?"
        )


def _code_of(error: UnpicklingError) -> str:
    """Return the name of the code that a file would call. torch's own error advises to allow it."""
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    return f"it calls {found[1]}" if found else "by pickle"


def _model(content: Mapping[str, Any]) -> tuple[Mapping[str, Any], dict[str, str]]:
    """Return the tensors under `model`, and the reasons for dropping the entries beside it.

    Unknown entries stay among the tensors, so that they are reported as extra.
    """
    beside = {name: value for name, value in content.items() if name != "model"}
    unknown = {name: value for name, value in beside.items() if name not in TRAINING}
    dropped = dict.fromkeys(beside, "state of the training, beside the model")
    model = content["model"]
    return (
        {**model, **unknown},
        {name: why for name, why in dropped.items() if name not in unknown},
    )


def _checkpoint(
    role: str, source: str, content: Mapping[str, Any], dropped: Mapping[str, str]
) -> Checkpoint:
    others = [
        str(name)
        for name, value in content.items()
        if not (isinstance(name, str) and isinstance(value, Tensor))
    ]
    if others:
        raise ModelError(
            f"{role} {source} contains {listed(others)}, which is not a tensor with a name; "
            "expected a dictionary of tensors"
        )
    return Checkpoint(
        role=role,
        source=source,
        tensors=dict(content),
        sha256=file_hash(Path(source)),
        dropped=dropped,
    )
