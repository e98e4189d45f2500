"""Texts before a question, so that a key and a value do not belong to one wording alone.

ROME and MEMIT sample them from the model, so two runs differ. Here they are a fixed list
(`contexts.txt`), in English, of 5 to 10 words each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib import resources

import torch
from jaxtyping import Float
from torch import Tensor

from mmedit.cases import Example


@cache
def context_texts() -> tuple[str, ...]:
    """Return all texts, in the order of the file."""
    file = resources.files("mmedit").joinpath("editors/closed_form/contexts.txt")
    return tuple(file.read_text(encoding="utf-8").splitlines())


MOST_CONTEXTS = 10
"""Number of texts in the file."""


def in_contexts(examples: Sequence[Example], number: int) -> list[Example]:
    """Return each example as it is, and then behind each of the first `number` texts: row
    i * (1 + number) is example i itself. A text comes after the image.
    """
    texts = ["", *(f"{text} " for text in context_texts()[:number])]
    return [replace(one, prompt=text + one.prompt) for one in examples for text in texts]


def mean_over_contexts(
    rows: Float[Tensor, "rows *any"], number: int
) -> Float[Tensor, "edits *any"]:
    """Return the mean of each example's rows from `in_contexts`: its own row counts one half, those
    with a text together the other half (MEMIT, `compute_ks`).
    """
    each = rows.unflatten(0, (-1, 1 + number))
    if not number:
        return each[:, 0]
    return (each[:, 0] + each[:, 1:].mean(1)) / 2


def of_contexts(edits: int, number: int) -> list[int]:
    """Return the edit that each row of `in_contexts` belongs to."""
    return torch.arange(edits).repeat_interleave(1 + number).tolist()
