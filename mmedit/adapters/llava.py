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
from typing import Any, final

import torch
from accelerate.utils import align_module_device
from PIL import Image
from torch import Tensor

from mmedit.adapters.auto import TransformersAdapter
from mmedit.adapters.base import Stage
from mmedit.adapters.prompts import PromptFormat
from mmedit.adapters.seen import Layout, Pixels, SeenImage


class LlavaFamily(TransformersAdapter):
    """A LLaVA: its language model reads one layer of the vision tower, or several."""

    def _layers_used(self, stage: Stage) -> int | None:
        if stage != "vision":
            return None
        config = self.network.config
        chosen = config.vision_feature_layer
        chosen = [chosen] if isinstance(chosen, int) else list(chosen)
        states = config.vision_config.num_hidden_layers + 1  # the first is the embeddings'
        return max(layer % states for layer in chosen)


@final
class LlavaAdapter(LlavaFamily):
    """LLaVA-1.5: every image is one tile."""

    model_types = ("llava",)

    def formats(self) -> tuple[PromptFormat, PromptFormat]:
        return self.chat_formats()


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
