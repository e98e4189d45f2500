"""Any `AutoModelForImageTextToText` of transformers with a chat template, and the base of the
families that transformers serves through the same functions.

The differences between families come from transformers: `processor(text, images)` tells which
tokens stand for an image, `get_image_features` gives the features that replace them, and `forward`
and `generate` take those features (`mm_encoder_outputs`). Vision is the module of
`get_encoder(modality="image")`, language that of `get_decoder()` and the head, and the bridge is
everything between them. Default sites are the feed-forward weights of the last three language
layers, every Linear of the bridge, and the last feed-forward weight of vision. Vision and bridge
depend on the image alone, so both may be cached.

`tests/adapters/test_families.py` compares it with transformers' own forward on SmolVLM, InternVL
and Gemma-3 (whose bridge has no Linear, and so no site).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch
from accelerate.utils import align_module_device
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.modeling_outputs import BaseModelOutputWithPooling

from mmedit.adapters.base import Adapter, Stage
from mmedit.adapters.generation import Answer, Decoding
from mmedit.adapters.inputs import Inputs
from mmedit.adapters.prompts import PromptFormat, chat_formats
from mmedit.adapters.seen import Layout, Pixels, SeenImage
from mmedit.adapters.sites import linears, sites_in
from mmedit.errors import ModelError

SIZES = ("image_grid_thw", "image_sizes")
"""Outputs of processors that the language model's positions, or the bridge, depend on."""
TOKEN_TYPES = ("mm_token_type_ids", "token_type_ids")
"""1 at image tokens. Families with positions in two dimensions take the first, families whose image
tokens attend to each other in both directions take the second.
"""
FEED_FORWARD = r"layers\.(\d+)\.(?:.*\.)?(?:fc1|fc2|up_proj|down_proj)$"
VISION_OUTPUT = r"(?:layers?|blocks)\.(\d+)\.(?:mlp|feed_forward)\.(?:fc2|down_proj|linear_fc2)$"


