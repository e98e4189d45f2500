"""The outer loss that methods which learn share, from the probes of their training cases:

    Σ w_p · nll(p) over reliability, text and image generality
  + Σ w_p · KL(base || edited)(p) over text and image locality

MMEdit's (Cheng et al. 2023): c_edit · nll(rephrase) + i_edit · nll(image rephrase) + c_loc · (KL +
KL). All terms are means over the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from mmedit.cases import EditCase, Probe
from mmedit.editors.learned import LearnedConfig
from mmedit.errors import DataError
from mmedit.metrics.locality import kl, top1
from mmedit.metrics.multiclass_log_probs import answer_nll, exact_match, token_accuracy
from mmedit.training.loop import SCORE
from mmedit.vlm.interface import VLM, Predictions

NAMES = {
    Probe.RELIABILITY: "inner",
    Probe.TEXT_GENERALITY: "edit",
    Probe.IMAGE_GENERALITY: "image_rephrase",
    Probe.TEXT_LOCALITY: "loc",
    Probe.IMAGE_LOCALITY: "image_loc",
}
"""As MMEdit's trainer logs them."""


class ObjectiveConfig(LearnedConfig):
    """The weights of the outer loss. Defaults are MMEdit's."""

    c_base: float = Field(default=0.0, ge=0)
    """Of the request's own NLL."""
    c_edit: float = Field(default=0.1, ge=0)
    i_edit: float = Field(default=0.1, ge=0)
    c_loc: float = Field(default=1.0, ge=0)
    i_loc: float = Field(default=1.0, ge=0)

    @property
    def probe_weights(self) -> dict[Probe, float]:
        """Of the probes that are trained on."""
        weights = {
            Probe.RELIABILITY: self.c_base,
            Probe.TEXT_GENERALITY: self.c_edit,
            Probe.IMAGE_GENERALITY: self.i_edit,
            Probe.TEXT_LOCALITY: self.c_loc,
            Probe.IMAGE_LOCALITY: self.i_loc,
        }
        return {probe: weight for probe, weight in weights.items() if weight}


@dataclass(frozen=True, eq=False)
class Outcome:
    """The terms of the outer loss by probe, each a 0-d mean over the batch with graph, and figures
    without.
    """

    terms: dict[Probe, Tensor] = field(default_factory=dict)
    figures: dict[str, Tensor] = field(default_factory=dict)

    def total(self, weights: Mapping[Probe, float]) -> Tensor:
        """The weighted sum of the terms."""
        return torch.stack([weights[probe] * term for probe, term in self.terms.items()]).sum()


def outcome(vlm: VLM, edited: VLM, cases: Sequence[EditCase], probes: Sequence[Probe]) -> Outcome:
    """What the probes of a batch of cases give under their separate edits. One forward of `edited`
    over the probes with an image and one over those without, and as many of `vlm` over those of
    locality.

    Figures, after MMEdit's trainer: inner, edit, image_rephrase /acc: exact match; loc, image_loc
    /acc: the share of answer tokens whose top-1 did not move; acc/pre, acc/post: token accuracy on
    the locality answers before and after; score: the mean of what there is of the first five.
    """
    after = _predict(edited, cases, probes, separate=True)
    with torch.no_grad():
        before = _predict(vlm, cases, [p for p in after if p.is_locality], separate=False)
    terms, accuracies, ground_truth = {}, {}, []
    for probe in (probe for probe in probes if probe in after):
        part = after[probe]
        if probe.is_locality:
            terms[probe] = divergence(before[probe], part).mean()
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


def groups(cases: Sequence[EditCase], probes: Sequence[Probe]) -> list[list[Probe]]:
    """The probes that go through the VLM together: those with an image, and those without, which
    need not be padded to the length of an image.
    """
    there = [probe for probe in probes if probe in cases[0].probes]
    seen = [p for p in there if any(case.probes[p][0].image is not None for case in cases)]
    unseen = [probe for probe in there if probe not in seen]
    return [group for group in (seen, unseen) if group]


def _predict(
    vlm: VLM, cases: Sequence[EditCase], probes: Sequence[Probe], *, separate: bool
) -> dict[Probe, Predictions]:
    """Every probe of every case; if `separate`, under the case's own edit."""
    rows, found = len(cases), {}
    for group in groups(cases, probes):
        asked = vlm.select([row for _ in group for row in range(rows)]) if separate else vlm
        predictions = asked.predict([case.probes[probe][0] for probe in group for case in cases])
        for number, probe in enumerate(group):
            found[probe] = predictions[slice(number * rows, (number + 1) * rows)]
    return found


def divergence(before: Predictions, after: Predictions) -> Float[Tensor, " batch"]:
    """KL(before || after), mean over the text tokens of each row. One of them may be padded further
    than the other.
    """
    old, new = _same_length(before, after)
    return kl(old.logits, new.logits, old.is_text)


def require_probes(cases: Sequence[EditCase], probes: Sequence[Probe], method: str) -> None:
    """Raise DataError where the cases do not all have the same of these probes, or none."""
    if not cases:
        raise DataError(f"{method.upper()} needs training cases; none were given")
    kinds = {frozenset(case.probes) & set(probes) for case in cases}
    if len(kinds) != 1 or not next(iter(kinds)):
        raise DataError(
            f"{method.upper()} is trained on {', '.join(probes)}; every training case must have "
            f"the same kinds of them. Found: {sorted(sorted(kind) for kind in kinds)}"
        )


def _agreement(before: Predictions, after: Predictions) -> Float[Tensor, " batch"]:
    old, new = _same_length(before, after)
    return top1(old.logits, new.logits, old.is_answer)


def _same_length(before: Predictions, after: Predictions) -> tuple[Predictions, Predictions]:
    text = min(before.target.shape[1], after.target.shape[1])
    return before.cropped(text), after.cropped(text)


def _right(predictions: Predictions) -> Tensor:
    return token_accuracy(predictions.logits, predictions.target, predictions.is_answer).mean()
