"""Running edits and measuring them: every split before and after, all metrics from one forward per
split.

`independent` mode: every edit starts from the base model. Edits go in batches through
`Editor.apply_each`; the base model's outputs are computed once per (VLM, dataset) and reused by
every editor.
"""

from __future__ import annotations

import hashlib
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from mmedit.bench.records import Locality, ProbeRecord, Record, Scores
from mmedit.cases import EditCase, Example, Probe
from mmedit.editors import Editor
from mmedit.features import GIGABYTE, TensorCache
from mmedit.images import image_key
from mmedit.metrics import locality, multiclass_log_probs
from mmedit.vlm import VLM, Predictions


class Applies(Protocol):
    """What the protocol asks of an editor."""

    def apply_each(self, vlm: VLM, requests: Sequence[Example]) -> VLM: ...


class NoEdit:
    """The base-model row of every table: measured like an editor, not assumed."""

    def apply_each(self, vlm: VLM, requests: Sequence[Example]) -> VLM:
        return vlm


@dataclass(frozen=True)
class BaseOutputs:
    """The unedited VLM with its outputs on examples asked before, by content, shared by all editors
    of a run.

    Keeps at most `cache`'s bytes; what was dropped is computed again.
    """

    vlm: VLM
    cache: TensorCache

    @staticmethod
    def of(vlm: VLM, *, memory_bytes: int = 4 * GIGABYTE) -> BaseOutputs:
        return BaseOutputs(vlm, TensorCache(memory_bytes=memory_bytes))

    @torch.no_grad()
    def logits(self, examples: Sequence[Example]) -> list[Tensor]:
        """[text, vocab] for every example, cropped to its own text; one forward for the examples
        not seen before.
        """

        def compute(positions: Sequence[int]) -> Sequence[Tensor]:
            predictions = self.vlm.predict([examples[p] for p in positions])
            lengths = text_lengths(predictions)
            return [
                logits[:length].clone()
                for logits, length in zip(predictions.logits, lengths, strict=True)
            ]

        return self.cache.lookup([_key("logits", example) for example in examples], compute)

    def generate(self, examples: Sequence[Example], *, max_new_tokens: int) -> list[str]:
        """Greedy answers, as bytes in the same cache."""

        def compute(positions: Sequence[int]) -> Sequence[Tensor]:
            texts = self.vlm.generate(
                [examples[p] for p in positions], max_new_tokens=max_new_tokens
            )
            return [
                torch.frombuffer(bytearray(text.encode() + b"\0"), dtype=torch.uint8)
                for text in texts
            ]

        keys = [_key(f"text{max_new_tokens}", example) for example in examples]
        return [bytes(t.tolist())[:-1].decode() for t in self.cache.lookup(keys, compute)]


def evaluate(
    vlm: VLM,
    editor: Editor | NoEdit,
    cases: Sequence[EditCase],
    *,
    name: str,
    batch_size: int,
    seed: int = 0,
    base: BaseOutputs | None = None,
    max_new_tokens: int = 0,
) -> Iterator[Record]:
    """Apply every case's request to the base VLM by itself and measure all probes; one record per
    case, in order.

    `base` carries the unedited outputs from editor to editor. With `max_new_tokens` > 0 the records
    also hold what the VLM says freely before and after. Costs per batch of cases: one `apply_each`
    and one forward per probe (plus, the first time a probe is seen, one forward of the base).
    """
    base = base or BaseOutputs.of(vlm)
    for start in range(0, len(cases), batch_size):
        batch = cases[start : start + batch_size]
        begun = time.perf_counter()
        edited = editor.apply_each(vlm, [case.request for case in batch])
        _synchronise(vlm.device)
        seconds = (time.perf_counter() - begun) / len(batch)
        measured: list[dict[Probe, list[ProbeRecord]]] = [{} for _ in batch]
        for probe, number in _asked(batch):
            rows = [
                row for row, case in enumerate(batch) if len(case.probes.get(probe, ())) > number
            ]
            examples = [batch[row].probes[probe][number] for row in rows]
            records = measure(
                base, edited.select(rows), probe, examples, max_new_tokens=max_new_tokens
            )
            for row, record in zip(rows, records, strict=True):
                measured[row].setdefault(probe, []).append(record)
        for case, probes in zip(batch, measured, strict=True):
            yield Record(
                case_id=case.id,
                editor=name,
                seconds=seconds,
                batch=len(batch),
                peak_memory_bytes=peak_memory_bytes(vlm.device),
                seed=seed,
                probes={probe: tuple(probes[probe]) for probe in case.probes},
            )


