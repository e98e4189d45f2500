"""LLaVA-1.5 (Liu et al. 2024), LLaVA-NeXT and LLaVA-OneVision, as transformers has them.

Prompt: the checkpoint's chat template, for LLaVA-1.5 `USER: <image>\\n{prompt} ASSISTANT:`. Vision
is `model.vision_tower`; nothing reads its layers after `vision_feature_layer`, so these are not
edit sites. The bridge is `model.multi_modal_projector` and, in NeXT and OneVision, the packing of
tiles to rows with `image_newline`; language is `model.language_model`. Vision and bridge depend on
the image alone, so both may be cached.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, final

import torch
from accelerate.utils import align_module_device
from PIL import Image
from torch import Tensor, nn
from transformers import LlavaNextProcessor, LlavaOnevisionProcessor, LlavaProcessor

from mmedit.adapters.auto import TransformersAdapter, input_of, patch_grid
from mmedit.adapters.base import Stage
from mmedit.adapters.compiled import is_heard
from mmedit.adapters.layers import resumed
from mmedit.adapters.prompts import PromptFormat
from mmedit.adapters.seen import Layout, Pixels, SeenImage

CLASS_TOKENS = ("class_embedding", "cls_token")
"""Ends of the names of the parameter that stands for the whole image in a vision tower."""


class LlavaFamily(TransformersAdapter):
    """A LLaVA: its language model reads one layer of the vision tower, or several."""

    def __init__(self, network: Any, processor: Any) -> None:
        complete_counts(network, processor)
        super().__init__(network, processor)

    def _layers_used(self, stage: Stage) -> int | None:
        if stage != "vision":
            return None
        config = self.network.config
        chosen = config.vision_feature_layer
        chosen = [chosen] if isinstance(chosen, int) else list(chosen)
        states = config.vision_config.num_hidden_layers + 1  # the first is the embeddings'
        return max(layer % states for layer in chosen)

    @cached_property
    def _unread_layers(self) -> tuple[nn.Module, ...]:
        """The last layers of the vision tower, whose output nothing reads."""
        number = self.network.config.vision_config.num_hidden_layers
        for module in self.network.get_encoder(modality="image").modules():
            if isinstance(module, nn.ModuleList) and len(module) == number:
                return tuple(module[self._layers_used("vision") :])
        return ()

    def _image_outputs(self, images: Sequence[SeenImage]) -> Any:
        unread = [layer for layer in self._unread_layers if not is_heard(layer)]
        with resumed(unread, len(unread), None):
            return super()._image_outputs(images)


@final
class LlavaAdapter(LlavaFamily):
    """LLaVA-1.5: every image is one tile. Pixtral, which has its model type: images of all sizes,
    whose patches go through vision and bridge as one row.
    """

    model_types = ("llava",)

    def formats(self) -> tuple[PromptFormat, PromptFormat]:
        return self.chat_formats()

    def vision(self, images: Sequence[SeenImage]) -> list[Tensor]:
        if not self._is_pixtral:
            return super().vision(images)
        module, _ = self._only_bridge()
        with input_of(module) as entered:
            self._image_outputs(images)
        (patches,) = entered[0]
        return list(patches.split(self._rows(images, len(patches))))

    def bridge(self, vision: Sequence[Tensor], images: Sequence[SeenImage]) -> list[Tensor]:
        if not self._is_pixtral:
            return super().bridge(vision, images)
        module, _ = self._only_bridge()
        (bridged,) = module(torch.cat(list(vision)).unsqueeze(0))
        return list(bridged.split([len(patches) for patches in vision]))

    def image_grid(self, image: SeenImage) -> tuple[int, int] | None:
        if not self._is_pixtral:
            return patch_grid(image.pixels["pixel_values"].shape, self.processor.patch_size)
        side = self.processor.patch_size * self.processor.spatial_merge_size
        return patch_grid(image.layout.sizes["image_sizes"][0].tolist(), side)

    @property
    def _is_pixtral(self) -> bool:
        return self.network.config.vision_config.model_type == "pixtral"


class TiledLlavaFamily(LlavaFamily):
    """A LLaVA with an overview and tiles; their number follows from the image's shape."""

    def formats(self) -> tuple[PromptFormat, PromptFormat]:
        return self.chat_formats()

    def prepare(self, image: Image.Image) -> tuple[Layout, Pixels]:
        layout, pixels = super().prepare(image)
        tiles = torch.tensor([pixels["pixel_values"].shape[1]])
        return Layout(
            placeholder=layout.placeholder, sizes={**layout.sizes, "tiles": tiles}
        ), pixels

    def _rows(self, images: Sequence[SeenImage], total: int) -> list[int]:
        return [int(image.layout.sizes["tiles"]) for image in images]

    def _packed(self, bridged: Sequence[Tensor], images: Sequence[SeenImage]) -> list[Tensor]:
        with align_module_device(self.network.model):
            packed, _ = self.network.model.pack_image_features(
                bridged,
                torch.cat([image.layout.sizes["image_sizes"] for image in images]),
                image_newline=self.network.model.image_newline,
                **self._packing(),
            )
        return list(packed)

    @abstractmethod
    def _packing(self) -> dict[str, Any]:
        """Return the settings that transformers' packing of this family reads from the config."""


@final
class LlavaNextAdapter(TiledLlavaFamily):
    """LLaVA-NeXT (1.6)."""

    model_types = ("llava_next",)

    def _packing(self) -> dict[str, Any]:
        config = self.network.config
        return {"vision_feature_select_strategy": config.vision_feature_select_strategy}


@final
class LlavaOnevisionAdapter(TiledLlavaFamily):
    """LLaVA-OneVision: as NeXT, with a limit on the tokens of large images."""

    model_types = ("llava_onevision",)

    def _packing(self) -> dict[str, Any]:
        return {"vision_aspect_ratio": self.network.config.vision_aspect_ratio}


def complete_counts(network: Any, processor: Any) -> None:
    """Give a processor the numbers that it counts an image's tokens with, if its files lack them.

    Older versions of transformers and programs for fine-tuning leave them out. They follow from the
    network.
    """
    config = network.config
    if isinstance(processor, LlavaOnevisionProcessor):
        side = config.vision_config.image_size // config.vision_config.patch_size
        _set_missing(processor, "num_image_tokens", side * side)
        processor.vision_aspect_ratio = config.vision_aspect_ratio  # the network packs by this one
    elif isinstance(processor, LlavaProcessor | LlavaNextProcessor):
        _set_missing(processor, "patch_size", config.vision_config.patch_size)
        tower = network.get_encoder(modality="image")
        has_class = any(name.endswith(CLASS_TOKENS) for name, _ in tower.named_parameters())
        processor.num_additional_image_tokens = max(
            processor.num_additional_image_tokens or 0, int(has_class)
        )
    else:
        return
    _set_missing(processor, "vision_feature_select_strategy", config.vision_feature_select_strategy)


def _set_missing(processor: Any, name: str, value: object) -> None:
    if getattr(processor, name) is None:
        setattr(processor, name, value)
