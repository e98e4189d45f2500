"""BLIP-2 (Li et al. 2023) with a decoder-only language model, as transformers'
`Blip2ForConditionalGeneration`.

Prompt: the image's query tokens, then the text verbatim; no BOS; the answer follows as " " +
target. Vision is `vision_model`; the bridge is `query_tokens`, `qformer` and `language_projection`;
language is `language_model`. Default sites are MMEdit's: the last three layers' feed-forward
weights of the language model, and the last two `output_query.dense` of the Q-Former. Vision and
bridge outputs depend on the image alone, so both may be cached.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from transformers import Blip2ForConditionalGeneration, Blip2Processor

from mmedit.adapters.base import Adapter, Inputs, PaddingSide, Stage, pad
from mmedit.cases import Example
from mmedit.errors import ModelError
from mmedit.images import image_key

FEED_FORWARD = re.compile(
    r"language_model\..*\.layers\.(\d+)\.(fc1|fc2|mlp\.up_proj|mlp\.down_proj)$"
)
QUERY_OUTPUT = re.compile(r"qformer\.encoder\.layer\.(\d+)\.output_query\.dense$")
VISION_OUTPUT = re.compile(r"vision_model\.encoder\.layers\.(\d+)\.mlp\.fc2$")


class Blip2Adapter(Adapter):
    """BLIP-2 behind the family-neutral interface."""

    model_types = ("blip-2",)
    network_class = Blip2ForConditionalGeneration

    def __init__(self, network: Blip2ForConditionalGeneration, processor: Blip2Processor) -> None:
        if not network.config.use_decoder_only_language_model:
            raise ModelError(
                "this BLIP-2 has an encoder-decoder language model (T5), which is not supported; "
                "use a checkpoint with a decoder-only one, for instance blip2-opt-2.7b"
            )
        self.network: Any = network
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self._queries = network.config.num_query_tokens
        self._image_token = network.config.image_token_index
        self._max_tokens = self.network.config.text_config.max_position_embeddings

    def sites(self, stage: Stage) -> tuple[str, ...]:
        pattern, last = {
            "language": (FEED_FORWARD, 3),
            "bridge": (QUERY_OUTPUT, 2),
            "vision": (VISION_OUTPUT, 1),
        }[stage]
        return _last_layers(self.network, pattern, last)

    def stage(self, site: str) -> Stage:
        if site.startswith("vision_model."):
            return "vision"
        return "language" if site.startswith("language_model.") else "bridge"

    def image_key(self, example: Example) -> str:
        if example.image is None:
            raise ValueError("an example without image has no image key")
        return image_key(example.image)

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        values = self.processor.image_processor(images=list(images), return_tensors="pt")[
            "pixel_values"
        ]
        weight = self.network.vision_model.embeddings.patch_embedding.weight
        return values.to(weight.device, weight.dtype)

    def vision(self, pixels: Tensor) -> Float[Tensor, "images patches vision"]:
        return self.network.vision_model(pixels, return_dict=True).last_hidden_state

    def bridge(
        self, vision: Float[Tensor, "images patches vision"]
    ) -> Float[Tensor, "images queries hidden"]:
        queries = self.network.query_tokens.expand(len(vision), -1, -1)
        output = self.network.qformer(
            query_embeds=queries, encoder_hidden_states=vision, return_dict=True
        ).last_hidden_state
        return self.network.language_projection(output.to(vision.dtype))

    def inputs(
        self, examples: Sequence[Example], *, padding_side: PaddingSide, with_target: bool = True
    ) -> Inputs:
        texts = [
            (example.context, example.prompt, f" {example.target}" if with_target else "")
            for example in examples
        ]
        flat = [text for row in texts for text in row]
        ids = self.tokenizer(flat, add_special_tokens=False)["input_ids"]
        image_rows = tuple(n for n, example in enumerate(examples) if example.image is not None)
        if image_rows:
            self._require_no_placeholder(ids, examples)
        rows = []
        for number, example in enumerate(examples):
            queries = 0 if example.image is None else self._queries
            context, prompt, answer = ids[3 * number : 3 * number + 3]
            rows.append(self._row(queries, context, prompt, answer, example))
        input_ids, attention, is_text, is_answer = pad(
            rows, self.tokenizer.pad_token_id, padding_side, self._device
        )
        return Inputs(
            input_ids=input_ids,
            attention_mask=attention,
            is_text=is_text,
            is_answer=is_answer,
            image_rows=image_rows,
        )

    def _require_no_placeholder(
        self, ids: Sequence[Sequence[int]], examples: Sequence[Example]
    ) -> None:
        for number, tokens in enumerate(ids):
            if self._image_token in tokens:
                name = self.tokenizer.convert_ids_to_tokens(self._image_token)
                raise ModelError(
                    f"{examples[number // 3].prompt[:60]!r} or its context or answer holds "
                    f"{name!r}, "
                    "which stands for the image; leave it out: the image comes before the text by "
                    "itself."
                )

    def _row(
        self,
        queries: int,
        context: list[int],
        prompt: list[int],
        answer: list[int],
        example: Example,
    ) -> tuple[Tensor, ...]:
        before = [self._image_token] * queries + context
        if not before + prompt:
            raise ModelError(
                f"nothing stands before the answer {example.target!r}, so nothing predicts its "
                "first "
                "token; give an image, a context or a prompt"
            )
        tokens = torch.tensor(before + prompt + answer)
        if len(tokens) > self._max_tokens:
            raise ModelError(
                f"{example.prompt[:60]!r} makes a sequence of {len(tokens)} tokens (context "
                f"{len(context)}, "
                f"prompt {len(prompt)}, answer {len(answer)}); this model takes "
                f"{self._max_tokens}. Shorten it "
                "(with IKE: a smaller k)."
            )
        place = torch.arange(len(tokens))
        return (
            tokens,
            torch.ones_like(tokens),
            place >= len(before),
            place >= len(before) + len(prompt),
        )

    def logits(
        self, inputs: Inputs, image_features: Float[Tensor, "images queries hidden"] | None
    ) -> Float[Tensor, "batch sequence vocab"]:
        return self.network.language_model(
            inputs_embeds=self._embed(inputs, image_features),
            attention_mask=inputs.attention_mask,
            use_cache=False,
        ).logits

    def generate(
        self,
        inputs: Inputs,
        image_features: Float[Tensor, "images queries hidden"] | None,
        *,
        max_new_tokens: int,
    ) -> list[str]:
        room = self._max_tokens - inputs.input_ids.shape[1]
        if room < max_new_tokens:
            raise ModelError(
                f"{max_new_tokens} new tokens do not fit behind a prompt of "
                f"{inputs.input_ids.shape[1]} tokens; "
                f"this model takes {self._max_tokens} in all"
            )
        new = self.network.language_model.generate(
            inputs_embeds=self._embed(inputs, image_features),
            attention_mask=inputs.attention_mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        return [text.strip() for text in self.tokenizer.batch_decode(new, skip_special_tokens=True)]

    def _embed(
        self, inputs: Inputs, image_features: Float[Tensor, "images queries hidden"] | None
    ) -> Float[Tensor, "batch sequence hidden"]:
        embedded = self.network.get_input_embeddings()(inputs.input_ids)
        if image_features is None:
            return embedded
        place = (inputs.input_ids == self._image_token).unsqueeze(-1)
        return embedded.masked_scatter(place, image_features.to(embedded))

    @property
    def _device(self) -> torch.device:
        return self.network.get_input_embeddings().weight.device


def _last_layers(network: nn.Module, pattern: re.Pattern[str], last: int) -> tuple[str, ...]:
    found = [
        (int(match[1]), name)
        for name, _ in network.named_modules()
        if (match := pattern.match(name))
    ]
    layers = sorted({layer for layer, _ in found})[-last:]
    return tuple(name for layer, name in found if layer in layers)
