"""The metrics of some examples, before and after an edit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from mmedit.bench.base_outputs import BaseOutput, BaseOutputs, LocalOutput, scores_of
from mmedit.bench.generation import GenerationScorer
from mmedit.cases import Example, Probe, image_name
from mmedit.metrics.generation import fluency, leak, repeated, unchanged
from mmedit.metrics.locality import Ranked, locality_to
from mmedit.records.schema import Generation, Locality, ProbeRecord, Scores
from mmedit.vlm.interface import VLM
from mmedit.vlm.outputs import Predictions

Measured = TypeVar("Measured", Scores, Locality | None, Generation | None)
Asked = Sequence[tuple[Probe, Example]]
"""Examples, each with the probe that asks it."""
OWN_ANSWER_TOKENS = 16
"""Largest length of the base model's own answer, where it is forced and no generations are made."""


@torch.no_grad()
def measure(
    base: BaseOutputs,
    edited: VLM,
    asked: Asked,
    *,
    max_new_tokens: int = 0,
    scorer: GenerationScorer | None = None,
    targets: Sequence[str] = (),
) -> list[ProbeRecord]:
    """Return every metric of the examples; row i of `edited` answers example i.

    `targets` are the answers that the rows' edits set, for `leak`. One forward of `edited`, and
    with `max_new_tokens` > 0 one generation; no more than these if `edited` is the base model.
    Probes that force the base model's own answer cost one generation of it where none are made.
    """
    forced = _forced(base, asked, max_new_tokens or OWN_ANSWER_TOKENS)
    is_locality = [probe.is_locality for probe, _ in asked]
    after = edited.predict(forced, answers_only=[not here for here in is_locality])
    made = after if edited is base.vlm else None
    before = base.predict(forced, is_locality=is_locality, made=made)
    local = [row for row, here in enumerate(is_locality) if here]
    locality = dict(zip(local, _locality(before, after, local), strict=True))
    records = [
        _known(
            ProbeRecord(
                prompt=example.prompt,
                target=example.target,
                image=image_name(example),
                pre=before[row].scores,
                post=post,
                locality=locality.get(row),
                forced=forced[row].target if probe.forces_own_answer else None,
            )
        )
        for row, ((probe, example), post) in enumerate(zip(asked, scores_of(after), strict=True))
    ]
    if not max_new_tokens:
        return records
    generations = _generations(
        base,
        edited,
        asked,
        targets or [""] * len(asked),
        max_new_tokens,
        scorer or GenerationScorer(),
    )
    return [
        _known(record.model_copy(update=fields))
        for record, fields in zip(records, generations, strict=True)
    ]


def _forced(base: BaseOutputs, asked: Asked, max_new_tokens: int) -> list[Example]:
    """Return the examples as they are forced: some probes with the base model's own answer as the
    target. An empty answer leaves the example's own.
    """
    examples = [example for _, example in asked]
    if not any(probe.forces_own_answer for probe, _ in asked):
        return examples
    own = base.answer(examples, max_new_tokens=max_new_tokens)
    return [
        replace(example, target=answer.text, answers=())
        if probe.forces_own_answer and answer.text
        else example
        for (probe, example), answer in zip(asked, own, strict=True)
    ]


def _known(record: ProbeRecord) -> ProbeRecord:
    """Return the record with NaN for all scores of a model whose outputs are not finite, so that
    none counts as 0 or 1.
    """
    if record.is_finite:
        return record
    pre, post = record.pre, record.post
    if pre.is_finite and post.is_finite:  # a token of the prompt, not of the answer
        post = _unknown(post)
    fields: dict[str, Any] = {"locality": _unknown(record.locality)}
    if not pre.is_finite:
        fields |= {"pre": _unknown(pre), "generation_pre": _unknown(record.generation_pre)}
    if not post.is_finite:
        fields |= {"post": _unknown(post), "generation_post": _unknown(record.generation_post)}
    return record.model_copy(update=fields)


def _unknown(scores: Measured) -> Measured:
    """Return the scores with NaN for every one that was measured."""
    if scores is None:
        return scores
    measured = [name for name, value in scores if isinstance(value, float)]
    return scores.model_copy(update=dict.fromkeys(measured, math.nan))


def _locality(
    before: Sequence[BaseOutput], after: Predictions, rows: Sequence[int]
) -> list[Locality]:
    """Return how far the edit moved the answers of these rows, all locality probes.

    Text tokens count that both models predict. An edit that adds context may predict a first
    token that the base model does not.
    """
    if not rows:
        return []
    part = after[rows]
    kept = [output.local for output in (before[row] for row in rows) if output.local is not None]
    comparable = _padded([local.is_text for local in kept], part) & part.is_text
    scores = locality_to(
        _ranked(kept, part), part.logits, is_text=comparable, is_answer=part.is_answer
    )
    names = tuple(Locality.model_fields)
    columns = [getattr(scores, name).tolist() for name in names]
    return [Locality(**dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True)]


def _ranked(kept: Sequence[LocalOutput], after: Predictions) -> Ranked:
    """Return the kept outputs of locality probes as one batch."""
    ranks = _padded([local.ranks for local in kept], after).long()
    return Ranked(
        best=ranks[..., 0],
        top10=ranks[..., 1:],
        answer=torch.cat([local.answer_logits for local in kept]).to(after.logits),
        is_finite=_padded([local.is_finite for local in kept], after),
    )


def _padded(rows: Sequence[Tensor], after: Predictions) -> Tensor:
    """Return what is kept of some rows as one batch, padded to the length of `after`."""
    together = pad_sequence(list(rows), batch_first=True)
    missing = after.target.shape[1] - together.shape[1]
    pads = (0, 0) * (together.ndim - 2) + (0, missing)
    return pad(together, pads).to(after.target.device)


def _generations(
    base: BaseOutputs,
    edited: VLM,
    asked: Asked,
    targets: Sequence[str],
    max_new_tokens: int,
    scorer: GenerationScorer,
) -> list[dict[str, Any]]:
    """Return the fields of a record that hold the generations and their scores."""
    examples = [example for _, example in asked]
    before = base.answer(examples, max_new_tokens=max_new_tokens)
    unedited = edited is base.vlm
    after = before if unedited else edited.answer(examples, max_new_tokens=max_new_tokens)
    pre, post = (scorer(examples, [a.text for a in answers]) for answers in (before, after))
    more_pre, more_post = _fluencies(base, edited, asked, scorer.fluency_tokens)
    for row, (probe, example) in enumerate(asked):
        if probe.is_locality:
            said = before[row].text, after[row].text
            more_post[row] = {"unchanged": unchanged(*said)}
            target = example.target if probe is Probe.OLD_ENTITY else targets[row]
            if target:
                more_post[row]["leak"] = leak(*said, target)
    return [
        {
            "generated_pre": before[row].text,
            "generated_post": after[row].text,
            "cut_off_pre": before[row].is_cut_off,
            "cut_off_post": after[row].is_cut_off,
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
        old = base.answer(requests, max_new_tokens=tokens)
        unedited = edited is base.vlm
        new = old if unedited else edited.select(rows).answer(requests, max_new_tokens=tokens)
        for row, said_before, said_after in zip(rows, old, new, strict=True):
            before[row], after[row] = _fluency(said_before.text), _fluency(said_after.text)
    return before, after


def _fluency(text: str) -> dict[str, float]:
    return {"fluency": fluency(text), "repeated": repeated(text)}
