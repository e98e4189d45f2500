"""The outer loss of the methods that learn, computed on the probes of training cases:

    Σ_p w_p · nll(p)                  over reliability, text and image generality
  + Σ_p w_p · KL(base || edited)(p)   over text and image locality

and with weights > 0 over the fine probes of FGVEdit and the locality probes of De-VQA
(`mmedit.datasets.neighbours`).

With the default weights it is the loss of MMEdit (Cheng et al. 2023, Can We Edit Multimodal Large
Language Models?): c_edit · nll(rephrase) + i_edit · nll(image rephrase) + c_loc · KL + i_loc · KL.
With ri_loc 0.1, ci_loc 1 and ni_loc 1 besides it is the balanced loss of De-VQA (AAAI 2026). All
terms are means over the batch, and of each probe the first example is asked: random image T1 I3,
consistent image T2 I2, no image T1. What is forced there is an answer of the data, never the edit's
target.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from mmedit.cases import OWN_ANSWER, EditCase, Example, Probe
from mmedit.editors.learned import LearnedConfig
from mmedit.errors import DataError
from mmedit.metrics.locality import kl, top1
from mmedit.metrics.multiclass_log_probs import (
    answer_nll,
    exact_match,
    log_softmax,
    row_mean,
    token_accuracy,
)
from mmedit.training.learner import SCORE
from mmedit.vlm.interface import VLM
from mmedit.vlm.outputs import Predictions
from mmedit.vlm.prepared import Asked

NAMES = {
    Probe.RELIABILITY: "inner",
    Probe.TEXT_GENERALITY: "edit",
    Probe.IMAGE_GENERALITY: "image_rephrase",
    Probe.TEXT_LOCALITY: "loc",
    Probe.IMAGE_LOCALITY: "image_loc",
    Probe.FINE_GENERALITY: "fine",
    Probe.FINE_LOCALITY: "fine_loc",
    Probe.RANDOM_IMAGE: "random_image_loc",
    Probe.CONSISTENT_IMAGE: "consistent_image_loc",
    Probe.NO_IMAGE: "no_image_loc",
}
"""Names of the probes in the log, as MMEdit's trainer writes them."""


class ObjectiveConfig(LearnedConfig):
    """Weights of the outer loss. A probe with weight 0 is not trained on."""

    c_base: float = Field(default=0.0, ge=0)
    """Weight of the request's own NLL (reliability). MMEdit: 0."""
    c_edit: float = Field(default=0.1, ge=0)
    """Weight of the rephrase's NLL (text generality). MMEdit: 0.1."""
    i_edit: float = Field(default=0.1, ge=0)
    """Weight of the other image's NLL (image generality). MMEdit: 0.1."""
    c_loc: float = Field(default=1.0, ge=0)
    """Weight of the KL on questions without image (text locality). MMEdit: 1."""
    i_loc: float = Field(default=1.0, ge=0)
    """Weight of the KL on questions about another image (image locality). MMEdit: 1."""

    fg_edit: float = Field(default=0.0, ge=0)
    """Weight of the NLL of another question in the edit's scope about its own image (FG-Gen). These
    two count where the training cases have such probes (FGVEdit).
    """
    fg_loc: float = Field(default=0.0, ge=0)
    """Weight of the KL on a question out of the edit's scope about its own image (FG-Loc)."""

    ri_loc: float = Field(default=0.0, ge=0)
    """Weight of the KL on the edit's question about another image (RI). Balanced: 0.1. These three
    need training cases with the probes of De-VQA: --set dataset.probes=devqa.
    """
    ci_loc: float = Field(default=0.0, ge=0)
    """Weight of the KL on a similar question about its own image (CI). Balanced: 1."""
    ni_loc: float = Field(default=0.0, ge=0)
    """Weight of the KL on the edit's question without an image (NI). Balanced: 1."""

    @property
    def probe_weights(self) -> dict[Probe, float]:
        """Weights of the probes that are trained on."""
        weights = {
            Probe.RELIABILITY: self.c_base,
            Probe.TEXT_GENERALITY: self.c_edit,
            Probe.IMAGE_GENERALITY: self.i_edit,
            Probe.TEXT_LOCALITY: self.c_loc,
            Probe.IMAGE_LOCALITY: self.i_loc,
            Probe.FINE_GENERALITY: self.fg_edit,
            Probe.FINE_LOCALITY: self.fg_loc,
            Probe.RANDOM_IMAGE: self.ri_loc,
            Probe.CONSISTENT_IMAGE: self.ci_loc,
            Probe.NO_IMAGE: self.ni_loc,
        }
        return {probe: weight for probe, weight in weights.items() if weight}


