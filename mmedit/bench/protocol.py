"""Measuring edits: every split before and after, all metrics from one forward per split.

The base model's outputs are computed once per (VLM, dataset) and reused by every editor. In what
order edits are made and tested is `mmedit.bench.modes`'.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from mmedit.bench.base_outputs import BaseOutputs, Probed, passes, scores_of
from mmedit.bench.generation import SpeechScorer
from mmedit.cases import EditCase, Example, Probe, image_name
from mmedit.metrics.generation import fluency, repeated, unchanged
from mmedit.metrics.locality import Ranked, locality_to
from mmedit.records.schema import Locality, ProbeRecord, Record, Test
from mmedit.vlm.interface import VLM, Predictions


class Applies(Protocol):
    """What the protocol asks of an editor."""

    def apply(self, vlm: VLM, requests: Sequence[Example]) -> VLM: ...

    def apply_each(self, vlm: VLM, requests: Sequence[Example]) -> VLM: ...


class NoEdit:
    """The base-model row of every table: measured like an editor, not assumed."""

    def apply(self, vlm: VLM, requests: Sequence[Example]) -> VLM:
        return vlm

    def apply_each(self, vlm: VLM, requests: Sequence[Example]) -> VLM:
        return vlm


def evaluate(
    vlm: VLM,
    editor: Applies,
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
    meter = Meter(
        base or BaseOutputs.of(vlm),
        name=name,
        seed=seed,
        rows=batch_size,
        max_new_tokens=max_new_tokens,
        speech=speech or SpeechScorer(),
    )
    for start in range(0, len(cases), batch_size):
        yield from meter.independent(editor, cases[start : start + batch_size])


@dataclass(frozen=True, kw_only=True)
class Held:
    """How an edited VLM came to hold the edits that it is asked about."""

    seconds: Sequence[float]
    """Of every case: how long its edit took."""
    edits: int = 1
    """How many edits the VLM holds."""
    places: Sequence[int]
    """Of every case: which of them its edit was, from 1."""
    order: int = 0
    test: Test = "edit"


@dataclass(frozen=True)
class Meter:
    """Measures edited VLMs for one editor of a run."""

    base: BaseOutputs
    _: KW_ONLY
    name: str
    """The editor's, in records."""
    seed: int = 0
    rows: int = 1
    """Examples that go through the edited VLM together, at most."""
    max_new_tokens: int = 0
    speech: SpeechScorer = field(default_factory=SpeechScorer)

    @property
    def vlm(self) -> VLM:
        """The unedited one."""
        return self.base.vlm

    def independent(self, editor: Applies, cases: Sequence[EditCase]) -> list[Record]:
        """Separate edits of the base VLM, made and asked together."""
        forget_peak_memory(self.vlm.device)
        requests = [case.request for case in cases]
        edited, seconds = timed(lambda: editor.apply_each(self.vlm, requests), self.vlm.device)
        share = [seconds / len(cases)] * len(cases)
        held = Held(seconds=share, places=[1] * len(cases))
        return self.records(edited, cases, held, separate=True, batch=len(cases))

    def records(
        self, edited: VLM, cases: Sequence[Probed], held: Held, *, separate: bool, batch: int = 1
    ) -> list[Record]:
        """What the cases' probes give; if `separate`, each case under its own row of `edited`.
        `batch`: edits that were made together.
        """
        measured = self._measured(edited, cases, separate=separate)
        memory = peak_memory_bytes(self.vlm.device)
        added = edited.extra_parameters - self.vlm.extra_parameters
        return [
            Record(
                case_id=case.id,
                editor=self.name,
                seconds=held.seconds[row],
                batch=batch,
                peak_memory_bytes=memory,
                extra_parameters=added,
                seed=self.seed,
                edits=held.edits,
                place=held.places[row],
                order=held.order,
                test=held.test,
                probes={probe: tuple(measured[row][probe]) for probe in case.probes},
            )
            for row, case in enumerate(cases)
        ]

    def _measured(
        self, edited: VLM, cases: Sequence[Probed], *, separate: bool
    ) -> list[dict[Probe, list[ProbeRecord]]]:
        found: list[dict[Probe, list[ProbeRecord]]] = [{} for _ in cases]
        for asked in passes(cases, self.rows):
            rows = [row for row, _, _ in asked]
            records = measure(
                self.base,
                edited.select(rows) if separate else edited,
                [(probe, example) for _, probe, example in asked],
                max_new_tokens=self.max_new_tokens,
                speech=self.speech,
            )
            for (row, probe, _), record in zip(asked, records, strict=True):
                found[row].setdefault(probe, []).append(record)
        return found


