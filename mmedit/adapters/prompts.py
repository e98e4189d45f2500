"""The tokens around a prompt in a model family's own conversation format.

Template, context, prompt and answer are tokenised separately, so that masks are exact and a context
does not change the tokens of the prompt. The tokens must still be those of the whole text: a
tokenizer that puts a space before a text (Llama's) would do so in the middle of a sentence, so each
part is tokenised as the continuation of an anchor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from mmedit.errors import ModelError

PROBE, ANSWER_PROBE = "kwyj", "vqyk"
"""Placeholders for a prompt and an answer in a template. No template contains them."""
ANCHOR = "\n"
"""The text before each part when it is tokenised. Tokenizers do not merge it with others."""
REMEMBERED = 4_000_000
"""Number of characters of the texts whose tokens are remembered: about 40 MB with the tokens."""


@dataclass(frozen=True, kw_only=True)
class PromptFormat:
    """The tokens around image, prompt and answer.

    The order is `before_image`, the image, `before_prompt`, the context, the prompt,
    `after_prompt`, the answer.
    """

    before_image: tuple[int, ...] = ()
    before_prompt: tuple[int, ...] = ()
    after_prompt: tuple[int, ...] = ()
    space: str
    """The space before the prompt. It is tokenised with the prompt, as both can merge."""
    lead: str
    """The space before the answer. It is tokenised with the answer."""

    @property
    def markers(self) -> int:
        """Number of tokens around image, context, prompt and answer."""
        return len(self.before_image) + len(self.before_prompt) + len(self.after_prompt)

    def prompt(self, text: str) -> str:
        """Return the prompt as it is tokenised."""
        return self.space + text if text else ""

    def context(self, text: str) -> str:
        """Return the context as it is tokenised, without the space that belongs to the prompt."""
        return self.space + text.removesuffix(self.space or "\0") if text else ""

    def answer(self, text: str) -> str:
        """Return the answer as it is tokenised."""
        return self.lead + text


class Segmenter:
    """A tokenizer of texts as continuations, without special tokens.

    It remembers the texts it has seen: a run asks the same ones of every editor, before and after
    its edits.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        alone, anchor, both = self._ids([PROBE, ANCHOR, ANCHOR + PROBE])
        self._anchor = anchor if both != [*anchor, *alone] and both[: len(anchor)] == anchor else []
        self._known: dict[str, tuple[int, ...]] = {}
        self._characters = 0

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of every text. One call of the tokenizer for all that are new."""
        remembered = self._known
        known = {text: remembered[text] for text in texts if text in remembered}
        new = [text for text in dict.fromkeys(texts) if text not in known]
        made = {text: tuple(ids) for text, ids in zip(new, self._tokens(new), strict=True)}
        self._remember(made)
        known |= made
        return [list(known[text]) for text in texts]

    def span(self, text: str, begin: int, end: int) -> range:
        """Return which tokens of a text stand for its characters from `begin` to before `end`.

        They are none if the tokenizer keeps no offsets, as those written in Python do.
        """
        if not self._tokenizer.is_fast:
            return range(0)
        (ids,) = self([text])
        offsets = self._offsets(text, ANCHOR, ids) if self._anchor else None
        offsets = offsets or self._offsets(text, "", ids) or []
        inside = [place for place, (a, b) in enumerate(offsets) if a < end and b > begin]
        return range(inside[0], inside[-1] + 1) if inside else range(0)

    def _offsets(self, text: str, lead: str, ids: list[int]) -> list[tuple[int, int]] | None:
        """Return which characters each token of a text stands for, from its tokens behind `lead`;
        None if they are other tokens there.
        """
        found = self._tokenizer(lead + text, add_special_tokens=False, return_offsets_mapping=True)
        skip = len(self._anchor) if lead else 0
        if found["input_ids"][skip:] != ids:
            return None
        return [(a - len(lead), b - len(lead)) for a, b in found["offset_mapping"][skip:]]

    def _remember(self, made: Mapping[str, tuple[int, ...]]) -> None:
        """Keep the ids of texts, and drop all others when they would be too many."""
        size = sum(map(len, made))
        if self._characters + size > REMEMBERED:
            self._known, self._characters = {}, 0
        if size <= REMEMBERED:
            self._known.update(made)
            self._characters += size

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        if not self._anchor:
            return self._ids(texts)
        skip = len(self._anchor)
        continued = self._ids([ANCHOR + text for text in texts])
        # If an anchor merged after all, the text is tokenised by itself.
        return [
            ids[skip:] if ids[:skip] == self._anchor else self._ids([text])[0]
            for ids, text in zip(continued, texts, strict=True)
        ]

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        return self._tokenizer(list(texts), add_special_tokens=False)["input_ids"]


def read_format(
    tokenizer: Any, text: str, *, marker: str | None, special_tokens: bool, lead: str
) -> PromptFormat:
    """Return the format of an example text, which has `PROBE` as its prompt.

    `marker` is the text that stands for the image; without one, the image comes first.
    `special_tokens` says whether the tokenizer adds its own (BOS). Raises ModelError if the text
    lacks the prompt or the image.
    """
    segment = Segmenter(tokenizer)
    (ids,) = tokenizer([text], add_special_tokens=special_tokens)["input_ids"]
    for space in (" ", ""):  # tokens of "x" may be found in " x", if the space is one by itself
        (probe,) = segment([space + PROBE])
        if (start := _find(ids, probe)) is not None:
            break
    else:
        raise ModelError(
            f"the prompt cannot be found again among the tokens of {text!r}, as the tokenizer "
            "merges it with the conversation's markers; this model needs an adapter of its own "
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
            f"the conversation template gives {text!r}; expected {marker!r} once in it, before the "
            "prompt, for the image"
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
    """Return the chat template's formats of a conversation without an image, and with one."""
    return chat_format(processor, marker=None), chat_format(processor, marker=marker)


def chat_format(processor: Any, *, marker: str | None) -> PromptFormat:
    """Return the format of the processor's chat template, with a generation prompt.

    `marker` is the text that stands for an image; None is for a conversation without one. Raises
    ModelError.
    """
    image = [] if marker is None else [{"type": "image"}]
    user = {"role": "user", "content": [*image, {"type": "text", "text": PROBE}]}
    tokenizer = processor.tokenizer
    try:
        text = processor.apply_chat_template([user], add_generation_prompt=True, tokenize=False)
    except (TemplateError, TypeError, ValueError) as error:
        raise ModelError(
            f"the model's chat template cannot be rendered ({error}); expected an ordinary "
            "template for messages with role and content"
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
    """Return the space that the template puts between the generation prompt and an answer.

    It is empty if the template does not tell.
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


def _find(ids: Sequence[int], part: Sequence[int]) -> int | None:
    """Return where a part of the tokens begins; None if it does not occur exactly once."""
    size = len(part)
    places = [at for at in range(len(ids) - size + 1) if list(ids[at : at + size]) == list(part)]
    return places[0] if len(places) == 1 else None