class TransformersAdapter(Adapter):
    """A vision-language model behind transformers' common interface; a family gives `formats`."""

    def __init__(self, network: Any, processor: Any) -> None:
        names = {id(module): name for name, module in network.named_modules()}
        self._vision_name = names[id(network.get_encoder(modality="image"))]
        self._language_name = names[id(network.get_decoder())]
        self._encode_inputs = _parameters(network.get_image_features)
        if "kwargs" in self._encode_inputs:  # passed on to the model inside
            self._encode_inputs |= _parameters(network.base_model.get_image_features)
        self._forward_inputs = _parameters(network.forward)
        if not (self._vision_name and self._language_name):
            raise ModelError(
                f"in this {type(network).__name__} the vision tower and the language model cannot "
                "be told apart; it needs an adapter of its own (docs/adding-a-model.md)"
            )
        super().__init__(network, processor)

    @classmethod
    def unsupported(cls, config: Any) -> str | None:
        if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
            return f"its model type {config.model_type!r} is not an image-text-to-text model"
        network: Any = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
        missing = [] if hasattr(network, "get_image_features") else ["get_image_features"]
        if "mm_encoder_outputs" not in inspect.signature(network.forward).parameters:
            missing.append("mm_encoder_outputs in forward")
        if not missing:
            return None
        return (
            f"transformers' {network.__name__} lacks {' and '.join(missing)}, which mmedit needs "
            "to read and to pass image features; this family needs an adapter of its own "
            "(docs/adding-a-model.md)"
        )

    @property
    def image_token(self) -> int:
        return self.network.config.image_token_id

    def chat_formats(self) -> tuple[PromptFormat, PromptFormat]:
        """Return the formats of the processor's chat template. Raises ModelError without one."""
        if not self.processor.chat_template:
            raise ModelError(
                "neither the processor nor the tokenizer of this model has a chat template, so its "
                "prompt format is not known; add chat_template.jinja to its folder, or write an "
                "adapter (docs/adding-a-model.md)"
            )
        return chat_formats(self.processor, self.processor.image_token)

    def sites(self, stage: Stage) -> tuple[str, ...]:
        if stage == "bridge":
            return tuple(site for module in self._bridge() for site in linears(*module))
        root, pattern, last = {
            "language": (self._language_name, FEED_FORWARD, 3),
            "vision": (self._vision_name, VISION_OUTPUT, 1),
        }[stage]
        inside = re.compile(rf"^{re.escape(root)}\.(?:.*\.)?{pattern}")
        return sites_in(self.network, inside, last=last, until=self._layers_used(stage))

    def stage(self, site: str) -> Stage:
        if any(_is_inside(site, name) for _, name in self._bridge()):
            return "bridge"
        if _is_inside(site, self._vision_name):
            return "vision"
        inside = _is_inside(site, self._language_name)
        return "language" if inside or site == "lm_head" else "bridge"

    def prepare(self, image: Image.Image) -> tuple[Layout, Pixels]:
        made = self.processor(
            text=[self.processor.image_token],
            images=[image],
            add_special_tokens=False,
            return_tensors="pt",
        )
        layout = Layout(
            placeholder=tuple(made["input_ids"][0].tolist()),
            sizes={name: made[name] for name in SIZES if name in made},
        )
        return layout, {name: made[name] for name in made if name in self._encode_inputs}

    def vision(self, images: Sequence[SeenImage]) -> list[Tensor]:
        """Return [tiles, patches, width] for every image.

        Families that take a list of features have one more axis of length 1 in front, so that a
        later process that reads them from the cache can tell.
        """
        module, _ = self._only_bridge()
        with input_of(module) as entered:
            output = self._image_outputs(images)
        (patches,) = entered
        rows = list(patches.split(self._rows(images, len(patches))))
        return [row.unsqueeze(0) for row in rows] if _is_list(output) else rows

    def bridge(self, vision: Sequence[Tensor], images: Sequence[SeenImage]) -> list[Tensor]:
        module, _ = self._only_bridge()
        as_list = vision[0].ndim == 4
        tiles = [patches.flatten(0, 1) if as_list else patches for patches in vision]
        bridged = module(torch.cat(tiles)).split([len(tile) for tile in tiles])
        return self._packed(bridged, images) if as_list else list(bridged)

    def encode(self, images: Sequence[SeenImage]) -> list[Tensor]:
        output = self._image_outputs(images)
        if _is_list(output):
            return list(output.pooler_output)
        pooled = output.pooler_output
        return list(pooled.split(self._rows(images, len(pooled))))

    def extras(self, inputs: Inputs, images: Sequence[SeenImage]) -> dict[str, Tensor]:
        if not images:
            return {}
        sizes = {
            name: torch.cat([image.layout.sizes[name] for image in images]).to(self.device)
            for name in images[0].layout.sizes
            if name in self._forward_inputs
        }
        is_image = (inputs.input_ids == self.image_token).long()
        types = {name: is_image for name in TOKEN_TYPES if name in self._forward_inputs}
        return {**sizes, **types}

    def logits(
        self, inputs: Inputs, features: Sequence[Tensor]
    ) -> Float[Tensor, "batch text vocab"]:
        with inputs.only_scored(self.network.get_output_embeddings()):
            return self.network(**self._asked(inputs, features), use_cache=False).logits

    def generate(
        self,
        inputs: Inputs,
        features: Sequence[Tensor],
        *,
        max_new_tokens: int,
        decoding: Decoding | None = None,
    ) -> list[Answer]:
        asked, prompt = self._asked(inputs, features), inputs.input_ids.shape[1]
        return self.answers_of(
            lambda **settings: self.network.generate(**asked, **settings)[:, prompt:],
            inputs,
            max_new_tokens=max_new_tokens,
            decoding=decoding,
        )

    def _asked(self, inputs: Inputs, features: Sequence[Tensor]) -> dict[str, Any]:
        asked: dict[str, Any] = {
            "input_ids": inputs.input_ids,
            "attention_mask": inputs.attention_mask,
            **inputs.extras,
        }
        if features:
            asked["mm_encoder_outputs"] = {"image": self._encoder_output(features)}
        return asked

    def _encoder_output(self, features: Sequence[Tensor]) -> BaseModelOutputWithPooling:
        """Return the features as `get_image_features` does for these images together."""
        pooled = list(features) if features[0].ndim == 2 else torch.cat(list(features))
        return BaseModelOutputWithPooling(pooler_output=pooled)  # pyright: ignore[reportArgumentType]

    def _image_outputs(self, images: Sequence[SeenImage]) -> Any:
        dtype = self.network.dtype
        pixels = {
            name: tensor.to(self.device, dtype if tensor.is_floating_point() else None)
            for name, tensor in _collate([image.pixels for image in images]).items()
        }
        with align_module_device(self.network.base_model):  # for parameters outside its modules
            return self.network.get_image_features(**pixels, return_dict=True)

    def _packed(self, bridged: Sequence[Tensor], images: Sequence[SeenImage]) -> list[Tensor]:
        """Return the tokens of every image, from the bridge's output [tiles, tokens, hidden]."""
        return [tiles.flatten(0, 1) for tiles in bridged]

    def _rows(self, images: Sequence[SeenImage], total: int) -> list[int]:
        """Return how many of `total` tiles each image has, by its share of the image tokens."""
        counts = [image.layout.placeholder.count(self.image_token) for image in images]
        return [total * count // sum(counts) for count in counts]

    def _layers_used(self, stage: Stage) -> int | None:
        """Return how many layers of a stage the rest of the network reads; None: all."""
        return None

    def _bridge(self) -> list[tuple[nn.Module, str]]:
        """Return the modules between vision and language, with their names."""
        base = self.network.base_model
        root = f"{self.network.base_model_prefix}."
        return [
            (module, root + name)
            for name, module in base.named_children()
            if root + name not in (self._vision_name, self._language_name)
            and any(True for _ in module.parameters())
        ]

    def _only_bridge(self) -> tuple[nn.Module, str]:
        found = self._bridge()
        if len(found) != 1:
            names = ", ".join(name for _, name in found) or "none"
            raise ModelError(
                "an edit of vision or bridge needs exactly one module between vision and language; "
                f"found: {names}. Edit the language model, or write an adapter for this family "
                "(docs/adding-a-model.md)"
            )
        return found[0]


@final
class AutoAdapter(TransformersAdapter):
    """Any family that transformers serves, prompted by its chat template."""

    def formats(self) -> tuple[PromptFormat, PromptFormat]:
        return self.chat_formats()


def patch_grid(size: Sequence[int], side: int) -> tuple[int, int]:
    """Return the rows and columns of squares of this side in a size (..., height, width)."""
    height, width = size[-2:]
    return height // side, width // side


@contextmanager
def input_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the inputs of a module while the context lasts."""
    entered: list[Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    try:
        yield entered
    finally:
        hook.remove()


def _parameters(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)


def _collate(images: Sequence[Pixels]) -> dict[str, Tensor]:
    """Join images along the first axis. Ragged further axes (tiles, Pixtral's height and width) are
    padded with zeros, as processors do.
    """
    return {name: _cat([image[name] for image in images]) for name in images[0]}


def _cat(tensors: Sequence[Tensor]) -> Tensor:
    largest = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    return torch.cat([_padded(tensor, largest) for tensor in tensors])


def _padded(tensor: Tensor, largest: Sequence[int]) -> Tensor:
    """Return a tensor with zeros behind its values, in every axis but the first."""
    missing = [most - size for most, size in zip(largest, tensor.shape[1:], strict=True)]
    if not any(missing):
        return tensor
    return nn.functional.pad(tensor, [n for more in reversed(missing) for n in (0, more)])


def _is_list(output: Any) -> bool:
    return isinstance(output.pooler_output, list | tuple)


def _is_inside(site: str, root: str) -> bool:
    return site == root or site.startswith(f"{root}.")
