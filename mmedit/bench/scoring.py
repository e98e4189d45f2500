"""The metrics of some examples, before and after an edit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mmedit.bench.base_outputs import BaseOutput, BaseOutputs, scores_of
from mmedit.bench.generation import GenerationScorer
from mmedit.cases import Example, Probe, image_name
from mmedit.metrics.generation import fluency, repeated, unchanged
from mmedit.metrics.locality import Ranked, locality_to
from mmedit.records.schema import Locality, ProbeRecord
from mmedit.vlm.interface import VLM, Predictions

Asked = Sequence[tuple[Probe, Example]]
"""Examples, each with the probe that asks it."""


@torch.no_grad()
def measure(
    base: BaseOutputs,
    edited: VLM,
    asked: Asked,
    *,
    max_new_tokens: int = 0,
    scorer: GenerationScorer | None = None,
) -> list[ProbeRecord]:
    """Return every metric of the examples; row i of `edited` answers example i.

    One forward of `edited`, and with `max_new_tokens` > 0 one generation.
    """
    examples = [example for _, example in asked]
    is_locality = [probe.is_locality for probe, _ in asked]
    after = edited.predict(examples)
    before = base.predict(examples, is_locality=is_locality)
    rows = [row for row, here in enumerate(is_locality) if here]
    locality = dict(zip(rows, _locality(before, after, rows, examples), strict=True))
    records = [
        ProbeRecord(
            prompt=example.prompt,
            target=example.target,
            image=image_name(example),
            pre=before[row].scores,
            post=post,
            locality=locality.get(row),
        )
        for row, (example, post) in enumerate(zip(examples, scores_of(after), strict=True))
    ]
    if not max_new_tokens:
        return records
    generations = _generations(base, edited, asked, max_new_tokens, scorer or GenerationScorer())
    return [
        record.model_copy(update=fields)
        for record, fields in zip(records, generations, strict=True)
    ]


def _locality(
    before: Sequence[BaseOutput],
    after: Predictions,
    rows: Sequence[int],
    examples: Sequence[Example],
) -> list[Locality]:
    """Return how far the edit moved the answers of these rows, all locality probes."""
    if not rows:
        return []
    part = after[rows]
    comparable = part.is_text.clone()
    for place, example in enumerate(examples[row] for row in rows):
        # Without image and context the base predicts no first token, though an edit that adds
        # context may.
        if example.image is None and not example.context:
            comparable[place, 0] = False
    base = _ranked([before[row] for row in rows], part)
    scores = locality_to(base, part.logits, is_text=comparable, is_answer=part.is_answer)
    names = tuple(Locality.model_fields)
    columns = [getattr(scores, name).tolist() for name in names]
    return [Locality(**dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True)]


def _ranked(base: Sequence[BaseOutput], after: Predictions) -> Ranked:
    """Return the kept outputs of locality probes as one batch, padded to the length of `after`."""
    ranks = [output.ranks for output in base if output.ranks is not None]
    answers = [output.answer_logits for output in base if output.answer_logits is not None]
    padded = torch.zeros(*after.target.shape, ranks[0].shape[-1], dtype=torch.long)
    for row, best in enumerate(ranks):
        padded[row, : len(best)] = best
    padded = padded.to(after.target.device)
    return Ranked(
        best=padded[..., 0], top10=padded[..., 1:], answer=torch.cat(answers).to(after.logits)
    )


def _generations(
    base: BaseOutputs, edited: VLM, asked: Asked, max_new_tokens: int, scorer: GenerationScorer
) -> list[dict[str, Any]]:
    """Return the fields of a record that hold the generations and their scores."""
    examples = [example for _, example in asked]
    before = base.generate(examples, max_new_tokens=max_new_tokens)
    after = edited.generate(examples, max_new_tokens=max_new_tokens)
    pre, post = (scorer(examples, texts) for texts in (before, after))
    more_pre, more_post = _fluencies(base, edited, asked, scorer.fluency_tokens)
    for row, (probe, _) in enumerate(asked):
        if probe.is_locality:
            more_post[row] = {"unchanged": unchanged(before[row], after[row])}
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


def _fluencies(
    base: BaseOutputs, edited: VLM, asked: Asked, tokens: int
) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Return fluency and repetition of the requests' long continuations, before and after, by row;
    nothing for other probes, or where `tokens` is 0.
    """
    before: list[dict[str, float]] = [{} for _ in asked]
    after: list[dict[str, float]] = [{} for _ in asked]
    rows = [row for row, (probe, _) in enumerate(asked) if probe is Probe.RELIABILITY]
    if rows and tokens:
        requests = [asked[row][1] for row in rows]
        old = base.generate(requests, max_new_tokens=tokens)
        new = edited.select(rows).generate(requests, max_new_tokens=tokens)
        for row, text_before, text_after in zip(rows, old, new, strict=True):
            before[row], after[row] = _fluency(text_before), _fluency(text_after)
    return before, after


def _fluency(text: str) -> dict[str, float]:
    return {"fluency": fluency(text), "repeated": repeated(text)}
