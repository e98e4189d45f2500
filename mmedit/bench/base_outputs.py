"""Outputs of the base model on the probes, computed once per batch and shared by all editors.

Base and edited model answer one batch, with the same examples in the same order. The other rows
of a batch move a row's last digits, in half precision its ranks too; so an edit that does not reach
a row leaves every digit of it as it was, and a continued run ends with the same digits.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from cachetools import LRUCache
from torch import Tensor

from mmedit.adapters.generation import Answer
from mmedit.cache import GIGABYTE
from mmedit.cases import Example
from mmedit.errors import ModelError
from mmedit.metrics.locality import ranked
from mmedit.metrics.multiclass_log_probs import multiclass_log_probs
from mmedit.records.schema import Scores
from mmedit.vlm.interface import VLM
from mmedit.vlm.outputs import Predictions
from mmedit.vlm.states import content_of


@dataclass(frozen=True, eq=False, kw_only=True)
class LocalOutput:
    """The part of the base model's output on one example that locality needs."""

    ranks: Tensor
    """Best tokens of every text position, int32 [text, 1 + 10]: the argmax, then the ten best in
    order.
    """
    is_text: Tensor
    """Text positions that the base model predicts, bool [text]."""
    is_finite: Tensor
    """Text positions whose logits are neither NaN nor +inf, bool [text]."""
    answer_logits: Tensor
    """Logits at the positions of the answer, [answer, vocab]. They take 0.6 MB a token at a
    vocabulary of 150,000.
    """


@dataclass(frozen=True, eq=False)
class BaseOutput:
    """The output of the base model on one example, as far as the metrics need it."""

    scores: Scores
    local: LocalOutput | None = None
    """Set for locality probes."""


class Kept(NamedTuple):
    """The outputs on one batch. Its examples stay alive, as images in memory are told by id."""

    examples: tuple[Example, ...]
    outputs: list[Any]


class BaseOutputs:
    """The base model and its outputs on batches of examples, the latest ones in `memory_bytes`."""

    def __init__(self, vlm: VLM, *, memory_bytes: int = 4 * GIGABYTE) -> None:
        self.vlm = vlm
        self._kept: LRUCache[Hashable, Kept] = LRUCache(memory_bytes, _size)

    @property
    def bytes_used(self) -> int:
        """Memory that the kept outputs take, in bytes."""
        return int(self._kept.currsize)

    def predict(
        self,
        examples: Sequence[Example],
        *,
        is_locality: Sequence[bool],
        made: Predictions | None = None,
    ) -> list[BaseOutput]:
        """Return the teacher-forced outputs; one forward, unless those of this batch are kept or
        its predictions are given as `made`.
        """
        local = tuple(row for row, here in enumerate(is_locality) if here)
        return self._outputs(
            examples,
            ("predict", local),
            lambda: _base_outputs(
                made or self.vlm.predict(examples, answers_only=[not here for here in is_locality]),
                local,
            ),
        )

    def answer(self, examples: Sequence[Example], *, max_new_tokens: int) -> list[Answer]:
        """Return the greedy generations; made once, unless those of this batch are kept."""
        return self._outputs(
            examples,
            ("answer", max_new_tokens),
            lambda: self.vlm.answer(examples, max_new_tokens=max_new_tokens),
        )

    def _outputs(
        self, examples: Sequence[Example], kind: Hashable, compute: Callable[[], list[Any]]
    ) -> list[Any]:
        key = (kind, tuple(map(content_of, examples)))
        kept = self._kept.get(key)
        if kept is None:
            kept = Kept(tuple(examples), compute())
            if _size(kept) <= self._kept.maxsize:
                self._kept[key] = kept
        return kept.outputs


@torch.no_grad()
def _base_outputs(predictions: Predictions, local: Sequence[int]) -> list[BaseOutput]:
    outputs = [BaseOutput(scores) for scores in scores_of(predictions)]
    for row, found in zip(local, _local_outputs(predictions, local), strict=True):
        outputs[row] = BaseOutput(outputs[row].scores, found)
    return outputs


def are_finite(vlm: VLM, examples: Sequence[Example]) -> list[bool]:
    """Return, per example, whether the logits of its answer are finite. One forward."""
    with torch.no_grad():
        return [scores.is_finite for scores in scores_of(vlm.predict(examples))]


def require_finite(vlm: VLM, example: Example) -> None:
    """Raise ModelError if the base model's logits of this example are NaN or infinite."""
    if not all(are_finite(vlm, [example])):
        raise ModelError(
            f"{vlm.name or 'the VLM'} gives NaN or infinite logits for {example.prompt[:60]!r}, "
            "before any edit; expected finite ones: load it in another dtype "
            "(--set vlm.dtype=float32), or check its weights"
        )


def scores_of(predictions: Predictions) -> list[Scores]:
    """Return the teacher-forced scores of every row: NaN where logits of its answer are not
    finite.
    """
    labels = predictions.target.masked_fill(~predictions.is_answer, -100)
    scores = multiclass_log_probs(predictions.logits, labels)
    columns = (scores.token_accuracy, scores.exact_match, scores.log_prob, scores.n_tokens)
    return [
        Scores(token_accuracy=accuracy, exact_match=match, log_prob=log_prob, n_tokens=int(tokens))
        for accuracy, match, log_prob, tokens in zip(*(c.tolist() for c in columns), strict=True)
    ]


def _local_outputs(predictions: Predictions, rows: Sequence[int]) -> list[LocalOutput]:
    if not rows:
        return []
    part = predictions[rows]
    best = ranked(part.logits, part.is_answer)
    columns = [best.best, part.is_text, best.is_finite]
    kept = torch.cat([torch.stack(columns, dim=-1), best.top10], dim=-1).int().cpu()
    answers = best.answer.cpu().split(part.is_answer.sum(1).tolist())  # a GPU has no room
    outputs = []
    for length, values, answer in zip(_text_lengths(part), kept, answers, strict=True):
        chosen, is_text, is_finite, *_ = values[:length].T
        ranks = torch.cat([chosen.unsqueeze(-1), values[:length, len(columns) :]], dim=-1)
        outputs.append(
            LocalOutput(
                ranks=ranks,
                is_text=is_text.bool(),
                is_finite=is_finite.bool(),
                answer_logits=answer,
            )
        )
    return outputs


def _text_lengths(predictions: Predictions) -> list[int]:
    """Return the position behind the last text token of every row."""
    place = torch.arange(1, predictions.is_text.shape[1] + 1, device=predictions.is_text.device)
    return (predictions.is_text * place).max(1).values.tolist()


def _size(kept: Kept) -> int:
    """Return about how many bytes the outputs of a batch take."""
    return sum(map(_bytes, kept.outputs))


def _bytes(output: BaseOutput | Answer) -> int:
    if isinstance(output, Answer):
        return sys.getsizeof(output) + sys.getsizeof(output.text)
    local = output.local
    tensors = (local.ranks, local.is_text, local.is_finite, local.answer_logits) if local else ()
    return sys.getsizeof(output.scores) + sum(tensor.nbytes for tensor in tensors)
