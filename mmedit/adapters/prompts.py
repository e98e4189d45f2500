"""What stands around a prompt in a model family's own conversation format, as tokens.

Template, context, prompt and answer are tokenised apart, so that masks are exact and a context
changes no token of the prompt. Apart must not mean different: a tokenizer that puts a space before
a text (Llama's) would do so in the middle of a sentence, so texts are tokenised as the continuation
of something.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from mmedit.errors import ModelError

PROBE, ANSWER_PROBE = "kwyj", "vqyk"
"""Stand for a prompt and an answer in a template. No template holds them."""
ANCHOR = "\n"
"""What texts are tokenised as the continuation of: it merges with nothing."""


@dataclass(frozen=True, kw_only=True)
class PromptFormat:
    """The tokens around image, prompt and answer: `before_image`, the image, `before_prompt`, the
    context, the prompt, `after_prompt`, the answer.
    """

    before_image: tuple[int, ...] = ()
    before_prompt: tuple[int, ...] = ()
    after_prompt: tuple[int, ...] = ()
    space: str
    """Between what stands before and the prompt; tokenised with the prompt, as it merges with
    it.
    """
    lead: str
    """Between what stands before and the answer, likewise."""

    def prompt(self, text: str) -> str:
        """The prompt as it is tokenised."""
        return self.space + text if text else ""

    def context(self, text: str) -> str:
        """The context as it is tokenised: the space between it and the prompt is the prompt's."""
        return self.space + text.removesuffix(self.space or "\0") if text else ""

    def answer(self, text: str) -> str:
        """The answer as it is tokenised."""
        return self.lead + text


class Segmenter:
    """Tokenises texts as continuations, without special tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        alone, anchor, both = self._ids([PROBE, ANCHOR, ANCHOR + PROBE])
        self._anchor = anchor if both != [*anchor, *alone] and both[: len(anchor)] == anchor else []

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of every text; one call of the tokenizer for all."""
        if not self._anchor:
            return self._ids(texts)
        skip = len(self._anchor)
        continued = self._ids([ANCHOR + text for text in texts])
        # An anchor that did merge after all: tokenised by itself, the text is at least itself.
        return [
            ids[skip:] if ids[:skip] == self._anchor else self._ids([text])[0]
            for ids, text in zip(continued, texts, strict=True)
        ]

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        return self._tokenizer(list(texts), add_special_tokens=False)["input_ids"]


def read_format(
    tokenizer: Any, text: str, *, marker: str | None, special_tokens: bool, lead: str
) -> PromptFormat:
    """The format of which `text` is an instance, with `PROBE` as prompt and, where the image stands
    inside, `marker`. Without marker the image comes first. `special_tokens`: the tokenizer adds its
    own (BOS).

    Raises ModelError where the template loses the prompt or the image.
    """
    segment = Segmenter(tokenizer)
    (ids,) = tokenizer([text], add_special_tokens=special_tokens)["input_ids"]
    for space in (" ", ""):  # tokens of "x" may be found in " x", if the space is one by itself
        (probe,) = segment([space + PROBE])
        if (start := _find(ids, probe)) is not None:
            break
    else:
        raise ModelError(
            f"the prompt cannot be found again among the tokens of {text!r}: the tokenizer merges "
            "it with the conversation's markers; this model needs an adapter of its own "
            "(docs/adding-a-model.md)"
        )
    before, after = ids[:start], ids[start + len(probe) :]
    if marker is None:
        return PromptFormat(
            before_prompt=tuple(before), after_prompt=tuple(after), space=space, lead=lead
        )
    image = tokenizer.convert_tokens_to_ids(marker)
    if before.count(image) != 1 or image in after:
        raise ModelError(
            f"the conversation template gives {text!r}; {marker!r} was wanted once in it, before "
            "the prompt, for the image"
        )
    place = before.index(image)
    return PromptFormat(
        before_image=tuple(before[:place]),
        before_prompt=tuple(before[place + 1 :]),
        after_prompt=tuple(after),
        space=space,
        lead=lead,
    )


def chat_formats(processor: Any, marker: str) -> tuple[PromptFormat, PromptFormat]:
    """The chat template's format of a conversation without, and with an image."""
    return chat_format(processor, marker=None), chat_format(processor, marker=marker)


def chat_format(processor: Any, *, marker: str | None) -> PromptFormat:
    """The format of the processor's chat template, with a generation prompt; `marker`: the text
    that stands for an image, None for a conversation without one. Raises ModelError.
    """
    image = [] if marker is None else [{"type": "image"}]
    user = {"role": "user", "content": [*image, {"type": "text", "text": PROBE}]}
    tokenizer = processor.tokenizer
    try:
        text = processor.apply_chat_template([user], add_generation_prompt=True, tokenize=False)
    except (TemplateError, TypeError, ValueError) as error:
        raise ModelError(
            f"the model's chat template cannot be rendered ({error}); an ordinary template for "
            "messages with role and content was wanted"
        ) from error
    starts_itself = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
    return read_format(
        tokenizer,
        text,
        marker=marker,
        special_tokens=not starts_itself,
        lead=_lead(processor, user, text),
    )


def _lead(processor: Any, user: dict[str, Any], generation_prompt: str) -> str:
    """What the template puts between the generation prompt and an answer; nothing where it cannot
    be told.
    """
    answer = {"role": "assistant", "content": [{"type": "text", "text": ANSWER_PROBE}]}
    try:
        answered = processor.apply_chat_template([user, answer], tokenize=False)
    except (TemplateError, TypeError, ValueError):
        return ""
    if not answered.startswith(generation_prompt):
        return ""
    between, found, _ = answered[len(generation_prompt) :].partition(ANSWER_PROBE)
    return between if found and not between.strip() else ""


def _find(ids: Sequence[int], wanted: Sequence[int]) -> int | None:
    """Where the wanted tokens begin; None where they do not occur, or more than once."""
    size = len(wanted)
    places = [at for at in range(len(ids) - size + 1) if list(ids[at : at + size]) == list(wanted)]
    return places[0] if len(places) == 1 else None
