"""Teacher-forced scores of an answer y of n tokens after a prompt x, all from one forward pass.

    log_prob = Σ_t log p(y_t | x, y_<t)                  nll         = -log_prob / n
    accuracy = Σ_t [argmax p(· | x, y_<t) = y_t] / n     exact match = [accuracy = 1]

Names and pooled means are those of the code published with MEND (Mitchell et al. 2022, "Fast Model
Editing at Scale") and MMEdit (Cheng et al. 2023, "Can We Edit Multimodal Large Language Models?").
Here every score is first one number per sequence. Only the answer's rows of the logits are read, so
a float32 copy is made of these alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmedit.errors import DataError, EmptyAnswerError

NOT_SCORED = -100
"""The label outside the answer, as in torch's cross-entropy and in transformers."""


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class MulticlassLogProbs:
    """Scores of every sequence, with the pooled numbers of the published code as properties."""

    token_accuracy: Float[Tensor, " batch"]
    """Share of answer tokens whose argmax is the label."""
    exact_match: Float[Tensor, " batch"]
    """1 if every answer token's argmax is the label, else 0."""
    log_prob: Float[Tensor, " batch"]
    """Log-probability of the answer in nats, summed over its tokens."""
    token_prob: Float[Tensor, " batch"]
    """Mean probability of the answer tokens; not exp of their mean log-probability."""
    n_tokens: Int[Tensor, " batch"]
    """Length of the answer."""

    @property
    def acc(self) -> Float[Tensor, ""]:
        """Share of right tokens among all answer tokens of the batch: the micro mean."""
        return self._per_token(self.token_accuracy * self.n_tokens)

    @property
    def exact_match_acc(self) -> Float[Tensor, ""]:
        """Mean of `exact_match` over sequences."""
        return self.exact_match.mean()

    @property
    def nll(self) -> Float[Tensor, ""]:
        """Negative log-likelihood per answer token of the batch."""
        return -self._per_token(self.log_prob)

    @property
    def prob(self) -> Float[Tensor, ""]:
        """Mean probability of all answer tokens of the batch."""
        return self._per_token(self.token_prob * self.n_tokens)

    def _per_token(self, row_sums: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
        return row_sums.sum() / self.n_tokens.sum()


def multiclass_log_probs(
    # The shapes are checked below: a caller's own tensors deserve an error that says what to do.
    logits: Float[Tensor, "..."] | Float[np.ndarray, "..."],
    labels: Int[Tensor, "..."] | Int[np.ndarray, "..."],
    *,
    shift: bool = False,
) -> MulticlassLogProbs:
    """Score logits against labels that are -100 outside the answer; both tensors, or numpy arrays.

    Logits [batch, text, vocab] go with labels [batch, text]; logits [batch, vocab] with labels
    [batch] are one position per row. With `shift`, position t is scored against label t + 1, as the
    raw logits of a causal language model need: the last logit and the first label are dropped.
    One position per row cannot be shifted. Raises DataError for other shapes and for labels
    outside the vocabulary, EmptyAnswerError naming the rows without answer token. The scores of a
    row with NaN or +inf among its logits are NaN.

    >>> logits = torch.eye(3)[torch.tensor([[0, 1, 2], [2, 2, 0]])]
    >>> scores = multiclass_log_probs(logits, torch.tensor([[0, 1, 1], [-100, 2, -100]]))
    >>> scores.token_accuracy, scores.exact_match
    (tensor([0.6667, 1.0000]), tensor([0., 1.]))
    >>> scores.acc, scores.exact_match_acc
    (tensor(0.7500), tensor(0.5000))
    """
    logits, target = _aligned(_tensor(logits), _tensor(labels), shift=shift)
    mask = target != NOT_SCORED
    require_tokens(mask)
    _require_in_vocabulary(target[mask], vocab=logits.shape[-1])
    answer_logits = logits[mask]
    log_prob = _log_prob_of(answer_logits, target[mask])
    accuracy = row_mean(known(answer_logits.argmax(-1) == target[mask], log_prob), mask)
    return MulticlassLogProbs(
        token_accuracy=accuracy,
        exact_match=all_right(accuracy),
        log_prob=row_sum(log_prob, mask),
        token_prob=row_mean(log_prob.exp(), mask),
        n_tokens=mask.sum(-1),
    )


def _tensor(values: Any) -> Tensor:
    """Return a tensor or an array as a tensor. Raises DataError."""
    if not isinstance(values, Tensor | np.ndarray):
        raise DataError(
            f"logits and labels were given as {type(values).__name__}; expected tensors: "
            "torch.tensor(...)"
        )
    return torch.as_tensor(values)


def token_accuracy(
    logits: Float[Tensor, "batch text vocab"],
    target: Int[Tensor, "batch text"],
    mask: Bool[Tensor, "batch text"],
) -> Float[Tensor, " batch"]:
    """Return the share of masked-in tokens whose argmax is the target.

    Averaging over sequences is the macro token accuracy; weight by `mask.sum(-1)` for the micro
    one. They differ whenever answers differ in length. Raises EmptyAnswerError for rows without
    token.

    >>> logits = torch.eye(3)[torch.tensor([[0, 1, 2, 2]])]
    >>> mask = torch.tensor([[True, True, True, False]])
    >>> token_accuracy(logits, torch.tensor([[0, 1, 1, 0]]), mask)
    tensor([0.6667])
    """
    require_tokens(mask)
    best, index = logits[mask].max(-1)
    return row_mean(known(index == target[mask], best), mask)


def exact_match(
    logits: Float[Tensor, "batch text vocab"],
    target: Int[Tensor, "batch text"],
    mask: Bool[Tensor, "batch text"],
) -> Float[Tensor, " batch"]:
    """Return 1 if the argmax is the target at every masked-in token, else 0.

    Never larger than `token_accuracy`, and equal to it where the answer is one token. Raises
    EmptyAnswerError for rows without token: the published code counts those as a match.

    >>> logits = torch.eye(3)[torch.tensor([[0, 1, 2, 2], [0, 1, 2, 2]])]
    >>> mask = torch.tensor([[True, True, True, False]]).repeat(2, 1)
    >>> exact_match(logits, torch.tensor([[0, 1, 1, 0], [0, 1, 2, 0]]), mask)
    tensor([0., 1.])
    """
    return all_right(token_accuracy(logits, target, mask))


def answer_log_prob(
    logits: Float[Tensor, "batch text vocab"],
    target: Int[Tensor, "batch text"],
    mask: Bool[Tensor, "batch text"],
) -> Float[Tensor, " batch"]:
    """Return the log-probability of the masked-in target tokens in nats, summed per row.

    It is differentiable.

    Raises EmptyAnswerError for rows without token.
    """
    require_tokens(mask)
    return row_sum(_log_prob_of(logits[mask], target[mask]), mask)


def answer_nll(
    logits: Float[Tensor, "batch text vocab"],
    target: Int[Tensor, "batch text"],
    mask: Bool[Tensor, "batch text"],
) -> Float[Tensor, " batch"]:
    """Return the mean negative log-likelihood of the masked-in target tokens, per row.

    It is differentiable, and training losses are made of it. Summed over rows, it gives each row a
    gradient that does not depend on the rest of the batch. Raises EmptyAnswerError for rows
    without token.
    """
    return -answer_log_prob(logits, target, mask) / mask.sum(-1)


def require_tokens(mask: Bool[Tensor, "batch text"]) -> None:
    """Raise EmptyAnswerError naming the rows of the mask that are False throughout."""
    if mask.dtype != torch.bool:  # integers would select positions by number, silently
        raise DataError(f"found a mask of {mask.dtype}, expected bool: use `mask.bool()`")
    empty = (~mask.any(-1)).nonzero().flatten().tolist()
    if empty:
        raise EmptyAnswerError(
            f"no token to score in rows {', '.join(map(str, empty))} of {len(mask)}; give them an"
            " answer or leave them out (a label at position 0 is lost where labels are shifted)"
        )


def row_sum(
    values: Float[Tensor, " tokens"] | Bool[Tensor, " tokens"], mask: Bool[Tensor, "batch text"]
) -> Float[Tensor, " batch"]:
    """Return the sum per row of the values at masked-in positions, in the order of `x[mask]`."""
    values = values.to(_at_least_float32(values))
    return values.new_zeros(mask.shape).masked_scatter(mask, values).sum(-1)


def row_mean(
    values: Float[Tensor, " tokens"] | Bool[Tensor, " tokens"], mask: Bool[Tensor, "batch text"]
) -> Float[Tensor, " batch"]:
    """Return the mean per row of the values at masked-in positions, in the order of `x[mask]`."""
    return row_sum(values, mask) / mask.sum(-1)


def known(
    agreement: Bool[Tensor, " tokens"] | Float[Tensor, " tokens"],
    *witnesses: Float[Tensor, " tokens"],
) -> Float[Tensor, " tokens"]:
    """Return the agreement, NaN where a witness is NaN or +inf: the largest logit of a token, or a
    log-probability.
    """
    values = agreement.to(_at_least_float32(agreement))
    for witness in witnesses:
        values = values.masked_fill(witness.isnan() | witness.isposinf(), torch.nan)
    return values


def all_right(share: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Return 1 for rows whose share of right tokens is 1, NaN for NaN, else 0."""
    right = (share == 1).to(share.dtype)  # exact: n / n is 1, and no smaller share rounds to 1
    return right.masked_fill(share.isnan(), torch.nan)


def log_softmax(logits: Float[Tensor, "tokens vocab"]) -> Float[Tensor, "tokens vocab"]:
    """Return log-probabilities in float32, also of half precision; float64 stays float64."""
    return logits.log_softmax(-1, dtype=_at_least_float32(logits))


def _at_least_float32(values: Tensor) -> torch.dtype:
    return torch.promote_types(values.dtype, torch.float32)


def _log_prob_of(
    logits: Float[Tensor, "tokens vocab"], target: Int[Tensor, " tokens"]
) -> Float[Tensor, " tokens"]:
    # `logits - logsumexp` would need as many float32 copies and round at the logits' own magnitude.
    return log_softmax(logits).gather(-1, target[:, None]).squeeze(-1)


def _aligned(
    logits: Tensor, labels: Tensor, *, shift: bool
) -> tuple[Float[Tensor, "batch text vocab"], Int[Tensor, "batch text"]]:
    if logits.ndim not in (2, 3) or logits.shape[:-1] != labels.shape or 0 in logits.shape:
        raise DataError(
            f"logits {list(logits.shape)} do not go with labels {list(labels.shape)}; expected"
            " logits [batch, text, vocab] with labels [batch, text], or [batch, vocab] with [batch]"
        )
    if logits.ndim == 2:
        return logits[:, None], labels[:, None]
    return (logits[:, :-1], labels[:, 1:]) if shift else (logits, labels)


def _require_in_vocabulary(target: Int[Tensor, " tokens"], *, vocab: int) -> None:
    # An index error inside a GPU kernel names no label, and leaves the process without the GPU.
    outside = target[(target < 0) | (target >= vocab)]
    if len(outside):
        raise DataError(
            f"label {int(outside[0])} is outside a vocabulary of {vocab} tokens;"
            f" expected 0 to {vocab - 1}, or {NOT_SCORED} outside the answer"
        )
