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
from typing import Any, Protocol

import torch
from torch import Tensor

from mmedit.bench.records import Locality, ProbeRecord, Record, Scores
from mmedit.bench.speech import SpeechScorer
from mmedit.cases import EditCase, Example, Probe
from mmedit.editors import Editor
from mmedit.features import GIGABYTE, TensorCache
from mmedit.images import image_key
from mmedit.metrics import locality, multiclass_log_probs
from mmedit.metrics.generation import fluency, repeated, unchanged
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
    speech: SpeechScorer | None = None,
) -> Iterator[Record]:
    """Apply every case's request to the base VLM by itself and measure all probes; one record per
    case, in order.

    `base` carries the unedited outputs from editor to editor. With `max_new_tokens` > 0 the records
    also hold what the VLM says freely before and after, scored by `speech`. Costs per batch of
    cases: one `apply_each` and one forward per probe (plus, the first time a probe is seen, one
    forward of the base).
    """
    base = base or BaseOutputs.of(vlm)
    speech = speech or SpeechScorer()
    for start in range(0, len(cases), batch_size):
        batch = cases[start : start + batch_size]
        _forget_peak_memory(vlm.device)
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
                base,
                edited.select(rows),
                probe,
                examples,
                max_new_tokens=max_new_tokens,
                speech=speech,
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
                extra_parameters=edited.extra_parameters - vlm.extra_parameters,
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
    speech: SpeechScorer | None = None,
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
    spoken = (
        _spoken(base, edited, probe, examples, max_new_tokens, speech or SpeechScorer())
        if max_new_tokens
        else [{}] * len(examples)
    )
    return [
        ProbeRecord(
            prompt=example.prompt,
            target=example.target,
            image=image_name(example),
            pre=pre[row],
            post=post[row],
            locality=moved[row],
            **spoken[row],
        )
        for row, example in enumerate(examples)
    ]


def _spoken(
    base: BaseOutputs,
    edited: VLM,
    probe: Probe,
    examples: Sequence[Example],
    max_new_tokens: int,
    speech: SpeechScorer,
) -> list[dict[str, Any]]:
    """The fields of a record that tell what was said, before and after."""
    before = base.generate(examples, max_new_tokens=max_new_tokens)
    after = edited.generate(examples, max_new_tokens=max_new_tokens)
    pre, post = (speech(examples, said) for said in (before, after))
    more_pre, more_post = [{}] * len(examples), [{}] * len(examples)
    if probe.is_locality:
        more_post = [
            {"unchanged": unchanged(old, new)} for old, new in zip(before, after, strict=True)
        ]
    elif probe is Probe.RELIABILITY and speech.fluency_tokens:
        long = base.generate(examples, max_new_tokens=speech.fluency_tokens)
        more_pre = [_flow(text) for text in long]
        long = edited.generate(examples, max_new_tokens=speech.fluency_tokens)
        more_post = [_flow(text) for text in long]
    return [
        {
            "generated_pre": before[row],
            "generated_post": after[row],
            "generation_pre": pre[row].scores.model_copy(update=more_pre[row]),
            "generation_post": post[row].scores.model_copy(update=more_post[row]),
            "judge_pre": pre[row].transcript,
            "judge_post": post[row].transcript,
        }
        for row in range(len(examples))
    ]


def _flow(text: str) -> dict[str, float]:
    return {"fluency": fluency(text), "repeated": repeated(text)}


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


def _forget_peak_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_bytes(device: torch.device) -> int:
    """The most that was held: on a GPU by torch since the batch began, on a CPU by the whole
    process ever.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
