"""SERAC's formulas (Mitchell et al. 2022): similarity, mixture, and classification loss; and the
fusion of MSCKE's scope.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

Distance = Literal["squared_euclidean", "euclidean", "cosine"]
EPSILON = torch.finfo(torch.float32).eps


def log_similarity(
    tests: Float[Tensor, "tests width"],
    cache: Float[Tensor, "cache width"],
    *,
    distance: Distance = "squared_euclidean",
    heads: int = 1,
    bound: bool = False,
    scale: float = 1.0,
) -> Float[Tensor, "tests cache"]:
    """Return -scale · distance of every test to every cached edit, the log of the similarity.

    With several `heads` the embeddings are cut into equal parts, and the smallest distance counts.
    `bound` applies tanh first. One matrix product in float64, since squares of nearly equal numbers
    cancel.
    """
    if bound:
        tests, cache = tests.tanh(), cache.tanh()
    a, b = (_parts(embedded, heads) for embedded in (tests, cache))  # [heads, n, width]
    if distance == "cosine":
        away = 1 - F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).mT
    else:
        squares = (a**2).sum(-1).unsqueeze(-1) + (b**2).sum(-1).unsqueeze(-2)
        away = (squares - 2 * a @ b.mT).clamp(min=0)
        if distance == "euclidean":
            away = away.where(away > 0, 1).sqrt().where(away > 0, 0)  # no infinite gradient at 0
    return (-scale * away.amin(0)).to(tests.dtype)


def fuse(
    text: Float[Tensor, "batch width"],
    image: Float[Tensor, "batch tokens width"],
    there: Bool[Tensor, "batch tokens"],
) -> Float[Tensor, "batch width"]:
    """Return softmax(t I^T) I per row, over the tokens of the row's own image alone."""
    weights = torch.einsum("bw,btw->bt", text, image).masked_fill(~there, -torch.inf).softmax(-1)
    return torch.einsum("bt,btw->bw", weights, image)


def _parts(embedded: Float[Tensor, "n width"], heads: int) -> Float[Tensor, "heads n part"]:
    return embedded.double().reshape(len(embedded), heads, -1).transpose(0, 1)


def over_vocabulary(
    counterfactual: Float[Tensor, "batch text smaller"], base: Float[Tensor, "batch text vocab"]
) -> Float[Tensor, "batch text vocab"]:
    """Return the counterfactual model's logits over the vocabulary of the base model.

    Models with the same tokenizer may have vocabularies of different sizes. A token that the
    smaller one lacks keeps its probability under the base model, and the counterfactual
    distribution is scaled to the rest:

        p(v) = p_base(v) for tokens it lacks    p(v) = p_counterfactual(v) Σ_{known w} p_base(w)

    So the probabilities sum to 1, and none becomes 0. Logits of the same vocabulary stay as they
    are.
    """
    size, known = base.shape[-1], counterfactual.shape[-1]
    if known >= size:
        return counterfactual[..., :size]
    base = base.float()
    mass = base[..., :known].logsumexp(-1, keepdim=True)
    return torch.cat([counterfactual.float().log_softmax(-1) + mass, base[..., known:]], dim=-1)


def mix(
    base: Float[Tensor, "batch text vocab"],
    counterfactual: Float[Tensor, "batch text vocab"],
    score: Float[Tensor, " batch"],
) -> Float[Tensor, "batch text vocab"]:
    """Return log((1 - s) · p_base + s · p_counterfactual + ε), in float32."""
    s = score.float()[:, None, None]
    both = (1 - s) * base.float().softmax(-1) + s * counterfactual.float().softmax(-1)
    return (both + EPSILON).log()


def classification_loss(
    log_similarities: Float[Tensor, "tests cache"], in_scope: Bool[Tensor, "tests cache"]
) -> Float[Tensor, ""]:
    """Return the mean of -log s over the pairs in scope, plus the mean of -log(1 - s) over the
    others. A mean over no pairs is 0.
    """
    outside = -torch.expm1(log_similarities)
    outside = outside.where(outside > 0, EPSILON)
    return _mean(-log_similarities, in_scope) + _mean(-outside.log(), ~in_scope)


def _mean(values: Tensor, where: Tensor) -> Tensor:
    return values.where(where, 0).sum() / where.sum().clamp(min=1)
