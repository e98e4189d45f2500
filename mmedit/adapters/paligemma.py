"""PaliGemma and PaliGemma 2 (Beyer et al. 2024), as transformers has them.

Prompt: the image tokens, BOS, the text verbatim, a line feed; the answer follows directly. There is
no chat template. The model attends to image and prompt in both directions and to the answer
causally. So the logits at the prompt's positions have already seen the tokens that they predict,
and scores over all text positions mean little for this family. Vision is `model.vision_tower`; the
bridge is `model.multi_modal_projector`; language is `model.language_model`. Vision and bridge
depend on the image alone, so both may be cached.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from PIL import Image
from torch import Tensor

from mmedit.adapters.auto import TransformersAdapter, patch_grid
from mmedit.adapters.inputs import Inputs
from mmedit.adapters.prompts import PROBE, PromptFormat, read_format
from mmedit.adapters.seen import Layout, Pixels, SeenImage


@final
class PaliGemmaAdapter(TransformersAdapter):
    """PaliGemma: a prompt format without template, and attention by token type."""

    model_types = ("paligemma",)

    def formats(self) -> tuple[PromptFormat, PromptFormat]:
        text = f"{self.tokenizer.bos_token}{PROBE}\n"
        read = read_format(self.tokenizer, text, marker=None, special_tokens=False, lead="")
        return read, read

    def extras(self, inputs: Inputs, images: Sequence[SeenImage]) -> dict[str, Tensor]:
        return {"token_type_ids": inputs.is_answer.long()}  # 1: attended to causally

    def image_grid(self, image: SeenImage) -> tuple[int, int] | None:
        patch = self.network.config.vision_config.patch_size
        return patch_grid(image.pixels["pixel_values"].shape, patch)

    def prepare(self, image: Image.Image) -> tuple[Layout, Pixels]:
        # Not through the processor, which adds a prompt of its own.
        values = self.processor.image_processor(images=[image], return_tensors="pt")
        placeholder = (self.image_token,) * self.processor.image_seq_length
        return Layout(placeholder=placeholder), {"pixel_values": values["pixel_values"]}
