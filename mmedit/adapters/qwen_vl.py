"""Qwen2-VL (Wang et al. 2024), Qwen2.5-VL and Qwen3-VL, as transformers has them.

Prompt: the checkpoint's chat template,
`<|im_start|>user\\n<|vision_start|><image><|vision_end|>{prompt}<|im_end|>\\n<|im_start|>assistant\\n`.
Vision is `model.visual` up to its mergers; the bridge is `model.visual.merger` and, in Qwen3-VL,
`model.visual.deepstack_merger_list`, whose outputs are added inside the first language layers;
language is `model.language_model`. The number of an image's tokens follows from its size; they have
positions in two dimensions. Vision and bridge depend on the image alone, so both may be cached.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, final

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures
from transformers.vision_utils import get_vision_window_index

from mmedit.adapters.auto import TransformersAdapter, input_of, patch_grid
from mmedit.adapters.prompts import PromptFormat
from mmedit.adapters.seen import SeenImage


class QwenVLFamily(TransformersAdapter):
    """A Qwen-VL: `merger` reads the patches four by four."""

    def formats(self) -> tuple[PromptFormat, PromptFormat]:
        return self.chat_formats()

    def vision(self, images: Sequence[SeenImage]) -> list[Tensor]:
        """Return the inputs of the mergers, [mergers, patches, width] for every image."""
        with ExitStack() as entered:
            inputs = [entered.enter_context(input_of(module)) for module, _ in self._bridge()]
            self._image_outputs(images)
        patches = torch.stack([seen for (seen,) in inputs])
        return list(patches.split(self._rows(images, patches.shape[1]), dim=1))

    def bridge(self, vision: Sequence[Tensor], images: Sequence[SeenImage]) -> list[Tensor]:
        together = torch.cat(list(vision), dim=1)
        merged = torch.stack(
            [module(patches) for (module, _), patches in zip(self._bridge(), together, strict=True)]
        )
        rows = merged.split(self._rows(images, merged.shape[1]), dim=1)
        return [self._ordered(row, image) for row, image in zip(rows, images, strict=True)]

    def encode(self, images: Sequence[SeenImage]) -> list[Tensor]:
        output = self._image_outputs(images)
        return [torch.stack(list(parts)) for parts in zip(*self._parts(output), strict=True)]

    def feature_count(self, features: Tensor) -> int:
        return features.shape[-2]  # each merger gives features for all tokens

    def image_grid(self, image: SeenImage) -> tuple[int, int] | None:
        frames, *patches = image.layout.sizes["image_grid_thw"][0].tolist()
        merged = self.network.model.visual.spatial_merge_size
        return patch_grid(patches, merged) if frames == 1 else None

    def _parts(self, output: Any) -> list[Sequence[Tensor]]:
        """Return the output of each merger, image by image."""
        return [output.pooler_output]

    def _encoder_output(self, features: Sequence[Tensor]) -> BaseModelOutputWithPooling:
        return super()._encoder_output([merged[0] for merged in features])

    @abstractmethod
    def _ordered(self, merged: Tensor, image: SeenImage) -> Tensor:
        """Return the bridge's output [mergers, tokens, hidden] in the order of image tokens."""

    def _bridge(self) -> list[tuple[nn.Module, str]]:
        return [(self.network.model.visual.merger, "model.visual.merger")]


@final
class Qwen2VLAdapter(QwenVLFamily):
    """Qwen2-VL: its merger gives the tokens in the order of the image's tokens."""

    model_types = ("qwen2_vl",)

    def _ordered(self, merged: Tensor, image: SeenImage) -> Tensor:
        return merged


@final
class Qwen25VLAdapter(QwenVLFamily):
    """Qwen2.5-VL: its vision and its merger read the patches window by window."""

    model_types = ("qwen2_5_vl",)

    def _ordered(self, merged: Tensor, image: SeenImage) -> Tensor:
        visual = self.network.model.visual
        windows, _ = get_vision_window_index(
            image.layout.sizes["image_grid_thw"],
            spatial_merge_size=visual.spatial_merge_size,
            window_size=visual.window_size,
            patch_size=visual.patch_size,
        )
        return merged[:, windows.argsort().to(merged.device)]


@final
class Qwen3VLAdapter(QwenVLFamily):
    """Qwen3-VL: further mergers read the patches after earlier layers."""

    model_types = ("qwen3_vl",)
    reads_features_later = True

    def _ordered(self, merged: Tensor, image: SeenImage) -> Tensor:
        return merged

    def _parts(self, output: Any) -> list[Sequence[Tensor]]:
        return [output.pooler_output, *output.deepstack_features]

    def _encoder_output(self, features: Sequence[Tensor]) -> BaseModelOutputWithPooling:
        _, *further = zip(*features, strict=True)
        output = super()._encoder_output(features)
        return BaseModelOutputWithDeepstackFeatures(
            pooler_output=output.pooler_output,
            deepstack_features=[list(part) for part in further],  # pyright: ignore[reportArgumentType]
        )

    def _bridge(self) -> list[tuple[nn.Module, str]]:
        mergers = self.network.model.visual.deepstack_merger_list
        root = "model.visual.deepstack_merger_list"
        return [
            *super()._bridge(),
            *((module, f"{root}.{number}") for number, module in enumerate(mergers)),
        ]
