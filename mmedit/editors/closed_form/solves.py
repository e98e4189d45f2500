"""The closed forms of ROME, MEMIT, AlphaEdit and UltraEdit, as low-rank deltas.

A key k is an input of the edited Linear. MEMIT, AlphaEdit and UltraEdit are one formula with three
matrices M. With the n keys of an edit in the rows of K, and what to add at each in the rows of R,

    ΔW = Rᵀ K (M + KᵀK)⁻¹ = Rᵀ (I + K M⁻¹Kᵀ)⁻¹ K M⁻¹

so an edit has rank n and costs an n × n solve, never an in × in one. M is the weighted second
moment λC (MEMIT), λ₂I + ŜᵀŜ of the keys edited before (AlphaEdit), or I (UltraEdit).

Everything is computed in float64. The factors are float64 if an argument is, else float32. With an
`edits` axis in front, all separate edits are solved in one batch. Zero keys may pad an edit: they
change nothing.
"""

from __future__ import annotations

from functools import reduce

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmedit.deltas import LowRank
from mmedit.editors.closed_form.normaliser import Normaliser
from mmedit.editors.closed_form.second_moment import Factor, NullSpace, solve_rows
from mmedit.errors import EditError

ORTHOGONAL = 1e-6
"""Smallest |cosine| between a key and the direction of ROME's edit that can be divided by."""


def rome_delta(
    mean_keys: Float[Tensor, "*edits n in"],
    keys: Float[Tensor, "*edits n in"],
    changes: Float[Tensor, "*edits n out"],
    factor: Factor | None,
) -> LowRank:
    """Return the delta of rank n that adds `changes` at `keys` (ROME, Meng et al. 2022; of several
    keys the equality constraint of Gupta et al. 2024, A Unified Framework for Model Editing).

    ΔW = changesᵀ (D keysᵀ)⁻¹ D, the rows of D being u = C⁻¹ mean_key, normalised; C = I without
    `factor`. With one key it is change uᵀ / (key · u). `mean_keys` are means over contexts, and a
    change is v* - (W key + b). One solve for all keys, and an n × n solve per edit. Raises
    EditError if keys are too alike to have values of their own, or nearly orthogonal to their
    directions.
    """
    directions = mean_keys.double() if factor is None else factor.solve(mean_keys)
    norms = directions.norm(dim=-1, keepdim=True)
    directions = directions / norms.where(norms > 0, 1)
    scale = keys.double().norm(dim=-1, keepdim=True)
    padding = scale.squeeze(-1) == 0  # a key that an edit does not have
    scale = scale.where(scale > 0, 1)
    gram = keys.double() / scale @ directions.mT + torch.diag_embed(padding.double())
    is_finite = gram.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
    # with one key the |cosine|
    smallest = torch.linalg.svdvals(gram.where(is_finite, 0))[..., -1:]
    if failed := _edits_where(~(smallest > ORTHOGONAL) | padding.all(-1, keepdim=True)):
        raise EditError(
            f"{failed}: the keys of the fact are nearly the same, nearly orthogonal to the "
            "directions of the edit, zero, or not finite; expected a |cosine| above "
            f"{ORTHOGONAL:g}; give contexts that resemble the prompt, edit another layer, or use "
            "memit"
        )
    values = torch.linalg.solve(gram, changes.double() / scale)
    return _low_rank(values, directions, mean_keys, keys, changes)


def memit_delta(
    keys: Float[Tensor, "*edits n in"],
    residuals: Float[Tensor, "*edits n out"],
    factor: Factor,
    weight: float,
) -> LowRank:
    """Return the delta of rank n that adds about `residuals` at `keys` (MEMIT, Meng et al. 2023).

    ΔW = Rᵀ K (λC + KᵀK)⁻¹ with λ = `weight`. One solve with C's factor for all keys, and an n × n
    solve per edit.
    """
    of_keys = keys.double()
    v = _regularised(of_keys, factor.solve(of_keys) / weight)
    return _low_rank(residuals, v, keys, residuals)