@dataclass(frozen=True, eq=False)
class Outcome:
    """The outer loss of a batch in its parts."""

    terms: dict[Probe, Tensor] = field(default_factory=dict)
    """Unweighted loss by probe: a 0-d mean over the batch, with graph."""
    figures: dict[str, Tensor] = field(default_factory=dict)
    """Figures to report, 0-d, without graph."""

    def total(self, weights: Mapping[Probe, float]) -> Tensor:
        """Return the weighted sum of the terms."""
        return torch.stack([weights[probe] * term for probe, term in self.terms.items()]).sum()


Answering = Callable[[Sequence[Probe]], VLM]
"""Gives the VLM that answers a group of probes, in the rows of `rows_of`."""
Divergence = Callable[[Predictions, Predictions], Tensor]
"""A loss of each row, from its predictions before and after the edit."""


def divergence(before: Predictions, after: Predictions) -> Float[Tensor, " batch"]:
    """Return KL(before || after), the mean over the text tokens of each row. The two may be padded
    to different lengths.
    """
    old, new = _same_length(before, after)
    return kl(old.logits, new.logits, old.is_text)


def reverse_divergence(before: Predictions, after: Predictions) -> Float[Tensor, " batch"]:
    """Return KL(after || before), as `divergence`; differentiable in both."""
    old, new = _same_length(before, after)
    mask = old.is_text
    log_new, log_old = (log_softmax(one.logits[mask]) for one in (new, old))
    return row_mean((log_new.exp() * (log_new - log_old)).sum(-1), mask)


def outcome(vlm: VLM, edited: VLM, cases: Sequence[EditCase], probes: Sequence[Probe]) -> Outcome:
    """Return losses and figures of a batch of cases, each under its own edit.

    Costs one forward of `edited` over the probes with an image and one over the probes without, and
    the same of `vlm` over the locality probes.

    Figures, with the names of MMEdit's trainer: inner/acc, edit/acc, image_rephrase/acc: exact
    match; loc/acc, image_loc/acc: share of answer tokens whose top-1 did not change; acc/pre,
    acc/post: token accuracy on the locality answers before and after; score: the mean of the
    accuracies that exist.
    """

    def own_edits(group: Sequence[Probe]) -> VLM:
        return edited.select([row for _ in group for row in range(len(cases))])

    return outcome_under(own_edits, vlm, cases, probes)


def outcome_under(
    answering: Answering,
    vlm: VLM,
    cases: Sequence[EditCase],
    probes: Sequence[Probe],
    *,
    drift: Divergence = divergence,
) -> Outcome:
    """Return what `outcome` does, for edits that depend on what is asked; with another loss on the
    locality probes if one is given.
    """
    after = _predict(answering, cases, probes)
    with torch.no_grad():
        before = _predict(lambda _: vlm, cases, [p for p in after if p.is_locality])
    terms, accuracies, ground_truth = {}, {}, []
    for probe in (probe for probe in probes if probe in after):
        part = after[probe]
        if probe.is_locality:
            terms[probe] = drift(before[probe], part).mean()
        else:
            terms[probe] = answer_nll(part.logits, part.target, part.is_answer).mean()
        with torch.no_grad():
            if probe.is_locality:
                accuracies[probe] = _agreement(before[probe], part).mean()
                ground_truth.append(torch.stack([_right(before[probe]), _right(part)]))
            else:
                right = exact_match(part.logits, part.target, part.is_answer)
                accuracies[probe] = right.float().mean()
    figures = {f"{NAMES[probe]}/acc": value for probe, value in accuracies.items()}
    figures[SCORE] = torch.stack(list(accuracies.values())).mean()
    if ground_truth:
        figures["acc/pre"], figures["acc/post"] = torch.stack(ground_truth).mean(0)
    figures |= {f"loss/{NAMES[probe]}": term.detach() for probe, term in terms.items()}
    return Outcome(terms, figures)


