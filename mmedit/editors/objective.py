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
from mmedit.editors.base import LearnedConfig
from mmedit.errors import DataError
from mmedit.metrics import answer_nll, exact_match, kl, token_accuracy, top1
from mmedit.training.loop import SCORE
from mmedit.vlm import VLM, Predictions

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
    over all probes, and one of `vlm` over those of locality.

    Figures, after MMEdit's trainer: inner, edit, image_rephrase /acc: exact match; loc, image_loc
    /acc: the share of answer tokens whose top-1 did not move; acc/pre, acc/post: token accuracy on
    the locality answers before and after; score: the mean of what there is of the first five.
    """
    asked = [probe for probe in probes if probe in cases[0].probes]
    rows = len(cases)
    examples = [case.probes[probe][0] for probe in asked for case in cases]
    after = edited.select([row for _ in asked for row in range(rows)]).predict(examples)
    parts = {
        probe: after[slice(number * rows, (number + 1) * rows)]
        for number, probe in enumerate(asked)
    }
    terms, accuracies = {}, {}
    for probe, part in parts.items():
        if not probe.is_locality:
            terms[probe] = answer_nll(part.logits, part.target, part.is_answer).mean()
            with torch.no_grad():
                right = exact_match(part.logits, part.target, part.is_answer)
                accuracies[probe] = right.float().mean()
    drift = [probe for probe in asked if probe.is_locality]
    figures: dict[str, Tensor] = {}
    if drift:
        with torch.no_grad():
            before = vlm.predict([case.probes[probe][0] for probe in drift for case in cases])
        ground_truth = []
        for number, probe in enumerate(drift):
            old = before[slice(number * rows, (number + 1) * rows)]
            terms[probe] = divergence(old, parts[probe]).mean()
            with torch.no_grad():
                accuracies[probe] = _agreement(old, parts[probe]).mean()
                ground_truth.append(torch.stack([_right(old), _right(parts[probe])]))
        pre, post = torch.stack(ground_truth).mean(0)
        figures = {"acc/pre": pre, "acc/post": post}
    shown = {f"{NAMES[probe]}/acc": value for probe, value in accuracies.items()}
    shown[SCORE] = torch.stack(list(accuracies.values())).mean()
    losses = {f"loss/{NAMES[probe]}": term.detach() for probe, term in terms.items()}
    return Outcome({probe: terms[probe] for probe in asked}, {**shown, **figures, **losses})


def divergence(before: Predictions, after: Predictions) -> Float[Tensor, " batch"]:
    """KL(before || after), mean over the text tokens of each row. `after` may be padded further
    than `before`.
    """
    text = before.target.shape[1]
    return kl(before.logits, after.logits[:, :text], before.is_text)


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
    text = before.target.shape[1]
    return top1(before.logits, after.logits[:, :text], before.is_answer)


def _right(predictions: Predictions) -> Tensor:
    return token_accuracy(predictions.logits, predictions.target, predictions.is_answer).mean()