def alphaedit_delta(
    keys: Float[Tensor, "*edits n in"],
    residuals: Float[Tensor, "*edits n out"],
    null_space: NullSpace,
    past: Float[Tensor, "past in"],
    l2: float,
) -> LowRank:
    """Return the delta of rank n that acts in the null space alone (AlphaEdit, Fang et al. 2025).

    ΔW = Rᵀ K̂ (λ₂I + ŜᵀŜ + K̂ᵀK̂)⁻¹ with K̂ = K P and λ₂ = `l2`. The rows of Ŝ are `past`: the keys of
    earlier edits, projected (`NullSpace.project`), none at first. Separate edits share them. One
    N × N factor of the N past keys, and an n × n solve per edit.
    """
    projected, past = null_space.project(keys), past.double()
    v = _regularised(projected, _damped(projected, past, l2))
    return _low_rank(residuals, v, keys, residuals)


def ultraedit_delta(
    h: Float[Tensor, "*edits tokens in"],
    g: Float[Tensor, "*edits tokens out"],
    normaliser: Normaliser,
    lr: float,
    real: Bool[Tensor, "*edits tokens"] | None = None,
) -> LowRank:
    """Return the delta of one backward pass (UltraEdit, Gu et al. 2026), of one rank per token.

    ΔW = Vᵀ H (I + HᵀH)⁻¹ with v_t = -lr ‖ĥ_t‖² ĝ_t and [ĥ; ĝ] = [h; g] normalised. `h` is the
    Linear's input and `g` the gradient at its output, at the tokens that predict the answer; tokens
    that are not `real` are padding and change nothing. A tokens × tokens solve per edit.
    """
    z = torch.cat([h.double(), g.double()], dim=-1)
    of_h, of_g = normaliser.normalise(z).split([h.shape[-1], g.shape[-1]], dim=-1)
    values = -lr * of_h.square().sum(-1, keepdim=True) * of_g
    keys = h.double()
    if real is not None:
        padding = ~real.unsqueeze(-1)
        keys, values = keys.masked_fill(padding, 0), values.masked_fill(padding, 0)
    return _low_rank(values, _regularised(keys, keys), h, g)


def _regularised(
    keys: Float[Tensor, "*edits n in"], solved: Float[Tensor, "*edits n in"]
) -> Float[Tensor, "*edits n in"]:
    """Return K (M + KᵀK)⁻¹ from K and `solved` = K M⁻¹, by an n × n solve per edit."""
    lower = _cholesky(keys @ solved.mT, ridge=1)
    return torch.cholesky_solve(solved, lower)


def _damped(
    keys: Float[Tensor, "*edits n in"], past: Float[Tensor, "past in"], l2: float
) -> Float[Tensor, "*edits n in"]:
    """Return K (λ₂I + SᵀS)⁻¹ = (K - K Sᵀ (λ₂I + SSᵀ)⁻¹ S) / λ₂ for the rows S of `past`."""
    lower = _cholesky(past @ past.mT, ridge=l2)
    return (keys - solve_rows(lower, keys @ past.mT) @ past) / l2


def _cholesky(gram: Float[Tensor, "*edits n n"], ridge: float) -> Float[Tensor, "*edits n n"]:
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    lower, failed = torch.linalg.cholesky_ex(gram + ridge * identity)
    if named := _edits_where(failed[..., None] != 0):
        raise EditError(
            f"{named}: the system of keys cannot be solved; expected keys, also those of earlier "
            "edits, that are finite and of ordinary size; look at the inputs of the edited site"
        )
    return lower


def _low_rank(u: Tensor, v: Tensor, *arguments: Tensor) -> LowRank:
    """Return a delta in the dtype of the arguments, at least float32. Raises EditError for NaN."""
    dtype = reduce(torch.promote_types, [each.dtype for each in arguments], torch.float32)
    # A solver's output lies in memory by columns, and a file gives it back by rows: products of the
    # two differ in their last digits.
    delta = LowRank(u=u.to(dtype).contiguous(), v=v.to(dtype).contiguous())
    sound = delta.u.isfinite().flatten(-2).all(-1) & delta.v.isfinite().flatten(-2).all(-1)
    if failed := _edits_where(~sound[..., None]):
        raise EditError(
            f"{failed}: the delta has values that are not finite; expected finite keys, values and "
            "gradients; lower the learning rate of the values, or load the model in float32"
        )
    return delta


def _edits_where(failed: Bool[Tensor, "*edits 1"]) -> str:
    """Return words that name the edits at which a check failed, or "" if there are none."""
    if not failed.any():
        return ""
    if failed.ndim == 1:
        return "this edit"
    rows = failed.squeeze(-1).nonzero().flatten().tolist()
    return f"edit {rows[0]} (one of {len(rows)} of {len(failed)} edits)"
