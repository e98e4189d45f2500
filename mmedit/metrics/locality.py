"""Locality: does an edit leave other answers as they were? It compares base and edited logits.

    top-k agreement = |{r ≤ k : base_r = edited_r}| / k      set overlap = |base_≤k ∩ edited_≤k| / k
    KL(base ‖ edited) = Σ_v p_base(v) (log p_base(v) - log p_edited(v))

Here base_r is the token of rank r. The rank by rank top-10 over all text positions is the published
M-Locality of MMEdit (Cheng et al. 2023, "Can We Edit Multimodal Large Language Models?"). One new
token at rank 1 shifts all others and makes it 0, so the overlap of the two sets is given beside it.
KL is the locality loss of MEND (Mitchell et al. 2022, "Fast Model Editing at Scale"). A score over
a position with NaN or +inf among its logits is NaN: a model that is broken has no best token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmedit.metrics.multiclass_log_probs import (
    all_right,
    known,
    log_softmax,
    require_tokens,
    row_mean,
)

AT_ONCE = 2**20
"""Number of logits whose KL is computed at once: 4 MB in float32, which a processor's cache holds.
"""


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class LocalityScores:
    """One number per sequence: over its "answer" positions, or over "all" text positions."""

    top1_answer: Float[Tensor, " batch"]
    """Share of answer positions where base and edited argmax agree."""
    exact_answer: Float[Tensor, " batch"]
    """1 if they agree at every answer position, else 0."""
    top1_all: Float[Tensor, " batch"]
    """Share of text positions where they agree."""
    top10_ordered_all: Float[Tensor, " batch"]
    """Share of agreeing ranks of the two top-10 lists, over text positions."""
    top10_set_answer: Float[Tensor, " batch"]
    """Mean overlap of the two top-10 sets, over answer positions."""
    kl: Float[Tensor, " batch"]
    """Mean KL(base ‖ edited) in nats, over answer positions."""


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Ranked:
    """The part of the base logits that locality needs, small enough to be kept."""

    best: Int[Tensor, "batch text"]
    """The argmax of every position."""
    top10: Int[Tensor, "batch text rank"]
    """The ten best tokens, best first, or all of a smaller vocabulary."""
    answer: Float[Tensor, "tokens vocab"]
    """Logits at the answer positions, row after row."""
    is_finite: Bool[Tensor, "batch text"]
    """Positions without NaN and +inf among their logits."""


def ranked(
    logits: Float[Tensor, "batch text vocab"], is_answer: Bool[Tensor, "batch text"]
) -> Ranked:
    """Return the part of the logits that `locality_to` reads."""
    top = _top(logits, 10)
    return Ranked(
        best=logits.argmax(-1),
        top10=top.indices,
        answer=logits[is_answer],
        is_finite=~(top.values[..., 0].isnan() | top.values[..., 0].isposinf()),
    )


def locality(
    base_logits: Float[Tensor, "batch text vocab"],
    edited_logits: Float[Tensor, "batch text vocab"],
    *,
    is_text: Bool[Tensor, "batch text"],
    is_answer: Bool[Tensor, "batch text"],
) -> LocalityScores:
    """Return all locality scores of a batch. KL is over the answer positions.

    Masks mark the positions of the logits by the tokens that they predict. Raises EmptyAnswerError
    naming the rows without any text or answer position.
    """
    base = ranked(base_logits, is_answer)
    return locality_to(base, edited_logits, is_text=is_text, is_answer=is_answer)


def locality_to(
    base: Ranked,
    edited_logits: Float[Tensor, "batch text vocab"],
    *,
    is_text: Bool[Tensor, "batch text"],
    is_answer: Bool[Tensor, "batch text"],
) -> LocalityScores:
    """Return what `locality` does, from the kept part of the base logits."""
    require_tokens(is_text)
    require_tokens(is_answer)
    edited = ranked(edited_logits, is_answer)
    finite = base.is_finite & edited.is_finite

    def mean(agreement: Tensor, mask: Tensor) -> Tensor:
        return row_mean(agreement.float().where(finite[mask], torch.nan), mask)

    same = base.best == edited.best
    top1_answer = mean(same[is_answer], is_answer)
    sets = _overlap(base.top10[is_answer], edited.top10[is_answer])
    ordered = _same_ranks(base.top10[is_text], edited.top10[is_text])
    return LocalityScores(
        top1_answer=top1_answer,
        exact_answer=all_right(top1_answer),
        top1_all=mean(same[is_text], is_text),
        top10_ordered_all=mean(ordered, is_text),
        top10_set_answer=mean(sets, is_answer),
        kl=row_mean(_token_kl(base.answer, edited.answer), is_answer),
    )


def top1(
    base: Float[Tensor, "batch text vocab"],
    edited: Float[Tensor, "batch text vocab"],
    mask: Bool[Tensor, "batch text"],
) -> Float[Tensor, " batch"]:
    """Return the share of masked-in positions where base and edited argmax agree.

    Raises EmptyAnswerError for rows without such a position.
    """
    require_tokens(mask)
    old, new = base[mask], edited[mask]
    same = old.argmax(-1) == new.argmax(-1)
    return row_mean(known(same, old.amax(-1), new.amax(-1)), mask)


def exact(
    base: Float[Tensor, "batch text vocab"],
    edited: Float[Tensor, "batch text vocab"],
    mask: Bool[Tensor, "batch text"],
) -> Float[Tensor, " batch"]:
    """Return 1 if base and edited argmax agree at every masked-in position, else 0.

    Raises EmptyAnswerError for rows without such a position.
    """
    return all_right(top1(base, edited, mask))


def topk_ordered(
    base: Float[Tensor, "batch text vocab"],
    edited: Float[Tensor, "batch text vocab"],
    mask: Bool[Tensor, "batch text"],
    k: int = 10,
) -> Float[Tensor, " batch"]:
    """Return the share of ranks 1 to k with the same token, averaged over masked-in positions.

    A vocabulary smaller than k is compared whole. Equal logits have the order of `torch.topk`.
    Raises EmptyAnswerError for rows without masked-in position.
    """
    require_tokens(mask)
    old, new = _top(base[mask], k), _top(edited[mask], k)
    same = _same_ranks(old.indices, new.indices)
    return row_mean(known(same, old.values[..., 0], new.values[..., 0]), mask)


def topk_set(
    base: Float[Tensor, "batch text vocab"],
    edited: Float[Tensor, "batch text vocab"],
    mask: Bool[Tensor, "batch text"],
    k: int = 10,
) -> Float[Tensor, " batch"]:
    """Return the share of the base's k best tokens that are among the edited k best, in any order.

    Averaged over masked-in positions. A vocabulary smaller than k is compared whole: the overlap is
    then 1. Raises EmptyAnswerError for rows without masked-in position.
    """
    require_tokens(mask)
    old, new = _top(base[mask], k), _top(edited[mask], k)
    shared = _overlap(old.indices, new.indices)
    return row_mean(known(shared, old.values[..., 0], new.values[..., 0]), mask)


def kl(
    base: Float[Tensor, "batch text vocab"],
    edited: Float[Tensor, "batch text vocab"],
    mask: Bool[Tensor, "batch text"],
) -> Float[Tensor, " batch"]:
    """Return KL(base ‖ edited) in nats, averaged over masked-in positions.

    It is differentiable in `edited`. A token with probability 0 under the base adds 0; one that
    only the edit rules out (-inf) makes it infinite. Raises EmptyAnswerError for rows without
    masked-in position.
    """
    require_tokens(mask)
    return row_mean(_token_kl(base.flatten(0, 1), edited.flatten(0, 1), mask.flatten()), mask)


def _top(logits: Float[Tensor, "*tokens vocab"], k: int) -> torch.return_types.topk:
    """Return the k largest logits, NaN first, and their tokens."""
    return logits.topk(min(k, logits.shape[-1]))


def _same_ranks(
    base: Int[Tensor, "tokens rank"], edited: Int[Tensor, "tokens rank"]
) -> Float[Tensor, " tokens"]:
    return (base == edited).float().mean(-1)


def _overlap(
    base: Int[Tensor, "tokens rank"], edited: Int[Tensor, "tokens rank"]
) -> Float[Tensor, " tokens"]:
    return (base[:, :, None] == edited[:, None, :]).any(-1).float().mean(-1)


def _token_kl(
    base: Float[Tensor, "positions vocab"],
    edited: Float[Tensor, "positions vocab"],
    mask: Bool[Tensor, " positions"] | None = None,
) -> Float[Tensor, " tokens"]:
    """Return the KL at the masked-in positions, by default at all."""
    apply: Any = _TokenKL.apply
    everywhere = torch.ones(len(edited), dtype=torch.bool, device=edited.device)
    return apply(base, edited, (everywhere if mask is None else mask).nonzero().flatten())


class _TokenKL(torch.autograd.Function):
    """KL(base ‖ edited) at some positions. Its gradient, p_edited - p_base, is all that is
    kept for the backward pass; what it takes besides is as large as a few positions.
    """

    @staticmethod
    def forward(
        ctx: Any,
        base: Float[Tensor, "positions vocab"],
        edited: Float[Tensor, "positions vocab"],
        index: Int[Tensor, " tokens"],
    ) -> Float[Tensor, " tokens"]:
        found, slopes = [], []
        for some in index.split(max(1, AT_ONCE // edited.shape[-1])):
            log_base, log_edited = log_softmax(base[some]), log_softmax(edited[some])
            base_prob = log_base.exp()
            # 0 (-inf - log q) is NaN in floating point and 0 in the limit.
            log_ratio = log_base.sub_(log_edited).masked_fill_(base_prob == 0, 0.0)
            found.append(log_ratio.mul_(base_prob).sum(-1))
            if ctx.needs_input_grad[1]:
                slopes.append(log_edited.exp_().sub_(base_prob).to(edited.dtype))
        if slopes:
            ctx.save_for_backward(index, torch.cat(slopes))
            ctx.shape = edited.shape
        return torch.cat(found)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gradient: Float[Tensor, " tokens"]
    ) -> tuple[None, Tensor, None]:
        index, slopes = ctx.saved_tensors
        whole = slopes.new_zeros(ctx.shape)
        whole.index_copy_(0, index, slopes * gradient.unsqueeze(-1).to(slopes))
        return None, whole, None