@torch.no_grad()
def measure(
    base: BaseOutputs,
    edited: VLM,
    asked: Sequence[tuple[Probe, Example]],
    *,
    max_new_tokens: int = 0,
    speech: SpeechScorer | None = None,
) -> list[ProbeRecord]:
    """Every metric of some examples, before and after; row i of `edited` answers example i. One
    forward of `edited`.
    """
    examples = [example for _, example in asked]
    after = edited.predict(examples)
    local = [row for row, (probe, _) in enumerate(asked) if probe.is_locality]
    pre, kept = base.scores(examples, local=[probe.is_locality for probe, _ in asked])
    post = scores_of(after)
    moved = dict(zip(local, _locality(kept, after, local, examples), strict=True))
    spoken = (
        _spoken(base, edited, asked, max_new_tokens, speech or SpeechScorer())
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
            locality=moved.get(row),
            **spoken[row],
        )
        for row, example in enumerate(examples)
    ]


def _spoken(
    base: BaseOutputs,
    edited: VLM,
    asked: Sequence[tuple[Probe, Example]],
    max_new_tokens: int,
    speech: SpeechScorer,
) -> list[dict[str, Any]]:
    """The fields of a record that tell what was said, before and after."""
    examples = [example for _, example in asked]
    before = base.generate(examples, max_new_tokens=max_new_tokens)
    after = edited.generate(examples, max_new_tokens=max_new_tokens)
    pre, post = (speech(examples, said) for said in (before, after))
    more_pre: list[dict[str, float]] = [{} for _ in asked]
    more_post: list[dict[str, float]] = [{} for _ in asked]
    for row, (probe, _) in enumerate(asked):
        if probe.is_locality:
            more_post[row] = {"unchanged": unchanged(before[row], after[row])}
    flowing = [row for row, (probe, _) in enumerate(asked) if probe is Probe.RELIABILITY]
    if flowing and speech.fluency_tokens:
        requests, long = [examples[row] for row in flowing], speech.fluency_tokens
        old = base.generate(requests, max_new_tokens=long)
        new = edited.select(flowing).generate(requests, max_new_tokens=long)
        for row, *texts in zip(flowing, old, new, strict=True):
            more_pre[row], more_post[row] = map(_flow, texts)
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


def _locality(
    kept: Sequence[tuple[Tensor, Tensor]],
    after: Predictions,
    local: Sequence[int],
    examples: Sequence[Example],
) -> list[Locality]:
    """Of the rows that are `local`."""
    if not local:
        return []
    part = after[list(local)]
    comparable = part.is_text.clone()
    for row, example in enumerate(examples[row] for row in local):
        # Without image and context the base predicts no first token, though an edit that adds
        # context may.
        if example.image is None and not example.context:
            comparable[row, 0] = False
    ranks = torch.zeros(*part.target.shape, kept[0][0].shape[-1], dtype=torch.long)
    for row, (best, _) in enumerate(kept):
        ranks[row, : len(best)] = best
    ranks = ranks.to(part.target.device)
    before = Ranked(
        best=ranks[..., 0],
        top10=ranks[..., 1:],
        answer=torch.cat([answer for _, answer in kept]).to(part.logits),
    )
    scores = locality_to(before, part.logits, is_text=comparable, is_answer=part.is_answer)
    names = tuple(Locality.model_fields)
    columns = [getattr(scores, name).tolist() for name in names]
    return [Locality(**dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True)]


def forget_peak_memory(device: torch.device) -> None:
    """Begin anew to note the most that a GPU holds."""
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


def timed(make: Callable[[], VLM], device: torch.device) -> tuple[VLM, float]:
    """What is made, and the wall time that it took, in seconds."""
    begun = time.perf_counter()
    made = make()
    _synchronise(device)
    return made, time.perf_counter() - begun


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
