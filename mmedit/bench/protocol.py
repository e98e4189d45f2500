"""Measuring edits: every split before and after, all metrics from one forward per split.

The base model's outputs are computed once per (VLM, dataset) and reused by every editor. In what
order edits are made and tested is `mmedit.bench.modes`'.
"""

from __future__ import annotations

import hashlib
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from mmedit.bench.records import Locality, ProbeRecord, Record, Scores, Test
from mmedit.bench.speech import SpeechScorer
from mmedit.cases import EditCase, Example, Probe
from mmedit.features import GIGABYTE, TensorCache
from mmedit.images import image_key
from mmedit.metrics import Ranked, locality_to, multiclass_log_probs, ranked
from mmedit.metrics.generation import fluency, repeated, unchanged
from mmedit.vlm import VLM, Predictions


class Applies(Protocol):
    """What the protocol asks of an editor."""

    def apply(self, vlm: VLM, requests: Sequence[Example]) -> VLM: ...

    def apply_each(self, vlm: VLM, requests: Sequence[Example]) -> VLM: ...


class Probed(Protocol):
    """What the protocol asks of a case when it is tested."""

    @property
    def id(self) -> str: ...

    @property
    def probes(self) -> Mapping[Probe, tuple[Example, ...]]: ...


class NoEdit:
    """The base-model row of every table: measured like an editor, not assumed."""

    def apply(self, vlm: VLM, requests: Sequence[Example]) -> VLM:
        return vlm

    def apply_each(self, vlm: VLM, requests: Sequence[Example]) -> VLM:
        return vlm


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
        passes = [
            asked
            for start in range(0, len(cases), rows)
            for asked in _passes(cases[start : start + rows], rows)
        ]
        local = {_content(e) for asked in passes for _, probe, e in asked if probe.is_locality}
        for asked in passes:
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
    scores = _scores(predictions)
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
        for asked in _passes(cases, self.rows):
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


Asked = tuple[int, Probe, Example]
"""The number of a case, and one of its probes' examples."""


def _passes(cases: Sequence[Probed], rows: int) -> Iterator[list[Asked]]:
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
    post = _scores(after)
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


def _scores(predictions: Predictions) -> list[Scores]:
    labels = predictions.target.masked_fill(~predictions.is_answer, -100)
    scores = multiclass_log_probs(predictions.logits, labels)
    columns = (scores.token_accuracy, scores.exact_match, scores.log_prob, scores.n_tokens)
    return [
        Scores(token_accuracy=accuracy, exact_match=match, log_prob=log_prob, n_tokens=int(tokens))
        for accuracy, match, log_prob, tokens in zip(*(c.tolist() for c in columns), strict=True)
    ]


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
