"""SERAC's cache of edits, and the VLM that answers questions with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmedit.adapters.generation import Answer, Decoding, require_decoding_of
from mmedit.cases import Example
from mmedit.editors.entries import Entries
from mmedit.methods.serac.counterfactual import Counterfactual, make_inputs
from mmedit.methods.serac.scope import Scope
from mmedit.methods.serac.similarity import log_similarity, mix, over_vocabulary
from mmedit.vlm.edit import Change, Edit
from mmedit.vlm.interface import VLM
from mmedit.vlm.outputs import Captured, Predictions
from mmedit.vlm.wrapped import WrappedVLM

Embeddings = Float[Tensor, "batch width"]


class Network(Protocol):
    """The networks that SERAC has learnt."""

    scope: Scope
    counterfactual: Counterfactual
    similarity: dict[str, Any]
    """Settings of `log_similarity`."""

    def parameters(self) -> Any:
        """Return all parameters."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Return all that is learnt, by name."""
        ...


@dataclass(frozen=True, eq=False, kw_only=True)
class Memory:
    """Edits with their embeddings, oldest first."""

    edits: tuple[Example, ...]
    keys: Float[Tensor, "edits width"]
    visible: Bool[Tensor, "rows edits"] | None = None
    """The edits that each row of a batch is answered under; None: all edits for all rows."""

    def with_all(self, edits: Sequence[Example], keys: Embeddings) -> Memory:
        """Return the memory with more edits, which every row sees."""
        return self._with(edits, self._entries.with_all({"keys": keys}))

    def with_each(self, edits: Sequence[Example], keys: Embeddings) -> Memory:
        """Return the memory with one more edit for each row. Raises DataError unless there are as
        many edits as rows.
        """
        return self._with(edits, self._entries.with_each({"keys": keys}))

    def select(self, rows: Sequence[int]) -> Memory:
        """Return the memory in which row i sees the edits that row rows[i] saw."""
        return self._with((), self._entries.select(rows))

    @property
    def _entries(self) -> Entries:
        return Entries(tensors={"keys": self.keys}, visible=self.visible)

    def _with(self, edits: Sequence[Example], entries: Entries) -> Memory:
        """Return the memory with more edits, and these entries of all of them."""
        return Memory(edits=(*self.edits, *edits), keys=entries["keys"], visible=entries.visible)

    def nearest(
        self, asked: Embeddings, similarity: dict[str, Any]
    ) -> tuple[Float[Tensor, " batch"], Int[Tensor, " batch"]]:
        """Return, per row, the similarity to the nearest edit that it sees, and the index of that
        edit; among equally near edits the newest. One matrix product.
        """
        found = log_similarity(asked, self.keys, **similarity)
        if self.visible is not None:
            found = found.masked_fill(~self._entries.seen_by(len(asked)), -torch.inf)
        best, from_the_end = found.flip(1).max(1)
        return best.exp(), len(self.edits) - 1 - from_the_end


