"""Which experts answer a question: similarities of extracts, the choice, and its losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Extracts = Float[Tensor, "rows eqe module"]
EPSILON = 1e-8
"""Added to probabilities before the logarithm, as published."""


class Asked(NamedTuple):
    """Extracts of questions about images."""

    query: Extracts
    """Extract of the question."""
    vision: Extracts
    """Extract of the image, as the question asks about it."""
    prototype: Extracts
    """Extract of the learnt image, as the question asks about it."""

    def split(self, rows: int) -> list[Asked]:
        """Return so many questions after so many."""
        return [Asked(*part) for part in zip(*(p.split(rows) for p in self), strict=True)]


def similarity(
    asked: Extracts, stored: Float[Tensor, "entries eqe module"]
) -> Float[Tensor, "rows entries"]:
    """Return the mean over the vectors of their products / √module. One matrix product."""
    _, eqe, module = asked.shape
    return asked.flatten(1) @ stored.flatten(1).T / (eqe * module**0.5)


def prototype_similarity(asked: Asked) -> Float[Tensor, " rows"]:
    """Return the similarity of each image to the learnt one."""
    eqe, module = asked.vision.shape[1:]
    return (asked.vision * asked.prototype).sum((1, 2)) / (eqe * module**0.5)


def filtered(
    asked: Asked, evr: Float[Tensor, "entries eqe module"]
) -> Bool[Tensor, "rows entries"]:
    """Return the entries whose image is nearer than the learnt one: the hard filter."""
    return similarity(asked.vision, evr) > prototype_similarity(asked).unsqueeze(1)


def soft_weights(
    found: Float[Tensor, "rows entries"], kept: Bool[Tensor, "rows entries"]
) -> Float[Tensor, "rows entries"]:
    """Return softmax(similarity) · sigmoid(similarity) over the entries that are kept, else 0."""
    share = found.masked_fill(~kept, -torch.inf).softmax(1)
    return (share * found.sigmoid()).where(kept, 0)


def soft_losses(found: Float[Tensor, "edits edits"]) -> tuple[Tensor, Tensor]:
    """Return the losses of the soft routing, from the similarity of question i to edit j.

    Relative: edit i is the nearest of question i. Absolute: it is near, and another edit is not.
    """
    own, other = found.diagonal(), found.diagonal(-1)
    other = torch.cat([found[:1, -1], other])  # the edit before it; before the first, the last
    relative = -_log(found.softmax(1).diagonal()).mean()
    absolute = -(_log(own.sigmoid()) + _log(1 - other.sigmoid())).mean()
    return relative, absolute


def neighbour_loss(found: Float[Tensor, "edits edits_and_1"]) -> Tensor:
    """Return the loss of the hard routing on images that belong to the edits, row i to edit i."""
    return -_log(found.softmax(1).diagonal()).mean()


def prototype_loss(found: Float[Tensor, "rows edits_and_1"]) -> Tensor:
    """Return the loss of the hard routing on images that belong to no edit: the learnt image is
    the nearest.
    """
    return -_log(found.softmax(1)[:, -1]).mean()


def apart_loss(
    found: Float[Tensor, "edits edits_and_1"], same: Bool[Tensor, "edits edits"]
) -> Tensor:
    """Return the loss of the hard routing on images that belong to the edits, row i to edit i: the
    learnt image is nearer than those of all edits that are not about the `same` image. Not in the
    published training.
    """
    others = found[:, :-1].masked_fill(same, -torch.inf)
    return prototype_loss(torch.cat([others, found[:, -1:]], 1))


def image_similarity(
    asked: Asked, evr: Float[Tensor, "edits eqe module"]
) -> Float[Tensor, "rows edits_and_1"]:
    """Return the similarity of images to those of the edits, and to the learnt image."""
    learnt = prototype_similarity(asked).unsqueeze(1)
    return torch.cat([similarity(asked.vision, evr), learnt], 1)


def _log(probability: Tensor) -> Tensor:
    return (probability + EPSILON).log()


def routing_losses(
    near: Sequence[Asked],
    far: Sequence[Asked],
    stored: Mapping[str, Tensor],
    same: Bool[Tensor, "edits edits"],
) -> dict[str, Tensor]:
    """Return the losses of the soft routing and of the hard one, by name.

    `near` are questions that belong to the edits, row i to edit i; `far` belong to none. `same`
    says which edits are about the same image. The losses are means over the questions.
    """
    soft = [soft_losses(similarity(asked.query, stored["eqr"])) for asked in near]
    images = [image_similarity(asked, stored["evr"]) for asked in near]
    away = [prototype_loss(image_similarity(asked, stored["evr"])) for asked in far]
    relative, absolute = zip(*soft, strict=True)
    terms = {
        "soft_relative": relative,
        "soft_absolute": absolute,
        "hard_neighbour": [neighbour_loss(found) for found in images],
        "hard_apart": [apart_loss(found, same) for found in images],
    }
    if away:
        terms["hard_prototype"] = away
    return {name: torch.stack(list(losses)).mean() for name, losses in terms.items()}
