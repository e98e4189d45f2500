"""The two losses that keep the neurons of a patch where they belong.

    activation:  mean of the k largest exp(margin - a)
    memory:      mean of the k largest exp(a_mem - a + margin_1)
                 + mean of the k largest exp(a_mem - margin_2)

a is the activation of a neuron, before the ReLU, at the position that it is for (its query); a_mem
is that on a state of the memory, for which no neuron is.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def activation_loss(
    own: Float[Tensor, "edits neurons"],
    real: Bool[Tensor, "edits neurons"],
    *,
    margin: float,
    largest: int,
) -> Float[Tensor, " edits"]:
    """Return how weakly the neurons of every edit react to their own queries."""
    return mean_of_largest((margin - own).exp(), real, largest)


def memory_loss(
    own: Float[Tensor, "edits neurons"],
    memory: Float[Tensor, "edits states neurons"],
    real: Bool[Tensor, "edits neurons"],
    *,
    margins: tuple[float, float],
    largest: tuple[int, int],
) -> Float[Tensor, " edits"]:
    """Return how strongly the neurons of every edit react to states that they are not for."""
    each = real.unsqueeze(1).expand_as(memory).flatten(1)
    nearer = (memory - own.unsqueeze(1) + margins[0]).exp().flatten(1)
    active = (memory - margins[1]).exp().flatten(1)
    return mean_of_largest(nearer, each, largest[0]) + mean_of_largest(active, each, largest[1])


def mean_of_largest(
    values: Float[Tensor, "edits n"], real: Bool[Tensor, "edits n"], largest: int
) -> Float[Tensor, " edits"]:
    """Return the mean of the largest values of every edit, or of all if there are fewer. Values are
    positive; those that are not real do not count.
    """
    found = values.where(real, torch.zeros_like(values)).topk(min(largest, values.shape[1])).values
    return found.sum(1) / real.sum(1).clamp(max=largest)
