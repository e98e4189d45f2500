"""A question on its way through the engine: what was asked, and what is known of its answer."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

from mmedit.adapters.generation import Answer
from mmedit.cases import Example
from mmedit.serve.growing import grown
from mmedit.serve.models import Model
from mmedit.serve.pictures import Picture
from mmedit.serve.refusals import of_error, too_slow
from mmedit.vlm.decoding import SEEDS, RowDecoding

logger = logging.getLogger(__name__)

NOBODY_KNOWS = "?"
"""Target of a question: an example must have one, and answering does not read it."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """The question of one request, and how it wants the answer."""

    prompt: str
    context: str = ""
    picture: Picture | None = None
    new_tokens: int | None = None
    """Most new tokens; None: as many as the server gives and the model has room for."""
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    """Seed of sampling; None: another one for every request."""
    stop: tuple[str, ...] = ()
    shows_growth: bool = False
    """Whether the text is wanted while it grows."""

    def example(self) -> Example:
        """Return the question as an example, with its image decoded. Raises Refusal, DataError."""
        image = self.picture.decode() if self.picture else None
        return Example(prompt=self.prompt, target=NOBODY_KNOWS, image=image, context=self.context)


@dataclass(frozen=True)
class Usage:
    """Numbers of tokens of one question."""

    prompt: int
    """Tokens of the prompt, its context, its image and the conversation's markers."""
    completion: int
    """New tokens, the end token left out."""


@final
class Ticket:
    """One question in the engine. The engine's thread writes it, one client's task reads it.

    `changed` is called in the engine's thread after every change. A client reads the text so far
    when it has time, so a slow one holds up nobody and needs no queue.
    """

    def __init__(
        self, question: Question, model: Model, *, seconds: float, changed: Callable[[], None]
    ) -> None:
        self.question = question
        self.model = model
        self.arrived = time.monotonic()
        self.deadline = self.arrived + seconds
        self.seed = secrets.randbelow(SEEDS) if question.seed is None else question.seed % SEEDS
        self.text = ""
        """The beginning of the answer, as far as it is settled."""
        self.answer: Answer | None = None
        self.usage = Usage(0, 0)
        self.error: BaseException | None = None
        self._changed = changed
        self._is_cancelled = False

    @property
    def is_done(self) -> bool:
        """Whether the answer is whole, or there will be none."""
        return self.answer is not None or self.error is not None

    @property
    def has_begun(self) -> bool:
        """Whether there is something to show: a text, its end, or an error."""
        return bool(self.text) or self.is_done

    @property
    def is_given_up(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self._is_cancelled or time.monotonic() > self.deadline

    def cancel(self) -> None:
        """Give up: a waiting question is dropped, one that is being answered ends its row."""
        self._is_cancelled = True

    def decoding(self, new_tokens: int, text_of: Callable[[Sequence[int]], str]) -> RowDecoding:
        """Return how its row is decoded. `text_of` returns the settled text of tokens."""
        asked = self.question

        def on_tokens(ids: Sequence[int]) -> bool:
            if asked.shows_growth and not self.is_done:
                self._grow(text_of(ids))
            return not self.is_given_up

        return RowDecoding(
            temperature=asked.temperature,
            top_p=asked.top_p,
            seed=self.seed,
            max_new_tokens=new_tokens,
            stop=asked.stop,
            on_tokens=on_tokens,
            on_end=self.finish,
        )

    def finish(self, answer: Answer) -> None:
        """Take the whole answer. Only the first end of a question counts, and a row that was ended
        because nobody waits for it, or too long, has no answer.
        """
        if self.is_given_up:
            self.fail(too_slow(self.deadline - self.arrived))
        if self.is_done:
            return
        self.usage = Usage(self.usage.prompt, answer.tokens)
        self.text = grown(self.text, answer.text)
        self.answer = answer
        self._changed()

    def fail(self, error: BaseException) -> None:
        """Take the reason why there is no answer."""
        if self.is_done:
            return
        self.error = error
        self._changed()

    def _grow(self, text: str) -> None:
        longer = grown(self.text, text)
        if longer != self.text:
            self.text = longer
            self._changed()


class Job:
    """Work for the engine's thread that is no question, such as making an edit."""

    def __init__(self, work: Callable[[], object], changed: Callable[[], None]) -> None:
        self.work = work
        self.result: object = None
        self.error: BaseException | None = None
        self.is_done = False
        self._changed = changed
        self.is_given_up = False
        """Whether nobody waits for the result any more, and the work has not begun."""

    def cancel(self) -> None:
        """Leave the work out, if it has not begun."""
        self.is_given_up = True

    def run(self) -> None:
        """Do the work and keep its result or its error."""
        try:
            self.result = self.work()
        except Exception as error:
            if of_error(error).status >= 500:
                logger.exception("work for a client failed")
            self.error = error
        self.is_done = True
        self._changed()

    def fail(self, error: BaseException) -> None:
        """Take the reason why the work was not done."""
        self.error = error
        self.is_done = True
        self._changed()