def asked(cases: Sequence[EditCase], probes: Sequence[Probe], sites: Sequence[str] = ()) -> Asked:
    """Return what `outcome` asks of these cases: of edits at these sites every probe, and their
    requests to make them; of the base model the locality probes.
    """
    return Asked(
        edited=[*(case.request for case in cases), *examples_of(cases, probes)],
        sites=sites,
        base=examples_of(cases, [probe for probe in probes if probe.is_locality]),
    )


def examples_of(cases: Sequence[EditCase], probes: Sequence[Probe]) -> list[Example]:
    """Return the examples of these probes that training asks: the first one of each."""
    there = ((case, probe) for case in cases for probe in probes if probe in case.probes)
    return [case.probes[probe][0] for case, probe in there]


def groups(cases: Sequence[EditCase], probes: Sequence[Probe]) -> list[list[Probe]]:
    """Return the probes in groups that go through the VLM together: first the probes with an image,
    then the probes without, which need no padding to the length of an image.
    """
    there = [probe for probe in probes if probe in cases[0].probes]
    seen = [p for p in there if any(case.probes[p][0].image is not None for case in cases)]
    unseen = [probe for probe in there if probe not in seen]
    return [group for group in (seen, unseen) if group]


def rows_of(cases: Sequence[EditCase], probes: Sequence[Probe]) -> list[Example]:
    """Return the examples of a group of probes as the rows of a batch: all cases of the first
    probe, then all of the next.
    """
    return [case.probes[probe][0] for probe in probes for case in cases]


def _predict(
    answering: Answering, cases: Sequence[EditCase], probes: Sequence[Probe]
) -> dict[Probe, Predictions]:
    """Predict every probe of every case."""
    rows, found = len(cases), {}
    for group in groups(cases, probes):
        predictions = answering(group).predict(
            rows_of(cases, group),
            answers_only=[not probe.is_locality for probe in group for _ in cases],
        )
        found |= zip(group, predictions.split(rows), strict=True)
    return found


def require_probes(cases: Sequence[EditCase], probes: Sequence[Probe], method: str) -> None:
    """Raise DataError unless all cases have the same ones of these probes, and at least one; and
    those of De-VQA, which nobody asks for by accident.
    """
    if not cases:
        raise DataError(f"{method.upper()} needs training cases; none were given")
    kinds = {frozenset(case.probes) & set(probes) for case in cases}
    if len(kinds) != 1 or not next(iter(kinds)):
        found = "; ".join(sorted(", ".join(sorted(kind)) or "none" for kind in kinds))
        raise DataError(
            f"{method.upper()} is trained on {', '.join(probes)}; every training case must have "
            f"the same kinds of them. Found cases with: {found}"
        )
    lacking = [probe for probe in probes if probe in OWN_ANSWER and probe not in cases[0].probes]
    if lacking:
        raise DataError(
            f"{method.upper()} is trained on {', '.join(lacking)} too, which the training cases do "
            "not have; add them with --set dataset.probes=devqa, or set ri_loc, ci_loc and ni_loc "
            "to 0"
        )


def _agreement(before: Predictions, after: Predictions) -> Float[Tensor, " batch"]:
    old, new = _same_length(before, after)
    return top1(old.logits, new.logits, old.is_answer)


def _same_length(before: Predictions, after: Predictions) -> tuple[Predictions, Predictions]:
    text = min(before.target.shape[1], after.target.shape[1])
    return before.cropped(text), after.cropped(text)


def _right(predictions: Predictions) -> Tensor:
    return token_accuracy(predictions.logits, predictions.target, predictions.is_answer).mean()
