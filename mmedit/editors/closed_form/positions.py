"""The positions at which a fact is read and written, by rule."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmedit.adapters.places import Places
from mmedit.cases import Example
from mmedit.errors import EditError

log = logging.getLogger(__name__)

Position = Literal["last_subject", "last_prompt", "answer", "image_mean"]
"""last_subject: the last token of the request's subject (ROME); a request whose subject is not in
its prompt is edited at last_prompt. last_prompt: the position that predicts the first answer token.
answer: every position that predicts an answer token has a key of its own. image_mean: one key, the
mean over the image's tokens, and one value for all of them (experimental).
"""


@dataclass(frozen=True, eq=False, kw_only=True)
class Spots:
    """The positions of each row's keys: one key, or one per answer token."""

    reads: Float[Tensor, "rows tokens keys"]
    """Weight of each position in a key."""
    writes: Float[Tensor, "rows tokens keys"]
    """1 at the positions that get the value of a key, 0 elsewhere."""
    real: Bool[Tensor, "rows keys"]
    """Whether a row has this key; rows with shorter answers have fewer."""

    def read(self, values: Float[Tensor, "rows tokens width"]) -> Float[Tensor, "rows keys width"]:
        """Return the mean of each key's positions, 0 for a key that a row does not have."""
        read = self.reads.any(-1, keepdim=True)  # what stands at padding may be no number
        return self.reads.mT @ values.to(self.reads).masked_fill(~read, 0)


def spots(rule: Position, places: Places) -> Spots:
    """Return the positions by the rule. Rows to which it does not apply must have been refused."""
    if rule == "image_mean":
        writes = places.is_image.float().unsqueeze(-1)
        reads = writes / writes.sum(1, keepdim=True).clamp(min=1)
    elif rule == "answer":
        reads = writes = _numbered(places.predicts_answer)
    else:
        at = places.last_prompt
        if rule == "last_subject":
            at = places.last_subject.where(places.last_subject >= 0, at)
        reads = writes = _one_hot(at, places.is_real.shape[1])
    return Spots(reads=reads, writes=writes, real=writes.any(1))


def require_positions(rule: Position, requests: Sequence[Example], places: Places) -> None:
    """Raise EditError if the rule does not apply to a request; log how many fall back."""
    if rule == "image_mean":
        for request, has_image in zip(requests, places.is_image.any(1).tolist(), strict=True):
            if not has_image:
                raise EditError(
                    f"position=image_mean edits at image tokens, and {request.prompt[:60]!r} has "
                    "none; give the request an image, or set editor.position to last_prompt"
                )
    if rule == "last_subject":
        without = int((places.last_subject < 0).sum())
        if without:
            log.info(
                "%d of %d requests name no subject that is in their prompt; they are edited at "
                "last_prompt",
                without,
                len(requests),
            )


def _one_hot(at: Tensor, tokens: int) -> Float[Tensor, "rows tokens 1"]:
    place = torch.arange(tokens, device=at.device)
    return (place == at.unsqueeze(-1)).float().unsqueeze(-1)


def _numbered(mask: Bool[Tensor, "rows tokens"]) -> Float[Tensor, "rows tokens keys"]:
    """Return a one-hot column for the first position of every row's mask, the second, and so on."""
    number = mask.cumsum(1).where(mask, 0)
    keys = torch.arange(1, int(number.max()) + 1, device=mask.device)
    return (number.unsqueeze(-1) == keys).float()
