"""Outputs of the base model on the probes, computed once per run and shared by all editors."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from cachetools import LRUCache
from torch import Tensor

from mmedit.bench.batches import chunks, question_batches
from mmedit.cache import GIGABYTE
from mmedit.cases import EditCase, Example
from mmedit.metrics.locality import ranked
from mmedit.metrics.multiclass_log_probs import multiclass_log_probs
from mmedit.records.schema import Scores
from mmedit.vlm.interface import VLM, Predictions

Output = TypeVar("Output")


@dataclass(frozen=True, eq=False)
class BaseOutput:
    """The output of the base model on one example, as far as the metrics need it."""

    scores: Scores
    ranks: Tensor | None = None
    """Best tokens of every text position, int32 [text, 1 + 10]: the argmax, then the ten best in
    order. Only for locality probes.
    """
    answer_logits: Tensor | None = None
    """Logits at the positions of the answer, [answer, vocab]. Only for locality probes: they take
    0.6 MB a token at a vocabulary of 150,000.
    """


@dataclass(frozen=True, eq=False)
class ExampleBatch:
    """Examples that go through the base model together, by identity."""

    examples: tuple[Example, ...]
    local: frozenset[Hashable]
    """The content of those that are asked by locality probes."""


class BaseOutputs:
    """The base model and its outputs on the probes of `cases`, the latest in `memory_bytes`.

    Each example is computed in a fixed batch: the first one, in the order of the cases, that holds
    it. This keeps results bit-identical however a run is split or resumed. Examples of other cases
    are computed as they are asked, and not kept.
    """

    def __init__(
        self,
        vlm: VLM,
        *,
        cases: Sequence[EditCase] = (),
        batch_size: int = 1,
        memory_bytes: int = 4 * GIGABYTE,
    ) -> None:
        self.vlm = vlm
        self._batches = _fixed_batches(cases, batch_size)
        self._kept: LRUCache[Hashable, Mapping[Hashable, Any]] = LRUCache(memory_bytes, _size)

    @property
    def bytes_used(self) -> int:
        """Memory that the kept outputs take, in bytes."""
        return int(self._kept.currsize)

    def predict(
        self, examples: Sequence[Example], *, is_locality: Sequence[bool]
    ) -> list[BaseOutput]:
        """Return the teacher-forced outputs; one forward per batch that is not kept."""
        local = frozenset(
            _content(e) for e, here in zip(examples, is_locality, strict=True) if here
        )
        return self._outputs(ExampleBatch(tuple(examples), local), "predict", self._predict)

    def generate(self, examples: Sequence[Example], *, max_new_tokens: int) -> list[str]:
        """Return the greedy generations; one generation per batch that is not kept."""

        def compute(batch: ExampleBatch) -> list[str]:
            return self.vlm.generate(batch.examples, max_new_tokens=max_new_tokens)

        return self._outputs(ExampleBatch(tuple(examples), frozenset()), max_new_tokens, compute)

    def _outputs(
        self, asked: ExampleBatch, kind: Hashable, compute: Callable[[ExampleBatch], list[Output]]
    ) -> list[Output]:
        contents = [_content(example) for example in asked.examples]
        fixed = [self._fixed_batch(content, asked) for content in contents]
        unknown = (e for e, batch in zip(asked.examples, fixed, strict=True) if batch is None)
        other = ExampleBatch(tuple(unknown), asked.local)
        batches = [batch or other for batch in fixed]
        made: dict[ExampleBatch, Mapping[Hashable, Output]] = {}
        for batch in dict.fromkeys(batches):
            outputs = self._kept.get((batch, kind))
            if outputs is None:
                outputs = dict(zip(map(_content, batch.examples), compute(batch), strict=True))
                if batch is not other and _size(outputs) <= self._kept.maxsize:
                    self._kept[batch, kind] = outputs
            made[batch] = outputs
        return [made[batch][content] for content, batch in zip(contents, batches, strict=True)]

    def _fixed_batch(self, content: Hashable, asked: ExampleBatch) -> ExampleBatch | None:
        """Return the fixed batch of an example, if it gives all that is asked of it."""
        batch = self._batches.get(content)
        lacks_logits = batch and content in asked.local and content not in batch.local
        return None if lacks_logits else batch

    @torch.no_grad()
    def _predict(self, batch: ExampleBatch) -> list[BaseOutput]:
        predictions = self.vlm.predict(batch.examples)
        scores = scores_of(predictions)
        outputs = [BaseOutput(row) for row in scores]
        rows = [row for row, e in enumerate(batch.examples) if _content(e) in batch.local]
        if not rows:
            return outputs
        part = predictions[rows]
        best = ranked(part.logits, part.is_answer)
        ranks = torch.cat([best.best.unsqueeze(-1), best.top10], dim=-1).int().cpu()
        answers = best.answer.cpu().split(part.is_answer.sum(1).tolist())  # a GPU has no room
        for row, length, rank, answer in zip(
            rows, _text_lengths(part), ranks, answers, strict=True
        ):
            outputs[row] = BaseOutput(scores[row], rank[:length], answer)
        return outputs


def scores_of(predictions: Predictions) -> list[Scores]:
    """Return the teacher-forced scores of every row."""
    labels = predictions.target.masked_fill(~predictions.is_answer, -100)
    scores = multiclass_log_probs(predictions.logits, labels)
    columns = (scores.token_accuracy, scores.exact_match, scores.log_prob, scores.n_tokens)
    return [
        Scores(token_accuracy=accuracy, exact_match=match, log_prob=log_prob, n_tokens=int(tokens))
        for accuracy, match, log_prob, tokens in zip(*(c.tolist() for c in columns), strict=True)
    ]


def _text_lengths(predictions: Predictions) -> list[int]:
    """Return the position behind the last text token of every row."""
    place = torch.arange(1, predictions.is_text.shape[1] + 1, device=predictions.is_text.device)
    return (predictions.is_text * place).max(1).values.tolist()


def _fixed_batches(cases: Sequence[EditCase], batch_size: int) -> dict[Hashable, ExampleBatch]:
    """Return the first batch of every example, in the order of the cases."""
    questions = [
        batch for part in chunks(cases, batch_size) for batch in question_batches(part, batch_size)
    ]
    local = frozenset(_content(q.example) for b in questions for q in b if q.probe.is_locality)
    batches: dict[Hashable, ExampleBatch] = {}
    for batch in questions:
        fixed = ExampleBatch(tuple(question.example for question in batch), local)
        for example in fixed.examples:
            batches.setdefault(_content(example), fixed)
    return batches


def _content(example: Example) -> Hashable:
    """Return what identifies an example: its texts, and its image's path or id in memory."""
    image = example.image
    seen = image if image is None or isinstance(image, Path) else id(image)
    return (example.prompt, example.target, example.context, seen)


def _size(outputs: Mapping[Hashable, Any]) -> int:
    """Return about how many bytes the outputs of a batch take."""
    return sum(map(_bytes, outputs.values()))


def _bytes(output: BaseOutput | str) -> int:
    if isinstance(output, str):
        return sys.getsizeof(output)
    tensors = [t for t in (output.ranks, output.answer_logits) if t is not None]
    return sys.getsizeof(output.scores) + sum(tensor.nbytes for tensor in tensors)
