"""InstructBLIP (Dai et al. 2023) with a decoder-only language model, as transformers'
`InstructBlipForConditionalGeneration`.

As BLIP-2, but the Q-Former reads the prompt too, so the bridge's output depends on image and
prompt. It is cached for each pair of image and prompt; vision features are cached for each image.
The Q-Former reads the prompt without context, so in-context editing keeps the base model's
features. Prompt: the query tokens, BOS, the text verbatim; the answer follows as " " + target.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor

from mmedit.adapters.blip2 import Blip2Family, queries_for
from mmedit.adapters.prompts import PROBE, PromptFormat, read_format
from mmedit.adapters.seen import SeenImage


@final
class InstructBlipAdapter(Blip2Family):
    """BLIP-2 whose bridge reads the prompt."""

    model_types = ("instructblip",)

    @property
    def _tokenizers(self) -> Sequence[Any]:
        return (self.tokenizer, self.processor.qformer_tokenizer)

    def formats(self) -> tuple[PromptFormat, PromptFormat]:
        verbatim = read_format(self.tokenizer, PROBE, marker=None, special_tokens=True, lead=" ")
        return verbatim, verbatim

    def feature_key(self, image: SeenImage) -> str:
        prompt = hashlib.blake2b(image.example.prompt.encode(), digest_size=16).hexdigest()
        return f"{image.key}-{prompt}"

    def bridge(self, vision: Sequence[Tensor], images: Sequence[SeenImage]) -> list[Tensor]:
        patches = torch.stack(list(vision))
        queries = queries_for(self.network, patches)
        read = self.processor.qformer_tokenizer(
            [image.example.prompt for image in images],
            padding=True,
            padding_side="right",
            truncation=True,
            return_tensors="pt",
        ).to(patches.device)
        attends = torch.cat(
            [read["attention_mask"].new_ones(queries.shape[:2]), read["attention_mask"]], dim=1
        )
        answered = self.network.qformer(
            input_ids=read["input_ids"],
            attention_mask=attends,
            query_embeds=queries,
            encoder_hidden_states=patches,
            return_dict=True,
        ).last_hidden_state[:, : queries.shape[1]]
        return list(self.network.language_projection(answered.to(patches.dtype)))
