"""SERAC's cache of edits, and the VLM that looks questions up in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmedit.cases import Example
from mmedit.errors import DataError
from mmedit.methods.serac.counterfactual import Counterfactual, told
from mmedit.methods.serac.scope import Scope
from mmedit.methods.serac.similarity import log_similarity, mixture
from mmedit.vlm.interface import VLM, Captured, Predictions, WrappedVLM

Embedded = Float[Tensor, "batch width"]


class Network(Protocol):
    """What SERAC has learnt."""

    scope: Scope
    counterfactual: Counterfactual
    similarity: dict[str, Any]
    """Settings of `log_similarity`."""

    def parameters(self) -> Any: ...


@dataclass(frozen=True, eq=False, kw_only=True)
class Memory:
    """Edits with their embeddings, oldest first."""

    edits: tuple[Example, ...]
    keys: Float[Tensor, "edits width"]
    visible: Bool[Tensor, "rows edits"] | None = None
    """Which edits every row of a batch is answered under; None: all, whatever the batch."""

    def with_all(self, edits: Sequence[Example], keys: Embedded) -> Memory:
        """With more edits, which every row sees."""
        visible = self.visible
        if visible is not None:
            visible = torch.cat([visible, visible.new_ones(len(visible), len(edits))], dim=1)
        return Memory(
            edits=(*self.edits, *edits), keys=torch.cat([self.keys, keys]), visible=visible
        )

    def with_each(self, edits: Sequence[Example], keys: Embedded) -> Memory:
        """With one more edit for each row. Raises DataError where rows differ in number."""
        rows, before = len(edits), self.visible
        if before is None:
            before = torch.ones(rows, len(self.edits), dtype=torch.bool, device=keys.device)
        _require_rows(len(before), rows)
        own = torch.eye(rows, dtype=torch.bool, device=keys.device)
        return Memory(
            edits=(*self.edits, *edits),
            keys=torch.cat([self.keys, keys]),
            visible=torch.cat([before, own], dim=1),
        )

    def select(self, rows: Sequence[int]) -> Memory:
        """Row i sees what row rows[i] saw."""
        if self.visible is None:
            return self
        return replace(self, visible=self.visible[list(rows)])

    def nearest(
        self, asked: Embedded, similarity: dict[str, Any]
    ) -> tuple[Float[Tensor, " batch"], Int[Tensor, " batch"]]:
        """Similarity to the nearest edit that a row sees, and which one that is; of equally near
        ones the newest. One matrix product.
        """
        found = log_similarity(asked, self.keys, **similarity)
        if self.visible is not None:
            _require_rows(len(self.visible), len(asked))
            found = found.masked_fill(~self.visible, -torch.inf)
        best, from_the_end = found.flip(1).max(1)
        return best.exp(), len(self.edits) - 1 - from_the_end


class SERACVLM(WrappedVLM):
    """A VLM that answers a question in the scope of a cached edit by the counterfactual model, and
    any other one itself.

    `predict` costs a forward of the VLM and, where questions are in scope, one of the small model
    for those; `generate` one of the two for each row. Captured gradients and representations are
    those of the VLM inside.
    """

    def __init__(
        self,
        inner: VLM,
        network: Network,
        memory: Memory,
        *,
        threshold: float,
        on_end: Callable[[Tensor], None] | None = None,
    ) -> None:
        super().__init__(inner)
        self.network = network
        self.memory = memory
        self.threshold = threshold
        self._on_end = on_end

    def rewrap(self, inner: VLM) -> SERACVLM:
        return self._with(inner, self.memory)

    def select(self, rows: Sequence[int]) -> SERACVLM:
        return self._with(self.inner.select(rows), self.memory.select(rows))

    def _with(self, inner: VLM, memory: Memory) -> SERACVLM:
        return type(self)(
            inner, self.network, memory, threshold=self.threshold, on_end=self._on_end
        )

    def predict(self, examples: Sequence[Example]) -> Predictions:
        base = self.inner.predict(examples)
        score, nearest = self._scope(examples)
        rows = (score > self.threshold).nonzero().flatten()
        if not len(rows):
            return base
        answered = self._answer(examples, rows.tolist(), nearest)[:, :-1]
        text = answered.shape[1]
        logits = base.logits.clone()
        logits[rows, :text] = answered.to(logits)
        return replace(base, logits=logits)

    def generate(self, examples: Sequence[Example], *, max_new_tokens: int) -> list[str]:
        score, nearest = self._scope(examples)
        edited, chosen = (score > self.threshold).tolist(), nearest.tolist()
        ours = [row for row, inside in enumerate(edited) if inside]
        theirs = [row for row, inside in enumerate(edited) if not inside]
        said: dict[int, str] = {}
        if ours:
            edits = [self.memory.edits[chosen[row]] for row in ours]
            asked = told(edits, [examples[row] for row in ours], self.frozen)
            made = self.network.counterfactual.generate(
                asked, self.frozen, max_new_tokens=max_new_tokens
            )
            said |= dict(zip(ours, made, strict=True))
        if theirs:
            inner = self.inner.select(theirs)
            made = inner.generate([examples[row] for row in theirs], max_new_tokens=max_new_tokens)
            said |= dict(zip(theirs, made, strict=True))
        return [said[row] for row in range(len(examples))]

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
        self, examples: Sequence[Example], rows: Sequence[int], nearest: Tensor
    ) -> Float[Tensor, "rows more vocab"]:
        edits = [self.memory.edits[edit] for edit in nearest[list(rows)].tolist()]
        asked = told(edits, [examples[row] for row in rows], self.frozen)
        return self.network.counterfactual(asked, self.frozen)


class SoftSERACVLM(SERACVLM):
    """The published mixture of both models' probabilities, for training: every row costs a forward
    of both. `logits` are log-probabilities. `on_end` is told the NLL, per row, of the answer
    ending where it ends.
    """

    def predict(self, examples: Sequence[Example]) -> Predictions:
        with torch.no_grad():
            base = self.inner.predict(examples)
        score, nearest = self._scope(examples)
        answered = self._answer(examples, range(len(examples)), nearest)
        if self._on_end is not None:
            self._on_end(self._end_nll(base, answered))
        return replace(base, logits=mixture(base.logits, answered[:, :-1], score))

    def _end_nll(self, base: Predictions, answered: Tensor) -> Float[Tensor, " batch"]:
        place = torch.arange(base.target.shape[1], device=base.target.device)
        last = (base.is_answer * (place + 1)).amax(1)  # what comes after the last answer token
        ended = answered[torch.arange(len(answered), device=last.device), last].float()
        return -ended.log_softmax(-1)[:, self.frozen.ends[0]]


def _require_rows(there: int, wanted: int) -> None:
    if there != wanted:
        raise DataError(
            f"{there} separate edits cannot answer {wanted} rows: row i is answered under edit i. "
            "Use select(rows) to say which edit answers which row."
        )


def empty(width: int, device: torch.device) -> Memory:
    """No edit."""
    return Memory(edits=(), keys=torch.empty(0, width, device=device))


def remember(
    vlm: VLM,
    network: Any,
    edits: Sequence[Example],
    *,
    threshold: float,
    each: bool,
) -> SERACVLM:
    """The VLM with edits in its cache, joined to those that this network has cached already."""
    with torch.no_grad():
        keys = network.scope(edits, vlm.frozen)
    if isinstance(vlm, SERACVLM) and vlm.network is network:
        inner, memory = vlm.inner, vlm.memory
    else:
        inner, memory = vlm, empty(keys.shape[1], keys.device)
    more = memory.with_each(edits, keys) if each else memory.with_all(edits, keys)
    return SERACVLM(inner, network, more, threshold=threshold)
