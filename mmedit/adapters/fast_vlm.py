"""FastVLM (Vasu et al. 2025), as transformers has it: a convolutional vision tower of timm, and a
projector that reads its map of features place by place.

Prompt: the checkpoint's chat template, for the released models
`<|im_start|>user\\n<image>\\n{prompt}<|im_end|>\\n<|im_start|>assistant\\n` after a system turn.
Vision is `model.vision_tower`, the bridge is `model.multi_modal_projector`, language is
`model.language_model`. Vision and bridge depend on the image alone, so both may be cached.

Edits are made at Linears, and the feed-forward layers of such towers are mostly convolutions. The
default site of vision is the last Linear that a block of the tower ends with: of FastViT (the
released models) the output of the last attention, of ConvNeXt that of the last feed-forward.
EfficientNet has no Linear, and so no site.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any, final

import torch
from torch import Tensor

from mmedit.adapters.auto import TransformersAdapter, patch_grid
from mmedit.adapters.base import Stage
from mmedit.adapters.prompts import PromptFormat
from mmedit.adapters.seen import SeenImage
from mmedit.adapters.sites import linears

BLOCK_OUTPUT = re.compile(r"\.blocks\.\d+\.(?:token_mixer\.proj|mlp\.fc2)$")
"""Names of the Linears that blocks of a tower end with: FastViT's and ConvNeXt's."""


@final
class FastVlmAdapter(TransformersAdapter):
    """A FastVLM with any convolutional tower of timm, and any language model of transformers."""

    model_types = ("fast_vlm",)
    compiled_whole = True

    def __init__(self, network: Any, processor: Any) -> None:
        if processor.patch_size is None:  # config.json does not tell: its count is LLaVA's default
            tower = network.get_encoder(modality="image").timm_model
            processor.patch_size = tower.feature_info[-1]["reduction"]
        super().__init__(network, processor)

    @classmethod
    def unsupported(cls, config: Any) -> str | None:
        if find_spec("timm") is None:
            return (
                "its vision tower is a network of timm, which is not installed: "
                "pip install 'mmedit[convert]'"
            )
        return super().unsupported(config)

    def formats(self) -> tuple[PromptFormat, PromptFormat]:
        # The template of the released models puts a line feed before the answers of a conversation.
        # They were trained without it, and begin an answer without it.
        text, image = (replace(form, lead=form.lead.strip("\n")) for form in self.chat_formats())
        return text, image

    def sites(self, stage: Stage) -> tuple[str, ...]:
        if stage != "vision":
            return super().sites(stage)
        tower = linears(self.network.get_encoder(modality="image"), self._vision_name)
        return tuple(site for site in tower if BLOCK_OUTPUT.search(site))[-1:]

    def image_grid(self, image: SeenImage) -> tuple[int, int] | None:
        return patch_grid(image.pixels["pixel_values"].shape, self.processor.patch_size)

    def bridge(self, vision: Sequence[Tensor], images: Sequence[SeenImage]) -> list[Tensor]:
        module, _ = self._only_bridge()
        maps = torch.cat([patches.transpose(1, 2) for patches in vision])
        return list(module(maps.transpose(1, 2)).split(1))  # in memory as the tower's map is