def _asked(batch: Sequence[EditCase]) -> list[tuple[Probe, int]]:
    """Every (probe, number of its example) that some case of the batch has."""
    most = {probe: max(len(case.probes.get(probe, ())) for case in batch) for probe in Probe}
    return [(probe, number) for probe in Probe for number in range(most[probe])]


@torch.no_grad()
def measure(
    base: BaseOutputs,
    edited: VLM,
    probe: Probe,
    examples: Sequence[Example],
    *,
    max_new_tokens: int = 0,
) -> list[ProbeRecord]:
    """Every metric of one probe, before and after; row i of `edited` answers example i. One forward
    of `edited`.
    """
    after = edited.predict(examples)
    before = after.logits.new_zeros(after.logits.shape)
    for row, logits in enumerate(base.logits(examples)):
        before[row, : len(logits)] = logits.to(before)
    pre, post = _scores(before, after), _scores(after.logits, after)
    comparable = after.is_text.clone()
    for row, example in enumerate(examples):
        # Without image and context the base predicts no first token, though an edit that adds
        # context may.
        if example.image is None and not example.context:
            comparable[row, 0] = False
    moved = _locality(before, after, comparable) if probe.is_locality else [None] * len(examples)
    said_before: Sequence[str | None] = [None] * len(examples)
    said_after: Sequence[str | None] = said_before
    if max_new_tokens:
        said_before = base.generate(examples, max_new_tokens=max_new_tokens)
        said_after = edited.generate(examples, max_new_tokens=max_new_tokens)
    return [
        ProbeRecord(
            prompt=example.prompt,
            target=example.target,
            image=image_name(example),
            pre=pre[row],
            post=post[row],
            locality=moved[row],
            generated_pre=said_before[row],
            generated_post=said_after[row],
        )
        for row, example in enumerate(examples)
    ]


def _scores(logits: Tensor, predictions: Predictions) -> list[Scores]:
    labels = predictions.target.masked_fill(~predictions.is_answer, -100)
    scores = multiclass_log_probs(logits, labels)
    columns = (scores.token_accuracy, scores.exact_match, scores.log_prob, scores.n_tokens)
    return [
        Scores(token_accuracy=accuracy, exact_match=match, log_prob=log_prob, n_tokens=int(tokens))
        for accuracy, match, log_prob, tokens in zip(*(c.tolist() for c in columns), strict=True)
    ]


def _locality(before: Tensor, after: Predictions, is_text: Tensor) -> list[Locality]:
    scores = locality(before, after.logits, is_text=is_text, is_answer=after.is_answer)
    names = tuple(Locality.model_fields)
    columns = [getattr(scores, name).tolist() for name in names]
    return [Locality(**dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True)]


def text_lengths(predictions: Predictions) -> list[int]:
    """Up to where each row's text reaches."""
    place = torch.arange(1, predictions.is_text.shape[1] + 1, device=predictions.is_text.device)
    return (predictions.is_text * place).max(1).values.tolist()


def image_name(example: Example) -> str | None:
    """What records call an image: the last three parts of its path, the same on every machine, or
    the content hash of an image made in memory.
    """
    if example.image is None:
        return None
    if isinstance(example.image, Path):
        return "/".join(example.image.parts[-3:])
    return image_key(example.image)


def _key(kind: str, example: Example) -> str:
    image = "" if example.image is None else image_key(example.image)
    text = "\0".join((kind, image, example.context, example.prompt, example.target))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def peak_memory_bytes(device: torch.device) -> int:
    """The most that was ever held: on the GPU by torch, on the CPU by the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
