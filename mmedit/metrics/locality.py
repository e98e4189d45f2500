"""Locality: does an edit leave other answers as they were? It compares base and edited logits.

    top-k agreement = |{r ≤ k : base_r = edited_r}| / k      set overlap = |base_≤k ∩ edited_≤k| / k
    KL(base ‖ edited) = Σ_v p_base(v) (log p_base(v) - log p_edited(v))

Here base_r is the token of rank r. The rank by rank top-10 over all text positions is the published
M-Locality of MMEdit (Cheng et al. 2023, "Can We Edit Multimodal Large Language Models?"). One new
token at rank 1 shifts all others and makes it 0, so the overlap of the two sets is given beside it.
KL is the locality loss of MEND (Mitchell et al. 2022, "Fast Model Editing at Scale").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmedit.metrics.multiclass_log_probs import all_right, log_softmax, require_tokens, row_mean


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


def ranked(
    logits: Float[Tensor, "batch text vocab"], is_answer: Bool[Tensor, "batch text"]
) -> Ranked:
    """Return the part of the logits that `locality_to` reads."""
    return Ranked(best=logits.argmax(-1), top10=_top_tokens(logits, 10), answer=logits[is_answer])


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
    best, top10 = edited_logits.argmax(-1), _top_tokens(edited_logits, 10)
    same = base.best == best
    top1_answer = row_mean(same[is_answer], is_answer)
    return LocalityScores(
        top1_answer=top1_answer,
        exact_answer=all_right(top1_answer),
        top1_all=row_mean(same[is_text], is_text),
        top10_ordered_all=row_mean(_same_ranks(base.top10[is_text], top10[is_text]), is_text),
        top10_set_answer=row_mean(_overlap(base.top10[is_answer], top10[is_answer]), is_answer),
        kl=row_mean(_token_kl(base.answer, edited_logits[is_answer]), is_answer),
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
    return row_mean(base[mask].argmax(-1) == edited[mask].argmax(-1), mask)


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
    return row_mean(_same_ranks(_top_tokens(base[mask], k), _top_tokens(edited[mask], k)), mask)


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
    return row_mean(_overlap(_top_tokens(base[mask], k), _top_tokens(edited[mask], k)), mask)


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
    return row_mean(_token_kl(base[mask], edited[mask]), mask)


def _top_tokens(logits: Float[Tensor, "*tokens vocab"], k: int) -> Int[Tensor, "*tokens rank"]:
    return logits.topk(min(k, logits.shape[-1])).indices


def _same_ranks(
    base: Int[Tensor, "tokens rank"], edited: Int[Tensor, "tokens rank"]
) -> Float[Tensor, " tokens"]:
    return (base == edited).float().mean(-1)


def _overlap(
    base: Int[Tensor, "tokens rank"], edited: Int[Tensor, "tokens rank"]
) -> Float[Tensor, " tokens"]:
    return (base[:, :, None] == edited[:, None, :]).any(-1).float().mean(-1)


def _token_kl(
    base: Float[Tensor, "tokens vocab"], edited: Float[Tensor, "tokens vocab"]
) -> Float[Tensor, " tokens"]:
    log_base, log_edited = log_softmax(base), log_softmax(edited)
    base_prob = log_base.exp()
    # 0 (-inf - log q) is NaN in floating point and 0 in the limit.
    log_ratio = (log_base - log_edited).masked_fill(base_prob == 0, 0.0)
    return (base_prob * log_ratio).sum(-1)
