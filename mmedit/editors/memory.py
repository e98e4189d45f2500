"""Edits that live beside the model: a memory of entries, and a decision for every question.

The decision is made once per row, from the prompt, and gives deltas for that row alone. They act in
the whole answer: in a teacher-forced forward, or in all forwards of a generation. So what is asked
to be answered changes no decision, and none is made again while an answer is generated.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from mmedit.adapters.generation import Answer, Decoding, require_decoding_of
from mmedit.cases import Example
from mmedit.deltas import Delta
from mmedit.editors.base import Editor
from mmedit.editors.config import EditorConfig
from mmedit.editors.entries import Entries
from mmedit.editors.shifts import Shift
from mmedit.errors import EditorError
from mmedit.vlm.edit import Change, Edit, separate
from mmedit.vlm.interface import VLM
from mmedit.vlm.outputs import Captured, Observed, Predictions
from mmedit.vlm.wrapped import WrappedVLM

Config = TypeVar("Config", bound=EditorConfig)


class MemoryEditor(Editor[Config]):
    """An editor whose edits are entries of a memory beside the VLM; no weight changes.

    A subclass gives `learn` (what a request stores) and `choose` (the deltas of each question), and
    `add`, `add_each` if an entry depends on those before it. If the requests of one edit are learnt
    together, it gives `learn_together` too.
    """

    entry_per_request: ClassVar[bool] = True
    """Whether an edit stores one entry for each of its requests."""

    @abstractmethod
    def shapes(self, vlm: VLM) -> dict[str, tuple[int | None, ...]]:
        """Return the tensors of an entry by name, with their shapes; None: any length."""

    @abstractmethod
    def learn(self, vlm: VLM, entries: Entries, requests: Sequence[Example]) -> dict[str, Tensor]:
        """Return what requests store, one row of every tensor for each, apart from each other.

        `vlm` is the VLM without this memory, and `entries` what the memory holds.
        """

    def learn_together(
        self, vlm: VLM, entries: Entries, requests: Sequence[Example]
    ) -> dict[str, Tensor]:
        """Return what one edit of all requests stores; by default what each of them does."""
        return self.learn(vlm, entries, requests)

    @abstractmethod
    def choose(self, vlm: VLM, entries: Entries, examples: Sequence[Example]) -> dict[str, Delta]:
        """Return deltas by site, with a row for each example; none if no entry is about any.

        `vlm` is the VLM without this memory. Targets must not matter.
        """

    def add(self, entries: Entries, stored: Mapping[str, Tensor]) -> Entries:
        """Return the memory with the entries of one edit, which every row sees."""
        return entries.with_all(stored)

    def add_each(self, entries: Entries, stored: Mapping[str, Tensor]) -> Entries:
        """Return the memory with one separate entry for each row."""
        return entries.with_each(stored)

    def joined(
        self, first: Mapping[str, Tensor], second: Mapping[str, Tensor]
    ) -> dict[str, Tensor] | None:
        """Return what two edits stored, one after the other, in less memory; None if that cannot be
        done (`VLM.merged`).
        """
        return None

    def change(self, vlm: VLM, requests: Sequence[Example]) -> Change:
        opened = self.opened(vlm)
        return EntriesChange(self.learn_together(opened.inner, opened.entries, requests), self)

    def apply_each(self, vlm: VLM, requests: Sequence[Example]) -> VLM:
        if not requests:
            return vlm
        opened = self.opened(vlm)
        stored = self.learn(opened.inner, opened.entries, requests)
        edited = opened.holding(self.add_each(opened.entries, stored))
        return edited.noting(separate(self.label, self.method, requests))

    def opened(self, vlm: VLM) -> MemoryVLM:
        """Return the VLM with the memory that it has if it is of this editor, else with an empty
        one. Editors with the same settings that have learnt the same are the same.
        """
        if isinstance(vlm, MemoryVLM) and self.is_same(vlm.editor):
            return vlm
        return MemoryVLM(vlm, self, Entries(tensors={}))

    def is_same(self, other: MemoryEditor[Any]) -> bool:
        """Return whether another editor has the same settings and has learnt the same."""
        if other is self:
            return True
        if (other.method, other.config) != (self.method, self.config):
            return False
        ours, theirs = self.state(), other.state()
        return ours.keys() == theirs.keys() and all(
            torch.equal(ours[name].cpu(), theirs[name].cpu()) for name in ours
        )

    @classmethod
    def load_change(
        cls,
        kind: str,
        tensors: Mapping[str, Tensor],
        notes: Mapping[str, Any],
        *,
        requests: Sequence[Example],
        editor: Any,
    ) -> Change:
        if kind != EntriesChange.kind or editor is None:
            return super().load_change(kind, tensors, notes, requests=requests, editor=editor)
        return EntriesChange(tensors, editor)


@final
class MemoryVLM(WrappedVLM):
    """A VLM with a memory of edits. It answers a question under the deltas that the memory gives
    for it.

    Each call costs what `MemoryEditor.choose` of its editor costs beside the call of the VLM
    inside. Rows about which nothing is stored are answered as without edits, bit for bit.
    """

    def __init__(self, inner: VLM, editor: MemoryEditor[Any], entries: Entries) -> None:
        super().__init__(inner)
        self.editor = editor
        self.entries = entries

    @property
    def wrappers(self) -> tuple[str, ...]:
        return (type(self.editor).__name__, *self.inner.wrappers)

    def rewrap(self, inner: VLM) -> MemoryVLM:
        return MemoryVLM(inner, self.editor, self.entries)

    def select(self, rows: Sequence[int]) -> MemoryVLM:
        return MemoryVLM(self.inner.select(rows), self.editor, self.entries.select(rows))

    def holding(self, entries: Entries) -> MemoryVLM:
        """Return the VLM with another memory."""
        return MemoryVLM(self.inner, self.editor, entries)

    def predict(
        self, examples: Sequence[Example], *, answers_only: Sequence[bool] | None = None
    ) -> Predictions:
        return self._asked(examples).predict(examples, answers_only=answers_only)

    def answer(
        self,
        examples: Sequence[Example],
        *,
        max_new_tokens: int,
        decoding: Decoding | None = None,
    ) -> list[Answer]:
        require_decoding_of(decoding, len(examples))
        places = self.inner.places(examples)
        deltas = {
            site: delta.for_generation(places) if isinstance(delta, Shift) else delta
            for site, delta in self.chosen(examples).items()
        }
        return self._under(deltas).answer(
            examples, max_new_tokens=max_new_tokens, decoding=decoding
        )

    def capture(self, examples: Sequence[Example], sites: Sequence[str]) -> Captured:
        return self._asked(examples).capture(examples, sites)

    def observe(
        self, examples: Sequence[Example], sites: Sequence[str], *, after: Sequence[int] = ()
    ) -> Observed:
        return self._asked(examples).observe(examples, sites, after=after)

    def represent(self, examples: Sequence[Example]) -> Float[Tensor, "batch hidden"]:
        return self._asked(examples).represent(examples)

    @torch.no_grad()
    def chosen(self, examples: Sequence[Example]) -> dict[str, Delta]:
        """Return the deltas under which these questions are answered, a row for each."""
        if not len(self.entries):
            return {}
        return self.editor.choose(self.inner, self.entries, examples)

    @property
    def extra_parameters(self) -> int:
        return self.inner.extra_parameters + self.entries.parameters

    def _asked(self, examples: Sequence[Example]) -> VLM:
        """Return the VLM that answers these questions."""
        return self._under(self.chosen(examples))

    def _under(self, deltas: Mapping[str, Delta]) -> VLM:
        return self.inner.with_deltas(deltas) if deltas else self.inner


@final
class EntriesChange(Change):
    """Entries for the memory, and the editor that made them."""

    kind: ClassVar[str] = "entries"

    def __init__(self, stored: Mapping[str, Tensor], editor: MemoryEditor[Any]) -> None:
        self._stored = dict(stored)
        self._editor = editor

    @property
    def editor(self) -> Any:
        return self._editor

    def added_to(self, vlm: VLM, edit: Edit) -> VLM:
        rows = len(edit.requests) if self._editor.entry_per_request else None
        require_stored(self._stored, self._editor.shapes(vlm), rows=rows)
        stored = {name: tensor.to(vlm.device) for name, tensor in self._stored.items()}
        opened = self._editor.opened(vlm)
        return opened.holding(self._editor.add(opened.entries, stored)).noting(edit)

    def merged_with(self, later: Change) -> Change | None:
        if not isinstance(later, EntriesChange) or not self._editor.is_same(later.editor):
            return None
        both = self._editor.joined(self._stored, later.tensors())
        return None if both is None else EntriesChange(both, self._editor)

    def tensors(self) -> dict[str, Tensor]:
        return self._stored


def require_stored(
    stored: Mapping[str, Tensor], shapes: Mapping[str, tuple[int | None, ...]], *, rows: int | None
) -> None:
    """Raise EditorError unless these are so many entries; None: any number, but at least one."""
    if stored.keys() != shapes.keys():
        raise EditorError(
            f"an entry has the tensors {', '.join(sorted(stored)) or 'none'}; expected "
            f"{', '.join(sorted(shapes))}; make the edit again"
        )
    first = next(iter(stored.values()))
    rows = rows or (len(first) if first.ndim else 0) or 1
    for name, shape in shapes.items():
        found = tuple(stored[name].shape)
        expected = (rows, *shape)
        if len(found) != len(expected) or any(
            length not in (None, there) for length, there in zip(expected, found, strict=True)
        ):
            said = ", ".join("any" if length is None else str(length) for length in expected)
            raise EditorError(
                f"{name} of an edit's entries has shape {list(found)}; expected [{said}]; make the "
                "edit again"
            )
