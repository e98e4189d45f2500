"""How close two results must be that differ in nothing but the order of their floating-point sums.

Another processor, batch size or padding side changes that order, and so the last digits. A dot
product of n terms then moves by about √n eps of its size, and the errors of matrix products one
after the other add up. So the tolerance is a share of the largest entry, and the share follows from
the dtype and from the size of the networks in these tests, not from what one machine gave.
"""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor

PRODUCTS = 16
"""Matrix products that one number passes through, in sequence, in the networks of these tests."""
TERMS = 64
"""Terms of a dot product in them."""


def eps(*tensors: Tensor) -> float:
    """The relative spacing of numbers of the coarsest dtype among the tensors."""
    return max(torch.finfo(tensor.dtype).eps for tensor in tensors)


def rounding(expected: Tensor, *, found: Tensor | None = None, passes: int = 1) -> float:
    """The largest difference that rounding explains between two runs of a network.

    `passes` is 1 for a forward pass and 2 for a gradient, which a number reaches by going through
    the network twice.
    """
    coarsest = eps(expected, expected if found is None else found)
    # Products of half precision are summed in float32 and rounded once.
    terms = 1 if coarsest > torch.finfo(torch.float32).eps else TERMS
    largest = expected.detach().abs().max().item() if expected.numel() else 0.0
    return passes * PRODUCTS * sqrt(terms) * coarsest * largest


def assert_close(found: Tensor, expected: Tensor, *, passes: int = 1) -> None:
    """Assert that both are the same up to rounding."""
    atol = rounding(expected, found=found, passes=passes)
    torch.testing.assert_close(found, expected, atol=atol, rtol=0, check_dtype=False)


def assert_linear(found: Tensor, expected: Tensor) -> None:
    """Assert that both are the same up to the rounding of one or two small matrix products."""
    atol = 2 * sqrt(TERMS) * eps(found, expected) * expected.detach().abs().max().item()
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)


def moved(found: Tensor, expected: Tensor) -> bool:
    """Whether they differ by more than rounding explains, ten times over."""
    difference = (found.double() - expected.double()).abs().max().item()
    return difference > 10 * rounding(expected, found=found)


def score_rounding(logits: Tensor) -> float:
    """The largest error of a mean log-probability, probability or divergence, from float32 logits.

    The logits enter with their own rounding, and the sum over the vocabulary with that of as many
    terms; each of the steps of a log-softmax and of a mean rounds once more.
    """
    finite = logits[logits.isfinite()]
    return 4 * eps(logits) * (finite.abs().max().item() + sqrt(logits.shape[-1]))