class SERACVLM(WrappedVLM):
    """A VLM that answers questions in the scope of a cached edit with the counterfactual model, and
    all others itself.

    `predict` costs a forward of the VLM, and one of the counterfactual model for the rows in scope;
    `answer` likewise, unless all rows are in scope. The VLM gets the whole batch, so rows out of
    scope are answered as without edits, to the last digit. Captured gradients and representations
    are those of the VLM inside.
    """

    def __init__(
        self,
        inner: VLM,
        network: Network,
        memory: Memory,
        *,
        threshold: float,
        on_asked: Callable[[Tensor, Tensor], None] | None = None,
    ) -> None:
        super().__init__(inner)
        self.network = network
        self.memory = memory
        self.threshold = threshold
        self._on_asked = on_asked

    def rewrap(self, inner: VLM) -> SERACVLM:
        return self._with(inner, self.memory)

    def select(self, rows: Sequence[int]) -> SERACVLM:
        return self._with(self.inner.select(rows), self.memory.select(rows))

    def holding(self, memory: Memory) -> SERACVLM:
        """Return the VLM with another cache."""
        return self._with(self.inner, memory)

    def _with(self, inner: VLM, memory: Memory) -> SERACVLM:
        return type(self)(
            inner, self.network, memory, threshold=self.threshold, on_asked=self._on_asked
        )

    def predict(
        self, examples: Sequence[Example], *, answers_only: Sequence[bool] | None = None
    ) -> Predictions:
        base = self.inner.predict(examples, answers_only=answers_only)
        score, nearest = self._scope(examples)
        rows = (score > self.threshold).nonzero().flatten()
        if not len(rows):
            return base
        answered = self._answer(examples, rows.tolist(), nearest, answers_only)[:, :-1]
        text = answered.shape[1]
        logits = base.logits.clone()
        logits[rows, :text] = over_vocabulary(answered, logits[rows, :text]).to(logits)
        return replace(base, logits=logits)

    def answer(
        self,
        examples: Sequence[Example],
        *,
        max_new_tokens: int,
        decoding: Decoding | None = None,
    ) -> list[Answer]:
        require_decoding_of(decoding, len(examples))
        score, nearest = self._scope(examples)
        edited, chosen = (score > self.threshold).tolist(), nearest.tolist()
        ours = [row for row, inside in enumerate(edited) if inside]
        said: list[Answer] = []
        if len(ours) < len(examples):  # the whole batch, as the base model is asked
            said = self.inner.answer(
                examples,
                max_new_tokens=max_new_tokens,
                decoding=decoding.silent(ours) if decoding else None,
            )
        if ours:
            edits = [self.memory.edits[chosen[row]] for row in ours]
            asked = make_inputs(edits, [examples[row] for row in ours], self.frozen)
            made = self.network.counterfactual.answer(
                asked,
                self.frozen,
                max_new_tokens=max_new_tokens,
                decoding=decoding.select(ours) if decoding else None,
            )
            replaced = dict(zip(ours, made, strict=True))
            said = [replaced.get(row) or said[row] for row in range(len(examples))]
        return said

    def capture(self, examples: Sequence[Example], sites: Sequence[str]) -> Captured:
        return self.inner.capture(examples, sites)

    def represent(self, examples: Sequence[Example]) -> Float[Tensor, "batch hidden"]:
        return self.inner.represent(examples)

    @property
    def extra_parameters(self) -> int:
        learnt = sum(parameter.numel() for parameter in self.network.parameters())
        visible = self.memory.visible
        edits = len(self.memory.edits) if visible is None else int(visible.sum(1).max())
        return self.inner.extra_parameters + learnt + edits * self.memory.keys.shape[1]

    def _scope(self, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        asked = self.network.scope(examples, self.frozen)
        return self.memory.nearest(asked, self.network.similarity)

    def _answer(
        self,
        examples: Sequence[Example],
        rows: Sequence[int],
        nearest: Tensor,
        answers_only: Sequence[bool] | None,
    ) -> Float[Tensor, "rows more vocab"]:
        edits = [self.memory.edits[edit] for edit in nearest[list(rows)].tolist()]
        asked = make_inputs(edits, [examples[row] for row in rows], self.frozen)
        only = answers_only and [answers_only[row] for row in rows]
        return self.network.counterfactual(asked, self.frozen, answers_only=only)


class SoftSERACVLM(SERACVLM):
    """The published mixture of both models' probabilities, for training. Every row costs a forward
    of both; `logits` are log-probabilities.

    `on_asked` is called with the scope's embeddings of the questions, and with the counterfactual
    model's NLL, per row, of ending the answer after its last token.
    """

    def predict(
        self, examples: Sequence[Example], *, answers_only: Sequence[bool] | None = None
    ) -> Predictions:
        with torch.no_grad():
            base = self.inner.predict(examples, answers_only=answers_only)
        asked = self.network.scope(examples, self.frozen)
        score, nearest = self.memory.nearest(asked, self.network.similarity)
        answered = self._answer(examples, range(len(examples)), nearest, answers_only)
        if self._on_asked is not None:
            self._on_asked(asked, self._end_nll(base, answered))
        there = base.is_text  # what follows is made at these positions alone
        before, said = base.logits[there].unsqueeze(1), answered[:, :-1][there].unsqueeze(1)
        mixed = mix(before, over_vocabulary(said, before), score[there.nonzero()[:, 0]])
        logits = mixed.new_zeros(base.logits.shape)
        logits[there] = mixed.squeeze(1)
        return replace(base, logits=logits)

    def _end_nll(self, base: Predictions, answered: Tensor) -> Float[Tensor, " batch"]:
        place = torch.arange(base.target.shape[1], device=base.target.device)
        last = (base.is_answer * (place + 1)).amax(1)  # what comes after the last answer token
        ended = answered[torch.arange(len(answered), device=last.device), last].float()
        known = ended.shape[-1]
        end = next(end for end in self.frozen.ends if end < known)
        return -ended.log_softmax(-1)[:, end]


def empty(width: int, device: torch.device) -> Memory:
    """Return a memory without edits."""
    return Memory(edits=(), keys=torch.empty(0, width, device=device))


@final
class MemoryChange(Change):
    """Requests for the cache, with their embeddings and the editor that made them."""

    kind = "memory"

    def __init__(self, requests: Sequence[Example], keys: Embeddings, editor: Any) -> None:
        self._requests = tuple(requests)
        self._keys = keys
        self._editor = editor

    @property
    def editor(self) -> Any:
        return self._editor

    def added_to(self, vlm: VLM, edit: Edit) -> VLM:
        keys = self._keys.to(vlm.device)
        opened = with_memory(vlm, self._editor, keys.shape[1])
        return opened.holding(opened.memory.with_all(self._requests, keys)).noting(edit)

    def tensors(self) -> dict[str, Tensor]:
        return {"keys": self._keys}


def with_memory(vlm: VLM, editor: Any, width: int) -> SERACVLM:
    """Return the VLM with the cache that it has if it is of this editor, or with an empty one for
    embeddings of this width.

    Editors with the same learnt networks and threshold are the same, wherever they were loaded.
    """
    network, threshold = editor.network_on(vlm), editor.config.threshold
    if isinstance(vlm, SERACVLM) and vlm.threshold == threshold and _same(vlm.network, network):
        return vlm
    return SERACVLM(vlm, network, empty(width, vlm.device), threshold=threshold)


def _same(first: Network, second: Network) -> bool:
    """Tell whether two networks are the same: one object, or equal in all that they have learnt."""
    if first is second:
        return True
    ours, theirs = first.state_dict(), second.state_dict()
    return (
        first.similarity == second.similarity
        and ours.keys() == theirs.keys()
        and all(torch.equal(ours[name], theirs[name].to(ours[name])) for name in ours)
    )
