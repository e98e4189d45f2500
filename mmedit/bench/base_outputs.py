"""What the unedited VLM gives on examples: asked once, kept as far as it is scored."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from mmedit.cache import GIGABYTE, TensorCache
from mmedit.cases import EditCase, Example, Probe
from mmedit.images import image_key
from mmedit.metrics.locality import ranked
from mmedit.metrics.multiclass_log_probs import multiclass_log_probs
from mmedit.records.schema import Scores
from mmedit.vlm.interface import VLM, Predictions


class Probed(Protocol):
    """What the protocol asks of a case when it is tested."""

    @property
    def id(self) -> str: ...

    @property
    def probes(self) -> Mapping[Probe, tuple[Example, ...]]: ...


Asked = tuple[int, Probe, Example]
"""The number of a case, and one of its probes' examples."""


def passes(cases: Sequence[Probed], rows: int) -> Iterator[list[Asked]]:
    """What is asked together: at most so many rows, probe by probe; examples without image, which
    need not be padded to the length of one, by themselves.
    """
    most = {p: max(len(case.probes.get(p, ())) for case in cases) for p in Probe}
    asked = [
        (row, probe, case.probes[probe][number])
        for probe in Probe
        for number in range(most[probe])
        for row, case in enumerate(cases)
        if len(case.probes.get(probe, ())) > number
    ]
    for has_image in (True, False):
        group = [one for one in asked if (one[2].image is not None) == has_image]
        for start in range(0, len(group), rows):
            yield group[start : start + rows]


SCORES, RANKS, ANSWER = "scores", "ranks", "answer"
"""The parts of an unedited output that are kept: four scores, and for locality the best tokens of
every position and the logits of the answer's.
"""


Company = tuple[tuple[Example, bool], ...]
"""Examples that go through the VLM together, and whether each is one of locality."""


@dataclass(frozen=True)
class BaseOutputs:
    """The unedited VLM with what is needed of its outputs on examples asked before, by content,
    shared by all editors of a run.

    Keeps at most `cache`'s bytes; what was dropped is computed again. Logits are kept of answers to
    locality probes alone: at a vocabulary of 150,000 tokens 0.6 MB a token.
    """

    vlm: VLM
    cache: TensorCache
    company: Mapping[tuple[object, ...], Company] = field(default_factory=dict)
    """Of an example, those that it goes through the VLM with, whichever is asked first: else last
    digits would depend on where a run was stopped, and by how many processes it is shared.
    """

    @staticmethod
    def of(
        vlm: VLM,
        *,
        cases: Sequence[EditCase] = (),
        rows: int = 1,
        memory_bytes: int = 4 * GIGABYTE,
    ) -> BaseOutputs:
        """With `cases`, their examples are asked together, at most `rows` at a time."""
        company: dict[tuple[object, ...], Company] = {}
        every = [
            asked
            for start in range(0, len(cases), rows)
            for asked in passes(cases[start : start + rows], rows)
        ]
        local = {_content(e) for asked in every for _, probe, e in asked if probe.is_locality}
        for asked in every:
            together = tuple((example, _content(example) in local) for _, _, example in asked)
            for example, _ in together:
                company.setdefault(_content(example), together)
        return BaseOutputs(vlm, TensorCache(memory_bytes=memory_bytes), company)

    def scores(
        self, examples: Sequence[Example], *, local: Sequence[bool]
    ) -> tuple[list[Scores], list[tuple[Tensor, Tensor]]]:
        """The scores of every example, and of those that are `local` the best tokens [text, 1 + 10]
        (argmax, then the top ten) and the answer's logits [answer, vocab]. One forward for the
        examples not seen before.
        """
        asked = tuple(zip(examples, local, strict=True))
        wanted = [
            (row, part)
            for row, (_, is_local) in enumerate(asked)
            for part in ((SCORES, RANKS, ANSWER) if is_local else (SCORES,))
        ]
        found = dict(zip(wanted, self._found(asked, wanted, self._predicted), strict=True))
        return (
            [_read_scores(found[row, SCORES]) for row in range(len(asked))],
            [(found[row, RANKS], found[row, ANSWER]) for row, here in enumerate(local) if here],
        )

    def generate(self, examples: Sequence[Example], *, max_new_tokens: int) -> list[str]:
        """Greedy answers."""

        def said(together: Sequence[tuple[Example, bool]]) -> list[dict[str, Tensor]]:
            asked = [example for example, _ in together]
            texts = self.vlm.generate(asked, max_new_tokens=max_new_tokens)
            coded = [bytearray(text.encode() + b"\0") for text in texts]
            return [{part: torch.frombuffer(text, dtype=torch.uint8)} for text in coded]

        part = f"text{max_new_tokens}"
        asked = tuple((example, False) for example in examples)
        found = self._found(asked, [(row, part) for row in range(len(asked))], said)
        return [bytes(text.tolist())[:-1].decode() for text in found]

    @torch.no_grad()
    def _predicted(self, together: Sequence[tuple[Example, bool]]) -> list[dict[str, Tensor]]:
        predictions = self.vlm.predict([example for example, _ in together])
        return _kept(predictions, [is_local for _, is_local in together])

    def _found(
        self,
        asked: Company,
        wanted: Sequence[tuple[int, str]],
        make: Callable[[Sequence[tuple[Example, bool]]], list[dict[str, Tensor]]],
    ) -> list[Tensor]:
        """Parts of outputs, each by (number in `asked`, name): looked up, or made with those of all
        examples in company.
        """
        keys = [_key(part, asked[row][0]) for row, part in wanted]

        def compute(positions: Sequence[int]) -> Sequence[Tensor]:
            rows = dict.fromkeys(wanted[position][0] for position in positions)
            alone = tuple(asked[row] for row in rows)
            made: dict[str, Tensor] = {}
            done: set[tuple[object, ...]] = set()
            for example, _ in alone:
                if _content(example) in done:
                    continue
                together = self.company.get(_content(example), alone)
                for (one, _), parts in zip(together, make(together), strict=True):
                    made |= {_key(part, one): value for part, value in parts.items()}
                    done.add(_content(one))
            others = {key: made[key] for key in made.keys() - {keys[p] for p in positions}}
            values = list(others.values())
            self.cache.lookup(list(others), lambda places: [values[place] for place in places])
            return [made[keys[position]] for position in positions]

        return self.cache.lookup(keys, compute)


