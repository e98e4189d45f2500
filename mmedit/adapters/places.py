"""The positions of a batch by what stands there: image, prompt, subject, answer.

They come from the same tokens that the network reads, after the conversation template and after an
image has become its tokens. So nothing above an adapter counts tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mmedit.adapters.inputs import Inputs
from mmedit.cases import Example

if TYPE_CHECKING:
    from mmedit.adapters.base import Adapter


@dataclass(frozen=True, eq=False, kw_only=True)
class Places:
    """The positions of a batch as masks, padded as the batch is."""

    is_real: Bool[Tensor, "batch sequence"]
    """All tokens but padding."""
    is_image: Bool[Tensor, "batch sequence"]
    """Tokens that stand for the image."""
    is_prompt: Bool[Tensor, "batch sequence"]
    """Tokens of the prompt, without the conversation's markers."""
    is_subject: Bool[Tensor, "batch sequence"]
    """Tokens of `Example.subject` in the prompt. A row whose subject cannot be found has none."""
    is_answer: Bool[Tensor, "batch sequence"]

    @property
    def predicts_answer(self) -> Bool[Tensor, "batch sequence"]:
        """Positions whose logits are about answer tokens, one before each."""
        return torch.cat([self.is_answer[:, 1:], torch.zeros_like(self.is_answer[:, :1])], 1)

    @property
    def last_prompt(self) -> Int[Tensor, " batch"]:
        """The position that predicts the first answer token. In a conversation it may be a marker
        behind the prompt.
        """
        return self.is_answer.int().argmax(1) - 1

    @property
    def before_answer(self) -> Bool[Tensor, "batch sequence"]:
        """All tokens before the answer: markers, image and prompt."""
        place = torch.arange(self.is_real.shape[1], device=self.is_real.device)
        return self.is_real & (place <= self.last_prompt.unsqueeze(1))

    @property
    def last_subject(self) -> Int[Tensor, " batch"]:
        """The position of the subject's last token; -1 for a row without one."""
        place = torch.arange(self.is_subject.shape[1], device=self.is_subject.device)
        return place.where(self.is_subject, -1).amax(1)


def places_of(adapter: Adapter, examples: Sequence[Example], inputs: Inputs) -> Places:
    """Return the positions of a batch. No forward."""
    is_prompt = inputs.is_text & ~inputs.is_answer
    is_real = inputs.attention_mask.bool()
    first = is_prompt.int().argmax(1).tolist()
    is_subject = torch.zeros_like(is_prompt)
    for row, example in enumerate(examples):
        for token in subject_tokens(adapter, example):
            is_subject[row, first[row] + token] = True
    return Places(
        is_real=is_real,
        is_image=is_real & (inputs.input_ids == adapter.image_token),
        is_prompt=is_prompt,
        is_subject=is_subject,
        is_answer=inputs.is_answer,
    )


def subject_tokens(adapter: Adapter, example: Example) -> range:
    """Return which tokens of the prompt are of the subject, where it stands in the prompt last.

    They are none if there is no subject, it is not in the prompt, or the tokenizer cannot tell.
    """
    form = adapter.format_of(example)
    text, subject = form.prompt(example.prompt), example.subject
    if not subject:
        return range(0)
    found = list(re.finditer(rf"(?<!\w){re.escape(subject)}(?!\w)", text, re.IGNORECASE))
    return adapter.tokenize.span(text, *found[-1].span()) if found else range(0)
