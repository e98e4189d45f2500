"""A batch of tokens as a network sees it, from the rows of an adapter."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
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
    is_scored: Bool[Tensor, "batch sequence"]
    """Text tokens that logits are computed about: all of a row, or its answer alone."""
    position: Int[Tensor, "batch text"]
    """The positions of every row's scored tokens, in order. Shorter rows end with any positions."""
    image_rows: tuple[int, ...]
    """The rows that have an image, in the order of the image features."""
    content: str = ""
    """A hash of tokens, padding and images: batches with the same one are the same batch."""
    rows_apart: bool = False
    """Whether the head must see a row for each row, because an edit acts on it."""
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    """Further inputs of the family's language model: image grids, token types."""

    @property
    def before(self) -> Int[Tensor, "batch text"]:
        """The positions that predict the scored tokens, one before each. Logits are computed at
        these alone.
        """
        return (self.position - 1).clamp(min=0)

    @property
    def exists(self) -> Bool[Tensor, "batch text"]:
        """The entries of `position` that stand for a token."""
        place = torch.arange(self.position.shape[1], device=self.position.device)
        return place < self.is_scored.sum(1, keepdim=True)

    def only_scored(self, head: nn.Module) -> AbstractContextManager[None]:
        """Let the head compute logits only about scored tokens while the context lasts."""
        return only_at(head, self.before, None if self.rows_apart else self.exists)

    @property
    def predicts_text(self) -> Bool[Tensor, "batch sequence"]:
        """The positions before text tokens, whether these are scored or not. Before a text that
        comes first there is none, and its first position stands for it, as in `before`.
        """
        before = self.is_text.roll(-1, dims=1)
        before[:, -1] = False
        before[:, 0] |= self.is_text[:, 0]
        return before & self.attention_mask.bool()


@dataclass(frozen=True, eq=False)
class Row:
    """The tokens of one example, the start of its prompt, and the lengths of prompt and answer."""

    tokens: Int[Tensor, " sequence"]
    start: int
    prompt: int
    answer: int


def padded(
    rows: Sequence[Row],
    padding: int,
    side: PaddingSide,
    device: torch.device,
    answers_only: Sequence[bool] | None = None,
) -> Inputs:
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
    is_scored = is_text
    if answers_only is not None:
        is_scored = is_text & (is_answer | ~torch.tensor(answers_only).unsqueeze(-1))
    # Text first, in its order: a family's markers may stand between prompt and answer.
    position = side_by_side(is_scored)
    return Inputs(
        input_ids=input_ids.to(device),
        attention_mask=real.long().to(device),
        is_text=is_text.to(device),
        is_answer=is_answer.to(device),
        is_scored=is_scored.to(device),
        position=position.to(device),
        image_rows=(),
    )


def side_by_side(chosen: Bool[Tensor, "rows tokens"]) -> Int[Tensor, "rows most"]:
    """Return the positions of the chosen tokens of each row, in their order. A row with fewer than
    the most has positions of others behind them.
    """
    return (~chosen).int().argsort(dim=1, stable=True)[:, : int(chosen.sum(1).max())]


def content_hash(rows: Sequence[Row], side: PaddingSide, images: Sequence[str]) -> str:
    """Return the value of `Inputs.content`; `images` names what stands for each image."""
    found = hashlib.blake2b(side.encode(), digest_size=16)
    for row in rows:
        found.update(f"{len(row.tokens)} {row.start} {row.prompt} {row.answer} ".encode())
        found.update(row.tokens.numpy().tobytes())
    found.update("\n".join(images).encode())
    return found.hexdigest()


@contextmanager
def only_at(
    head: nn.Module,
    position: Int[Tensor, "batch text"],
    exists: Bool[Tensor, "batch text"] | None = None,
) -> Iterator[None]:
    """Compute logits only at these positions of every row while the context lasts; with `exists`,
    only at those of them, and the other logits are 0.

    It is a hook on the language model's head, because the head may be on another device than the
    inputs, and not every family's forward has an argument for it.
    """
    hooks = []

    def pick(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        at = position.to(inputs[0].device)
        states = torch.take_along_dim(inputs[0], at.unsqueeze(-1), dim=1)
        return (states if exists is None else states[exists.to(at.device)], *inputs[1:])

    def unpack(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        assert exists is not None
        there = exists.to(output.device)
        logits = output.new_zeros(*there.shape, output.shape[-1])
        logits[there] = output
        return logits

    try:
        hooks.append(head.register_forward_pre_hook(pick))
        if exists is not None:
            hooks.append(head.register_forward_hook(unpack))
        yield
    finally:
        for hook in hooks:
            hook.remove()