def _content(example: Example) -> tuple[object, ...]:
    """What an example says; of an image in memory, which one it is."""
    image = example.image
    seen = image if image is None or isinstance(image, Path) else id(image)
    return (example.prompt, example.target, example.context, seen)


def _kept(predictions: Predictions, local: Sequence[bool]) -> list[dict[str, Tensor]]:
    """Of every row the parts that are kept."""
    scores = scores_of(predictions)
    kept: list[dict[str, Tensor]] = [
        {SCORES: torch.tensor(tuple(dict(row).values()), dtype=torch.float64)} for row in scores
    ]
    rows = [row for row, here in enumerate(local) if here]
    if rows:
        part = predictions[rows]
        best = ranked(part.logits, part.is_answer)
        ranks = torch.cat([best.best.unsqueeze(-1), best.top10], dim=-1).int()
        answers = best.answer.split(part.is_answer.sum(1).tolist())
        for row, length, rank, answer in zip(rows, text_lengths(part), ranks, answers, strict=True):
            kept[row] |= {RANKS: rank[:length].cpu(), ANSWER: answer.cpu()}  # a GPU has no room
    return kept


def _read_scores(kept: Tensor) -> Scores:
    accuracy, match, log_prob, tokens = kept.tolist()
    return Scores(
        token_accuracy=accuracy, exact_match=match, log_prob=log_prob, n_tokens=int(tokens)
    )


def scores_of(predictions: Predictions) -> list[Scores]:
    """The teacher-forced scores of every row."""
    labels = predictions.target.masked_fill(~predictions.is_answer, -100)
    scores = multiclass_log_probs(predictions.logits, labels)
    columns = (scores.token_accuracy, scores.exact_match, scores.log_prob, scores.n_tokens)
    return [
        Scores(token_accuracy=accuracy, exact_match=match, log_prob=log_prob, n_tokens=int(tokens))
        for accuracy, match, log_prob, tokens in zip(*(c.tolist() for c in columns), strict=True)
    ]


def text_lengths(predictions: Predictions) -> list[int]:
    """Up to where each row's text reaches."""
    place = torch.arange(1, predictions.is_text.shape[1] + 1, device=predictions.is_text.device)
    return (predictions.is_text * place).max(1).values.tolist()


def _key(kind: str, example: Example) -> str:
    image = "" if example.image is None else image_key(example.image)
    text = "\0".join((kind, image, example.context, example.prompt, example.target))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
