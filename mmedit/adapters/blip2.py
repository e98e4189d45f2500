"""BLIP-2 (Li et al. 2023) with a decoder-only language model, as transformers'
`Blip2ForConditionalGeneration`; MiniGPT-4 (Zhu et al. 2023) is one with a Llama and a chat
template.

Prompt: the image's query tokens, then the text verbatim; no BOS; the answer follows as " " +
target. A folder whose processor has a chat template (`mmedit convert minigpt4` writes one) is
prompted in that format. Vision is `vision_model`; the bridge is `query_tokens`, `qformer` and
`language_projection`; language is `language_model`. Default sites are MMEdit's: the last three
layers' feed-forward weights of the language model, and the last two `output_query.dense` of the
Q-Former. Vision and bridge outputs depend on the image alone, so both may be cached.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any, final

import torch
from accelerate.utils import align_module_device
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from mmedit.adapters.base import Adapter, Stage
from mmedit.adapters.generation import Answer, Decoding
from mmedit.adapters.inputs import Inputs
from mmedit.adapters.prompts import PROBE, PromptFormat, chat_formats, read_format
from mmedit.adapters.seen import Layout, Pixels, SeenImage
from mmedit.adapters.sites import sites_in

FEED_FORWARD = re.compile(
    r"^language_model\..*\blayers\.(\d+)\.(?:fc1|fc2|mlp\.up_proj|mlp\.down_proj)$"
)
QUERY_OUTPUT = re.compile(r"^qformer\.encoder\.layer\.(\d+)\.output_query\.dense$")
VISION_OUTPUT = re.compile(r"^vision_model\.encoder\.layers\.(\d+)\.mlp\.fc2$")


class Blip2Family(Adapter):
    """A network built as BLIP-2 is; a family gives its `bridge`."""

    @classmethod
    def unsupported(cls, config: Any) -> str | None:
        if config.image_token_index is None:
            return (
                "its config has no image_token_index, because an old version of transformers saved "
                "it; save processor and network again with transformers 5"
            )
        if config.use_decoder_only_language_model:
            return None
        return (
            "its language model is an encoder-decoder (T5), which is not supported; use a "
            "checkpoint with a decoder-only one, for example blip2-opt-2.7b"
        )

    def __init__(self, network: Any, processor: Any) -> None:
        super().__init__(network, processor)
        # LAVIS' epsilon of ln_vision: `mmedit convert` writes it, hub checkpoints lack it
        eps = network.config.vision_config.to_dict().get("post_layernorm_eps")
        if eps is not None:
            network.vision_model.post_layernorm.eps = eps
        self._layout = Layout(placeholder=(self.image_token,) * network.config.num_query_tokens)

    @property
    def image_token(self) -> int:
        return self.network.config.image_token_index

    def _decoder(self) -> Any:
        return self.network.language_model.get_decoder()

    def formats(self) -> tuple[PromptFormat, PromptFormat]:
        if self.processor.chat_template:
            marker = self.tokenizer.convert_ids_to_tokens(self.image_token)
            return chat_formats(self.processor, marker)
        verbatim = read_format(self.tokenizer, PROBE, marker=None, special_tokens=False, lead=" ")
        return verbatim, verbatim

    def sites(self, stage: Stage) -> tuple[str, ...]:
        pattern, last = {
            "language": (FEED_FORWARD, 3),
            "bridge": (QUERY_OUTPUT, 2),
            "vision": (VISION_OUTPUT, 1),
        }[stage]
        return sites_in(self.network, pattern, last=last)

    def stage(self, site: str) -> Stage:
        if site.startswith("vision_model."):
            return "vision"
        return "language" if site.startswith("language_model.") else "bridge"

    def _known_layout(self, key: str) -> Layout | None:
        return self._layout  # the same for all images, so none is decoded before it must be

    def prepare(self, image: Image.Image) -> tuple[Layout, Pixels]:
        values = self.processor.image_processor(images=[image], return_tensors="pt")
        return self._layout, {"pixel_values": values["pixel_values"]}

    def vision(self, images: Sequence[SeenImage]) -> list[Tensor]:
        weight = self.network.vision_model.embeddings.patch_embedding.weight
        pixels = torch.cat([image.pixels["pixel_values"] for image in images])
        seen = self.network.vision_model(pixels.to(self.device, weight.dtype), return_dict=True)
        return list(seen.last_hidden_state)

    def logits(
        self, inputs: Inputs, features: Sequence[Tensor]
    ) -> Float[Tensor, "batch text vocab"]:
        with inputs.only_scored(self.network.get_output_embeddings()):
            return self.network.language_model(
                inputs_embeds=self._embed(inputs, features),
                attention_mask=inputs.attention_mask,
                use_cache=False,
            ).logits

    def generate(
        self,
        inputs: Inputs,
        features: Sequence[Tensor],
        *,
        max_new_tokens: int,
        decoding: Decoding | None = None,
    ) -> list[Answer]:
        generate = partial(
            self.network.language_model.generate,
            inputs_embeds=self._embed(inputs, features),
            attention_mask=inputs.attention_mask,
        )
        return self.answers_of(generate, inputs, max_new_tokens=max_new_tokens, decoding=decoding)

    def _embed(
        self, inputs: Inputs, features: Sequence[Tensor]
    ) -> Float[Tensor, "batch sequence hidden"]:
        """Return the embeddings of the tokens, with the features in the place of the image tokens.

        Transformers' `generate` of this family takes pixels only, so this is done here, for
        `logits` and `generate` alike.
        """
        embedded = self.network.get_input_embeddings()(inputs.input_ids)
        if not features:
            return embedded
        place = (inputs.input_ids == self.image_token).unsqueeze(-1)
        return embedded.masked_scatter(place, torch.stack(list(features)).to(embedded))


@final
class Blip2Adapter(Blip2Family):
    """BLIP-2: its bridge is a Q-Former that reads the image alone."""

    model_types = ("blip-2",)

    def bridge(self, vision: Sequence[Tensor], images: Sequence[SeenImage]) -> list[Tensor]:
        return through_qformer(self.network, vision)


def through_qformer(network: Any, vision: Sequence[Tensor]) -> list[Tensor]:
    """Return the image tokens that Q-Former and projection make of every image's patches."""
    patches = torch.stack(list(vision))
    answered = network.qformer(
        query_embeds=queries_for(network, patches),
        encoder_hidden_states=patches,
        return_dict=True,
    ).last_hidden_state
    return list(network.language_projection(answered.to(patches.dtype)))


def queries_for(network: Any, patches: Tensor) -> Tensor:
    """Return the query tokens for every image.

    Offloaded ones are read back here, because no module's forward does it.
    """
    with align_module_device(network):
        queries = network.query_tokens.to(patches.device)
    return queries.expand(len(patches), -1, -1)
