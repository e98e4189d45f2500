"""MiniGPT-4 (Zhu et al. 2023) without a Q-Former, as released for Llama-2: BLIP-2's vision tower,
the patches without the class in groups of four, one Linear, and the language model.

MiniGPT-4 with a Q-Former is a `Blip2ForConditionalGeneration` and does not need this file.
`mmedit convert minigpt4` writes both. Transformers does not have this network, so it is built here,
with transformers' interface and the names of its BLIP-2. The bridge is `language_projection`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Blip2VisionConfig,
    Blip2VisionModel,
    GenerationMixin,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.configuration_utils import SubConfigSpec
from transformers.modeling_outputs import CausalLMOutputWithPast

from mmedit.adapters.auto import patch_grid
from mmedit.adapters.base import Stage
from mmedit.adapters.blip2 import Blip2Family
from mmedit.adapters.seen import SeenImage

GROUP = 4
"""Number of neighbouring patches that make one image token."""


class MiniGPT4Config(PretrainedConfig):
    """Configs of the parts, the number of image tokens, and the token that they replace."""

    model_type = "minigpt4"
    attribute_map: ClassVar[dict[str, str]] = {"image_token_id": "image_token_index"}
    sub_configs_defaults: ClassVar[dict[str, Any]] = {
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama"),
        "vision_config": Blip2VisionConfig,
    }

    def __init__(
        self,
        *,
        vision_config: Any = None,
        text_config: Any = None,
        num_query_tokens: int = 64,
        image_token_index: int | None = None,
        **others: Any,
    ) -> None:
        self.vision_config: Any = vision_config
        self.text_config: Any = text_config
        self.num_query_tokens = num_query_tokens
        self.image_token_index = image_token_index
        super().__init__(**others)


class MiniGPT4ForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """The network: pixels and tokens to logits."""

    config_class = MiniGPT4Config
    main_input_name = "pixel_values"
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = ["Blip2EncoderLayer", "Blip2VisionEmbeddings"]  # noqa: RUF012

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        vision, text = config.vision_config, config.text_config
        self.vision_model = Blip2VisionModel._from_config(vision)
        self.language_projection = nn.Linear(GROUP * vision.hidden_size, text.hidden_size)
        self.language_model: Any = AutoModelForCausalLM.from_config(text)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.language_model.set_output_embeddings(new_embeddings)

    def project(
        self, patches: Float[Tensor, "images patches width"]
    ) -> Float[Tensor, "images tokens hidden"]:
        """Return image tokens from the vision tower's output, which has the class first."""
        grouped = patches[:, 1:].reshape(len(patches), -1, GROUP * patches.shape[-1])
        return self.language_projection(grouped)

    def forward(
        self,
        pixel_values: Float[Tensor, "images 3 height width"] | None,
        input_ids: Int[Tensor, "batch sequence"],
        attention_mask: Int[Tensor, "batch sequence"] | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Return logits. `input_ids` contain `config.image_token_index` in the image's places."""
        return self.language_model(
            inputs_embeds=self._embed(pixel_values, input_ids),
            attention_mask=attention_mask,
            **kwargs,
        )

    @torch.no_grad()
    def generate(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        pixel_values: Float[Tensor, "images 3 height width"] | None,
        input_ids: Int[Tensor, "batch sequence"],
        attention_mask: Int[Tensor, "batch sequence"] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return the new tokens after `input_ids`, without these, as BLIP-2 does."""
        return self.language_model.generate(
            inputs_embeds=self._embed(pixel_values, input_ids),
            attention_mask=attention_mask,
            **kwargs,
        )

    def _embed(self, pixel_values: Tensor | None, input_ids: Tensor) -> Tensor:
        embedded = self.get_input_embeddings()(input_ids)
        if pixel_values is None:
            return embedded
        tokens = self.project(self.vision_model(pixel_values, return_dict=True).last_hidden_state)
        place = (input_ids == self.config.image_token_index).unsqueeze(-1)
        return embedded.masked_scatter(place, tokens.to(embedded))


@final
class MiniGPT4Adapter(Blip2Family):
    """MiniGPT-4 whose bridge is one Linear."""

    model_types = ("minigpt4",)

    @classmethod
    def unsupported(cls, config: Any) -> str | None:
        return None

    def sites(self, stage: Stage) -> tuple[str, ...]:
        return ("language_projection",) if stage == "bridge" else super().sites(stage)

    def image_grid(self, image: SeenImage) -> tuple[int, int] | None:
        vision = self.network.config.vision_config
        rows, columns = patch_grid([vision.image_size] * 2, vision.patch_size)
        return None if columns % GROUP else (rows, columns // GROUP)

    def bridge(self, vision: Sequence[Tensor], images: Sequence[SeenImage]) -> list[Tensor]:
        return list(self.network.project(torch.stack(list(vision))))


AutoConfig.register(MiniGPT4Config.model_type, MiniGPT4Config)
AutoModelForImageTextToText.register(MiniGPT4Config, MiniGPT4ForConditionalGeneration)
