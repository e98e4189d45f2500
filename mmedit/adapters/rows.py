"""The limits of a model family that every row must keep to, before anything is computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mmedit.cases import Example


@dataclass(frozen=True)
class Limits:
    """The most that a row may hold, and what it may not."""

    max_tokens: int
    """Length of the longest sequence that the language model takes, in tokens."""
    image_token: int
    """The id of the tokens that stand for an image."""
    image_name: Callable[[], str]
    """Returns the text of that token; asked for only where it is at fault."""


def row_fault(
    example: Example,
    texts: tuple[Sequence[int], Sequence[int], Sequence[int]],
    *,
    around: int,
    limits: Limits,
    new_tokens: int = 0,
) -> str | None:
    """Return why an example cannot be a row, or None if it can.

    `texts` are the tokens of context, prompt and answer; `around` is the number of those of the
    image and the markers. `new_tokens` is the room that a generation after the prompt needs.
    """
    context, prompt, answer = map(len, texts)
    if any(limits.image_token in text for text in texts):
        return (
            f"{example.prompt[:60]!r} or its context or answer contains {limits.image_name()!r}, "
            "which stands for the image; leave it out: the image is put before the text by itself."
        )
    length = around + context + prompt + answer
    if length == answer:
        return (
            f"the answer {example.target!r} has no token before it, so nothing predicts its "
            "first token; give an image, a context or a prompt"
        )
    if length > limits.max_tokens:
        return (
            f"{example.prompt[:60]!r} makes a sequence of {length} tokens (image and markers "
            f"{around}, context {context}, prompt {prompt}, answer {answer}); this "
            f"model takes {limits.max_tokens}. Shorten it (with IKE: a smaller k)."
        )
    if length - answer + new_tokens > limits.max_tokens:
        return (
            f"{new_tokens} new tokens do not fit after {example.prompt[:60]!r}, a prompt of "
            f"{length - answer} tokens with its image; this model takes {limits.max_tokens} in "
            "total. Shorten it, or generate fewer tokens."
        )
    return None
