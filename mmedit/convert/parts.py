"""The parts of each family from its sources: config, weights, and the account of every tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Blip2Config

from mmedit.adapters.minigpt4 import GROUP, MiniGPT4Config
from mmedit.convert.account import Account, Checkpoint, Drops, Shapes, account
from mmedit.convert.files import read_trained
from mmedit.convert.qformer import DROPS as QFORMER_DROPS
from mmedit.convert.qformer import linear_shapes, qformer_sizes, qformer_weights
from mmedit.convert.vision import VisionSizes
from mmedit.errors import ModelError

LN_VISION, POST_LAYERNORM = "ln_vision", "vision_model.post_layernorm"
OPT, LLAMA = "opt_proj", "llama_proj"
BUFFER = "a buffer that the language model computes"
LEFTOVERS: Drops = (
    (r"llama_model\..*\brotary_emb\..*", BUFFER),
    (r"Qformer\.bert\.embeddings\.position_ids", "a buffer that counts"),
)
OTHER_PROJECTIONS: Drops = (
    (r"(opt|t5|llama)_proj\.(weight|bias)", "the projection into another language model"),
)
IDENTITY = "the identity: without a Q-Former the original neither loads nor trains ln_vision"


@dataclass(frozen=True, kw_only=True)
class Sources:
    """The sources of the parts, as files.

    `vision` may also be `timm:NAME` or `open_clip:ARCH/WEIGHTS`; `language` is a transformers
    folder or hub id.
    """

    vision: str
    language: str
    qformer: str | None = None
    projection: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Parts:
    """The parts of a network between vision tower and language model."""

    config: Any
    weights: Mapping[str, Tensor]
    accounts: tuple[Account, ...]
    filled: Mapping[str, str]
    """Weights that no source contains, with what they are."""


def behind_qformer(
    qformer: str,
    projection: str | None,
    vision: VisionSizes,
    text_config: Any,
    *,
    heads: int | None,
    drop: tuple[str, ...],
) -> Parts:
    """Return the parts of BLIP-2 or of MiniGPT-4 with a Q-Former. Raises ModelError.

    BLIP-2 has its projection in the Q-Former file, MiniGPT-4 in a file of its own.
    """
    name = OPT if projection is None else LLAMA
    file = read_trained("--qformer", qformer)
    projected = file if projection is None else read_trained("--projection", projection)
    projected.shape(f"{name}.weight")
    sizes = qformer_sizes(file, image_width=vision.width, heads=heads)
    expected = {**sizes.shapes, **_norm_shapes(vision.width)}
    last = linear_shapes(name, sizes.width, text_config.hidden_size)
    drops = (*QFORMER_DROPS, *OTHER_PROJECTIONS)
    if projection is None:
        accounts = (account(file, {**expected, **last}, drops, also_drop=drop),)
    else:
        accounts = (
            account(file, expected, drops, also_drop=drop),
            account(projected, last, LEFTOVERS, also_drop=drop),
        )
    config = Blip2Config(
        vision_config=vision.config,
        qformer_config=sizes.config,
        text_config=text_config,
        num_query_tokens=sizes.queries,
    )
    weights = {**qformer_weights(file, sizes), **_norm_weights(file)}
    weights |= _projection_weights(projected, name)
    return Parts(config=config, weights=weights, accounts=accounts, filled={})


def behind_patches(
    projection: str, vision: VisionSizes, text_config: Any, *, drop: tuple[str, ...]
) -> Parts:
    """Return the parts of MiniGPT-4 without a Q-Former. Raises ModelError."""
    patches = (vision.image_size // vision.patch) ** 2
    if patches % GROUP:
        raise ModelError(
            f"--image-size {vision.image_size} makes {patches} patches, which cannot be grouped by "
            f"{GROUP}; expected an even number of patches per side"
        )
    file = read_trained("--projection", projection)
    inputs = file.shape(f"{LLAMA}.weight")[-1]
    if inputs != GROUP * vision.width:
        raise ModelError(
            f"{file}: {LLAMA}.weight takes {inputs} numbers; without --qformer, expected {GROUP} "
            f"patches of {vision.width}. If the file is for a Q-Former, give --qformer"
        )
    has_norm = any(name.startswith(f"{LN_VISION}.") for name in file.tensors)
    expected = {
        **linear_shapes(LLAMA, inputs, text_config.hidden_size),
        **(_norm_shapes(vision.width) if has_norm else {}),
    }
    accounts = (account(file, expected, LEFTOVERS, also_drop=drop),)
    norm = _norm_weights(file) if has_norm else _identity(vision.width)
    return Parts(
        config=MiniGPT4Config(
            vision_config=vision.config, text_config=text_config, num_query_tokens=patches // GROUP
        ),
        weights={**norm, **_projection_weights(file, LLAMA)},
        accounts=accounts,
        filled={} if has_norm else dict.fromkeys(norm, IDENTITY),
    )


def _norm_shapes(width: int) -> Shapes:
    return {f"{LN_VISION}.weight": (width,), f"{LN_VISION}.bias": (width,)}


def _norm_weights(file: Checkpoint) -> dict[str, Tensor]:
    names = ("weight", "bias")
    return {f"{POST_LAYERNORM}.{n}": file.tensors[f"{LN_VISION}.{n}"].float() for n in names}


def _identity(width: int) -> dict[str, Tensor]:
    return {
        f"{POST_LAYERNORM}.weight": torch.ones(width),
        f"{POST_LAYERNORM}.bias": torch.zeros(width),
    }


def _projection_weights(file: Checkpoint, name: str) -> dict[str, Tensor]:
    return {f"language_projection.{n}": file.tensors[f"{name}.{n}"] for n in ("weight", "bias")}
