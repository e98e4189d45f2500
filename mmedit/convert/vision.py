"""The EVA-ViT (Fang et al. 2022) of BLIP-2: names of LAVIS' `eva_vit_g.pth`, which are timm's, to
those of transformers' `Blip2VisionModel`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import Blip2VisionConfig

from mmedit.convert.account import Checkpoint, Drops, Shapes, agreed_size, numbers
from mmedit.errors import ModelError

HEADS = {1408: 16}
LAYERS = {1408: 39}
"""Number of layers by width: BLIP-2 uses 39 of the 40 blocks of EVA-g."""
BLOCK_EPS = 1e-6
LN_VISION_EPS = 1e-5
NORMS = r"blocks\.\d+\.norm[12]\.(weight|bias)"

RENAMES = (
    (r"cls_token", "embeddings.class_embedding"),
    (r"pos_embed", "embeddings.position_embedding"),
    (r"patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.self_attn.projection."),
    (r"blocks\.(\d+)\.attn\.", r"encoder.layers.\1.self_attn."),
    (r"blocks\.(\d+)\.norm([12])\.", r"encoder.layers.\1.layer_norm\2."),
    (r"blocks\.(\d+)\.mlp\.", r"encoder.layers.\1.mlp."),
)


@dataclass(frozen=True, kw_only=True)
class VisionSizes:
    """Sizes that are read from the weights, and two that are not: heads, and the used layers."""

    width: int
    intermediate: int
    patch: int
    positions: int
    layers: int
    heads: int
    image_size: int

    @property
    def config(self) -> Blip2VisionConfig:
        """The config, with `post_layernorm_eps` for the BLIP-2 adapters.

        Transformers has one epsilon for all norms.
        """
        return cast("Any", Blip2VisionConfig)(
            hidden_size=self.width,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            image_size=self.image_size,
            patch_size=self.patch,
            layer_norm_eps=BLOCK_EPS,
            post_layernorm_eps=LN_VISION_EPS,
        )

    @property
    def shapes(self) -> Shapes:
        """Shapes of the used tensors, by original name."""
        wide = (self.width,)
        block: Shapes = {
            "norm1.weight": wide,
            "norm1.bias": wide,
            "attn.q_bias": wide,
            "attn.v_bias": wide,
            "attn.qkv.weight": (3 * self.width, self.width),
            "attn.proj.weight": (self.width, self.width),
            "attn.proj.bias": wide,
            "norm2.weight": wide,
            "norm2.bias": wide,
            "mlp.fc1.weight": (self.intermediate, self.width),
            "mlp.fc1.bias": (self.intermediate,),
            "mlp.fc2.weight": (self.width, self.intermediate),
            "mlp.fc2.bias": wide,
        }
        return {
            "cls_token": (1, 1, self.width),
            "pos_embed": (1, self.positions, self.width),
            "patch_embed.proj.weight": (self.width, 3, self.patch, self.patch),
            "patch_embed.proj.bias": wide,
            **{f"blocks.{i}.{n}": shape for i in range(self.layers) for n, shape in block.items()},
        }

    @property
    def drops(self) -> Drops:
        """Tensors of such files that are not needed."""
        behind = "|".join(str(i) for i in range(self.layers)) or "-"
        return (
            (rf"blocks\.(?!(?:{behind})\.)\d+\..*", f"a block behind the {self.layers} in use"),
            (r"(fc_)?norm\.(weight|bias)", "the tower's own last norm; ln_vision is in its place"),
            (r"head\.(weight|bias)", "a classifier"),
            (r"mask_token", "the mask of pre-training"),
        )


def vision_sizes(
    checkpoint: Checkpoint, *, image_size: int, heads: int | None, layers: int | None
) -> VisionSizes:
    """Return the sizes.

    Raises ModelError if the file is not such a tower, or heads or layers are not known.
    """
    width = agreed_size(checkpoint, {NORMS: 0})
    positions = _second(checkpoint, "pos_embed")
    if math.isqrt(positions - 1) ** 2 != positions - 1:
        raise ModelError(
            f"{checkpoint}: pos_embed has {positions} positions; expected one for the class and a "
            "square of patches"
        )
    patch = agreed_size(checkpoint, {r"patch_embed\.proj\.weight": 2})
    if image_size < patch or image_size % patch:
        raise ModelError(
            f"--image-size {image_size} is not a multiple of the patch size {patch} of {checkpoint}"
        )
    return VisionSizes(
        width=width,
        intermediate=agreed_size(
            checkpoint,
            {r"blocks\.\d+\.mlp\.fc1\.(weight|bias)": 0, r"blocks\.\d+\.mlp\.fc2\.weight": 1},
        ),
        patch=patch,
        positions=positions,
        layers=_layers(checkpoint, layers, width),
        heads=known_heads(checkpoint, "--vision-heads", heads, HEADS, width),
        image_size=image_size,
    )


def vision_weights(checkpoint: Checkpoint, sizes: VisionSizes) -> dict[str, Tensor]:
    """Return the state of a `Blip2VisionModel` in float32, without `post_layernorm`.

    Keys have no bias, so qkv.bias = (q_bias, 0, v_bias).
    """
    state = {
        _renamed(name): checkpoint.tensors[name].float()
        for name in sizes.shapes
        if not name.endswith(("q_bias", "v_bias"))
    }
    for i in range(sizes.layers):
        q, v = (checkpoint.tensors[f"blocks.{i}.attn.{n}_bias"].float() for n in "qv")
        state[f"encoder.layers.{i}.self_attn.qkv.bias"] = torch.cat([q, torch.zeros_like(q), v])
    place = "embeddings.position_embedding"
    state[place] = resized_positions(state[place], sizes.image_size // sizes.patch)
    return state


def resized_positions(
    positions: Float[Tensor, "1 before width"], side: int
) -> Float[Tensor, "1 after width"]:
    """Return position embeddings for side × side patches; the one of the class stays.

    The interpolation is bicubic, as in LAVIS' `interpolate_pos_embed`.
    """
    old = math.isqrt(positions.shape[1] - 1)
    if old == side:
        return positions
    square = positions[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    resized = interpolate(square, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], resized.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def known_heads(
    checkpoint: Checkpoint, option: str, given: int | None, known: dict[int, int], width: int
) -> int:
    """Return the number of heads: the given one, or the one known for the width.

    The weights do not show it. Raises ModelError.
    """
    heads = known.get(width) if given is None else given
    if heads is None:
        raise ModelError(
            f"the number of heads cannot be read from {checkpoint} and is known only for width "
            f"{', '.join(map(str, known))}, not for {width}; give {option}"
        )
    if heads < 1 or width % heads:
        raise ModelError(f"{option} {heads} does not divide the width {width} of {checkpoint}")
    return heads


def _layers(checkpoint: Checkpoint, given: int | None, width: int) -> int:
    blocks = numbers(checkpoint, r"blocks\.(\d+)\.")
    layers = LAYERS.get(width) if given is None else given
    if layers is None:
        raise ModelError(
            f"the number of used blocks (of {len(blocks)}) of {checkpoint} is known only for width "
            f"{', '.join(map(str, LAYERS))}, not for {width}; give --vision-layers"
        )
    if not 1 <= layers <= blocks[-1] + 1:
        raise ModelError(f"--vision-layers {layers}: {checkpoint} has {blocks[-1] + 1} blocks")
    return layers


def _second(checkpoint: Checkpoint, name: str) -> int:
    shape = checkpoint.shape(name)
    if len(shape) != 3 or shape[1] < 2:
        raise ModelError(
            f"{checkpoint}: {name} is {list(shape)}; expected [1, number, width] with a number of "
            "at least 2"
        )
    return shape[1]


def _renamed(name: str) -> str:
    for pattern, new in RENAMES:
        if re.match(pattern, name):
            return re.sub(rf"^{pattern}", new, name)
    raise KeyError(name)
