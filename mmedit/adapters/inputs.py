"""A batch of tokens as a network sees it, from the rows of an adapter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

PaddingSide = Literal["left", "right"]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """A batch of tokens as the network sees it: image placeholders, context, prompt, answer, the
    family's conversation markers around them, and padding on one side.
    """

    input_ids: Int[Tensor, "batch sequence"]
    attention_mask: Int[Tensor, "batch sequence"]
    is_text: Bool[Tensor, "batch sequence"]
    """Prompt and answer; not the image, the context, markers or padding."""
    is_answer: Bool[Tensor, "batch sequence"]
    position: Int[Tensor, "batch text"]
    """The positions of every row's text tokens, in order. Shorter rows end with any positions."""
    image_rows: tuple[int, ...]
    """The rows that have an image, in the order of the image features."""
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    """Further inputs of the family's language model: image grids, token types."""

    @property
    def before(self) -> Int[Tensor, "batch text"]:
        """The positions that predict the text tokens, one before each. Logits are computed at
        these alone.
        """
        return (self.position - 1).clamp(min=0)


@dataclass(frozen=True, eq=False)
class Row:
    """The tokens of one example, the start of its prompt, and the lengths of prompt and answer."""

    tokens: Int[Tensor, " sequence"]
    start: int
    prompt: int
    answer: int


def padded(rows: Sequence[Row], padding: int, side: PaddingSide, device: torch.device) -> Inputs:
    """Return the rows as one batch. Masks are made for all rows at once."""
    input_ids = nn.utils.rnn.pad_sequence(
        [row.tokens for row in rows],
        batch_first=True,
        padding_value=float(padding),
        padding_side=side,
    )
    numbers = [(len(row.tokens), row.start, row.prompt, row.answer) for row in rows]
    length, start, prompt, answer = torch.tensor(numbers).T.unsqueeze(-1)
    longest = input_ids.shape[1]
    first = longest - length if side == "left" else torch.zeros_like(length)
    place = torch.arange(longest) - first
    real = (place >= 0) & (place < length)
    is_prompt = (place >= start) & (place < start + prompt)
    is_answer = (place >= length - answer) & real
    is_text = is_prompt | is_answer
    # Text first, in its order: a family's markers may stand between prompt and answer.
    position = (~is_text).int().argsort(dim=1, stable=True)[:, : int(is_text.sum(1).max())]
    return Inputs(
        input_ids=input_ids.to(device),
        attention_mask=real.long().to(device),
        is_text=is_text.to(device),
        is_answer=is_answer.to(device),
        position=position.to(device),
        image_rows=(),
    )


@contextmanager
def only_at(head: nn.Module, position: Int[Tensor, "batch text"]) -> Iterator[None]:
    """Compute logits only at these positions of every row while the context lasts.

    It is a hook on the language model's head, because the head may be on another device than the
    inputs, and not every family's forward has an argument for it.
    """

    def pick(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        at = position.to(inputs[0].device).unsqueeze(-1)
        return (torch.take_along_dim(inputs[0], at, dim=1), *inputs[1:])

    hook = head.register_forward_pre_hook(pick)
    try:
        yield
    finally:
        hook.remove()
