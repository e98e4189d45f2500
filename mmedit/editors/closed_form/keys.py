"""Keys and values at the positions of facts, read from forwards without gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mmedit.cases import Example
from mmedit.editors.closed_form.contexts import in_contexts, mean_over_contexts, of_contexts
from mmedit.editors.closed_form.positions import Position, spots
from mmedit.vlm.interface import VLM


@dataclass(frozen=True, eq=False, kw_only=True)
class Keys:
    """The keys of requests at one site, and the values there, in float32. A key that a request
    does not have (its answer is shorter) is 0 throughout.
    """

    mean: Float[Tensor, "edits keys in"]
    """Mean of the keys over the contexts (`mean_over_contexts`)."""
    clean: Float[Tensor, "edits keys in"]
    """Keys of the requests without a context."""
    output: Float[Tensor, "edits keys out"]
    """Outputs of the site without a context."""
    state: Float[Tensor, "edits keys hidden"]
    """Hidden states after `after` layers, without a context."""


def read_keys(
    vlm: VLM,
    requests: Sequence[Example],
    sites: Sequence[str],
    *,
    rule: Position,
    contexts: int,
    after: int,
) -> dict[str, Keys]:
    """Return the keys of requests at each site, and the hidden states after so many layers.

    Costs a forward of 1 + `contexts` rows per request, up to that layer.
    """
    examples = in_contexts(requests, contexts)
    rows = vlm.select(of_contexts(len(requests), contexts))
    observed = rows.observe(examples, sites, after=[after])
    found = spots(rule, rows.places(examples))
    clean = slice(0, None, 1 + contexts)
    state = found.read(observed.states[after].float())[clean]
    read = {}
    for site in sites:
        keys = found.read(observed.x[site].float())
        read[site] = Keys(
            mean=mean_over_contexts(keys, contexts),
            clean=keys[clean],
            output=found.read(observed.y[site].float())[clean],
            state=state,
        )
    return read


def read_all_keys(
    vlm: VLM,
    requests: Sequence[Example],
    sites: Sequence[str],
    *,
    rule: Position,
    contexts: int,
    after: int,
    batches: Sequence[Sequence[int]],
) -> dict[str, Keys]:
    """Return `read_keys` of any number of requests; `batches` are those that share a forward."""
    parts = [
        read_keys(
            vlm.select(rows),
            [requests[row] for row in rows],
            sites,
            rule=rule,
            contexts=contexts,
            after=after,
        )
        for rows in batches
    ]
    return {
        site: Keys(
            mean=joined([part[site].mean for part in parts]),
            clean=joined([part[site].clean for part in parts]),
            output=joined([part[site].output for part in parts]),
            state=joined([part[site].state for part in parts]),
        )
        for site in sites
    }


def joined(parts: Sequence[Float[Tensor, "edits _keys *width"]]) -> Tensor:
    """Return the parts one after the other, each with zeros up to the most keys of any."""
    most = max(part.shape[1] for part in parts)
    padded = [part.new_zeros(len(part), most, *part.shape[2:]) for part in parts]
    for place, part in zip(padded, parts, strict=True):
        place[:, : part.shape[1]] = part
    return torch.cat(padded)
