"""IKE's context, and the VLM that reads it before every prompt.

The context lists demonstrations, then the new facts of all edits, oldest first, then the word that
introduces a prompt. It is kept in these parts, so one edit after another gives the same context as
all edits together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import zip_longest
from typing import Any, NamedTuple, final

from jaxtyping import Float
from torch import Tensor

from mmedit.adapters.generation import Answer, Decoding, require_decoding_of
from mmedit.adapters.places import Places
from mmedit.cases import Example
from mmedit.deltas import require_rows
from mmedit.errors import DataError, ModelError
from mmedit.storage import require_text
from mmedit.vlm.edit import Change, Edit
from mmedit.vlm.frozen import Frozen
from mmedit.vlm.interface import VLM
from mmedit.vlm.outputs import Captured, Observed, Predictions
from mmedit.vlm.wrapped import WrappedVLM


class Demonstration(NamedTuple):
    """A training case as an in-context example."""

    number: int
    """Number of the training case: two cases may have the same text."""
    text: str


class Fact(NamedTuple):
    """One edit: the line that states it, and its nearest demonstrations, the nearest first."""

    line: str
    nearest: tuple[Demonstration, ...]


@dataclass(frozen=True, eq=False)
class Context:
    """The text before a prompt, in parts."""

    facts: tuple[Fact, ...]
    """The edits, oldest first."""
    k: int
    """Maximum number of demonstrations."""
    measured: dict[tuple[int, str, bool], int] = field(default_factory=dict, init=False)
    """Lengths in tokens, as far as `lengths` was asked for them."""

    def with_facts(self, facts: Sequence[Fact], k: int) -> Context:
        """Return the context with more edits, with at most `k` demonstrations for all of them."""
        return Context((*self.facts, *facts), k)

    @cached_property
    def text(self) -> str:
        """The whole text."""
        return self.without(0)

    def within(self, room: int, example: Example, frozen: Frozen) -> str:
        """Return the text such that it and the example's own context take at most `room` tokens.

        Demonstrations are left out as far as needed: those of the oldest edit first, of one edit
        the farthest first. Raises ModelError if the facts alone need more.
        """

        def length(without: int) -> int:
            return lengths([(self, without, example)], frozen)[0]

        if length(0) <= room:
            return self.text
        fewest, most = 0, len(self._shown)
        if length(most) > room:
            raise ModelError(
                f"the context of IKE is full: {_facts(len(self.facts))} {length(most):,} tokens "
                f"without any demonstration, and {example.prompt[:60]!r} leaves room for "
                f"{max(room, 0):,} of the {frozen.max_tokens:,} that this model takes; make fewer "
                "edits, or shorten the prompt"
            )
        while fewest < most:  # a text without one more demonstration is never longer
            middle = (fewest + most) // 2
            if length(middle) > room:
                fewest = middle + 1
            else:
                most = middle
        return self.without(most)

    @cached_property
    def _shown(self) -> dict[Demonstration, tuple[int, int]]:
        """The demonstrations in their order: the nearest of each edit, then the second of each, and
        so on. Each with the place of the edit that it is shown for, and its rank there, negative.
        """
        by_rank = enumerate(zip_longest(*(fact.nearest for fact in self.facts)))
        each = ((s, (place, -rank)) for rank, row in by_rank for place, s in enumerate(row))
        found: dict[Demonstration, tuple[int, int]] = {}
        for shown, where in each:
            if len(found) == self.k:
                break
            if shown is not None:
                found.setdefault(shown, where)
        return found

    def without(self, number: int) -> str:
        """Return the text without this number of demonstrations."""
        shown = self._shown
        left_out = set(sorted(shown, key=shown.__getitem__)[:number])
        texts = [one.text for one in shown if one not in left_out]
        return as_prompt("".join([*texts, *(fact.line for fact in self.facts)]))


def lengths(asked: Sequence[tuple[Context, int, Example]], frozen: Frozen) -> list[int]:
    """Return the number of tokens of each context without so many demonstrations, together with the
    example's own context. One call of the tokenizer for those that were not measured before.
    """
    keys = [(without, e.context, e.image is None) for _, without, e in asked]
    new = {
        (id(context), key): (context, key, replace(e, context=context.without(without) + e.context))
        for (context, without, e), key in zip(asked, keys, strict=True)
        if key not in context.measured
    }
    if new:
        contexts, found, examples = zip(*new.values(), strict=True)
        for context, key, text in zip(contexts, found, frozen.segments(examples), strict=True):
            context.measured[key] = len(text.context)
    return [context.measured[key] for (context, *_), key in zip(asked, keys, strict=True)]


class InContextVLM(WrappedVLM):
    """A VLM that reads a context before every prompt: one for all rows, or one per row.

    Rows that have too little room for the whole context are asked with fewer demonstrations.
    """

    def __init__(self, inner: VLM, contexts: Context | tuple[Context, ...]) -> None:
        super().__init__(inner)
        self.contexts = contexts

    @property
    def context(self) -> str | tuple[str, ...]:
        """The text before every prompt, or one for each row."""
        if isinstance(self.contexts, Context):
            return self.contexts.text
        return tuple(context.text for context in self.contexts)

    def rewrap(self, inner: VLM) -> InContextVLM:
        return InContextVLM(inner, self.contexts)

    def predict(
        self, examples: Sequence[Example], *, answers_only: Sequence[bool] | None = None
    ) -> Predictions:
        return self.inner.predict(self._in_context(examples), answers_only=answers_only)

    def answer(
        self,
        examples: Sequence[Example],
        *,
        max_new_tokens: int,
        decoding: Decoding | None = None,
    ) -> list[Answer]:
        require_decoding_of(decoding, len(examples))
        room = decoding.limits(max_new_tokens) if decoding else max_new_tokens
        asked = self._in_context(examples, room)
        return self.inner.answer(asked, max_new_tokens=max_new_tokens, decoding=decoding)

    def prompt_tokens(
        self, examples: Sequence[Example], *, new_tokens: int | Sequence[int] = 0
    ) -> list[int]:
        asked = self._in_context(examples, new_tokens)
        return self.inner.prompt_tokens(asked, new_tokens=new_tokens)

    def capture(self, examples: Sequence[Example], sites: Sequence[str]) -> Captured:
        return self.inner.capture(self._in_context(examples), sites)

    def observe(
        self, examples: Sequence[Example], sites: Sequence[str], *, after: Sequence[int] = ()
    ) -> Observed:
        return self.inner.observe(self._in_context(examples), sites, after=after)

    def places(self, examples: Sequence[Example]) -> Places:
        return self.inner.places(self._in_context(examples))

    def represent(self, examples: Sequence[Example]) -> Float[Tensor, "batch hidden"]:
        return self.inner.represent(self._in_context(examples))

    def select(self, rows: Sequence[int]) -> InContextVLM:
        chosen = self.contexts
        if not isinstance(chosen, Context):
            require_rows(rows, len(chosen))
            chosen = tuple(chosen[row] for row in rows)
        return InContextVLM(self.inner.select(rows), chosen)

    def with_facts(self, facts: Sequence[Fact], k: int) -> InContextVLM:
        """Return the VLM with these edits after the ones it has, for all rows."""
        if isinstance(self.contexts, Context):
            return InContextVLM(self.inner, self.contexts.with_facts(facts, k))
        return InContextVLM(self.inner, tuple(c.with_facts(facts, k) for c in self.contexts))

    def with_each(self, facts: Sequence[Fact], k: int) -> InContextVLM:
        """Return the VLM with one more edit for each row."""
        each = zip(self._of_rows(len(facts)), facts, strict=True)
        return InContextVLM(self.inner, tuple(c.with_facts([fact], k) for c, fact in each))

    def _of_rows(self, rows: int) -> tuple[Context, ...]:
        if isinstance(self.contexts, Context):
            return (self.contexts,) * rows
        if len(self.contexts) != rows:
            raise DataError(
                f"{len(self.contexts)} separate edits cannot answer {rows} rows: row i is "
                "answered under edit i. Use select(rows) to choose the edit of each row."
            )
        return self.contexts

    def _in_context(
        self, examples: Sequence[Example], new_tokens: int | Sequence[int] = 0
    ) -> list[Example]:
        contexts = self._of_rows(len(examples))
        room = self.frozen.room(examples, new_tokens)
        lengths([(c, 0, e) for c, e in zip(contexts, examples, strict=True)], self.frozen)
        return [
            replace(e, context=context.within(left, e, self.frozen) + e.context)
            for e, context, left in zip(examples, contexts, room, strict=True)
        ]


def in_context(vlm: VLM) -> InContextVLM:
    """Return the VLM with the context that it has, or an empty one."""
    return vlm if isinstance(vlm, InContextVLM) else InContextVLM(vlm, Context((), 0))


@final
class FactsChange(Change):
    """New facts for the context, with their demonstrations."""

    kind = "facts"

    def __init__(self, facts: Sequence[Fact], k: int) -> None:
        self._facts = tuple(facts)
        self._k = k

    @classmethod
    def of_notes(cls, notes: Mapping[str, Any]) -> FactsChange:
        """Return the change that gave these `notes`. Raises KeyError, TypeError, ValueError, or
        DataError.
        """
        facts = [
            Fact(
                _text(fact["line"]),
                tuple(Demonstration(int(number), _text(text)) for number, text in fact["nearest"]),
            )
            for fact in notes["facts"]
        ]
        return cls(facts, int(notes["k"]))

    def added_to(self, vlm: VLM, edit: Edit) -> VLM:
        return in_context(vlm).with_facts(self._facts, self._k).noting(edit)

    def notes(self) -> dict[str, Any]:
        facts = [{"line": fact.line, "nearest": [*map(list, fact.nearest)]} for fact in self._facts]
        return {"facts": facts, "k": self._k}


def _text(found: object) -> str:
    require_text(found, "a text of the context")
    return str(found)


def new_fact(prompt: str, target: str) -> str:
    """Return the line that states a new fact."""
    return f"New Fact: {prompt} {target}\n"


def as_prompt(text: str) -> str:
    """Return the text followed by the word that introduces a prompt."""
    return f"{text}Prompt: "


def _facts(number: int) -> str:
    return "1 new fact takes" if number == 1 else f"{number:,} new facts take"
