"""Outputs of a VLM: predictions, and what is captured at edit sites."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class Predictions:
    """Teacher-forced outputs, aligned once: `logits[b, t]` is about `target[b, t]`.

    A row holds its prompt's and answer's tokens, or its answer's alone (`VLM.predict`). Behind its
    last token the masks are false.
    """

    logits: Float[Tensor, "batch text vocab"]
    target: Int[Tensor, "batch text"]
    is_text: Bool[Tensor, "batch text"]
    """Prompt and answer tokens that have a prediction. The first token of a text-only prompt has
    none.
    """
    is_answer: Bool[Tensor, "batch text"]

    def __getitem__(self, rows: slice | Sequence[int]) -> Predictions:
        index = rows if isinstance(rows, slice) else torch.tensor(rows, device=self.target.device)
        return Predictions(
            logits=self.logits[index],
            target=self.target[index],
            is_text=self.is_text[index],
            is_answer=self.is_answer[index],
        )

    def split(self, rows: int) -> list[Predictions]:
        """Return so many rows after so many. In a backward pass it takes the memory of one
        gradient of the logits, where `[...]` takes that of one for each part.
        """
        columns = (self.logits, self.target, self.is_text, self.is_answer)
        return [
            Predictions(logits=logits, target=target, is_text=is_text, is_answer=is_answer)
            for logits, target, is_text, is_answer in zip(
                *(column.split(rows) for column in columns), strict=True
            )
        ]

    def cropped(self, text: int) -> Predictions:
        """Return the first text tokens alone. All tokens after them must be padding."""
        return Predictions(
            logits=self.logits[:, :text],
            target=self.target[:, :text],
            is_text=self.is_text[:, :text],
            is_answer=self.is_answer[:, :text],
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Captured:
    """The inputs of Linear sites, and the gradients of the loss with respect to their outputs, for
    every token.

    `x[site]` is [batch, tokens, in], `delta[site]` is [batch, tokens, out]. The loss is the sum
    over rows of the row's mean answer NLL, so that a row's values do not depend on the rest of the
    batch. Tokens that the loss does not reach (padding, all after the last prediction) have delta
    0.
    """

    x: dict[str, Float[Tensor, "batch tokens in"]]
    delta: dict[str, Float[Tensor, "batch tokens out"]]
    nll: Float[Tensor, " batch"]

    def packed(self) -> dict[str, SiteTokens]:
        """Return only the tokens that can change an edit: x and δ are both not zero there.

        At the last layer these are the answer's tokens. Two host syncs.
        """
        bears = [reached(self.x[site], self.delta[site]) for site in self.x]
        of_rows = [mask.sum(1) for mask in bears]
        counts = torch.stack(of_rows).tolist()
        found = torch.cat([mask.flatten() for mask in bears]).nonzero().flatten()
        packed, before = {}, 0
        for site, mask, of_row, index in zip(
            self.x, bears, counts, found.split([sum(row) for row in counts]), strict=True
        ):
            token, before = index - before, before + mask.numel()
            packed[site] = SiteTokens(
                x=self.x[site].flatten(0, 1).index_select(0, token),
                delta=self.delta[site].flatten(0, 1).index_select(0, token),
                of_row=tuple(of_row),
            )
        return packed

    def reached(self) -> Captured:
        """Return the tokens of `packed` row by row. They keep their order; shorter rows are filled
        with zeros.
        """
        packed = self.packed()
        return Captured(
            x={site: tokens.by_row(tokens.x) for site, tokens in packed.items()},
            delta={site: tokens.by_row(tokens.delta) for site, tokens in packed.items()},
            nll=self.nll,
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Observed:
    """Values inside a language model for every token, without gradients. At padding they mean
    nothing.
    """

    x: dict[str, Float[Tensor, "batch tokens in"]]
    """The inputs of Linear sites."""
    y: dict[str, Float[Tensor, "batch tokens out"]]
    """The outputs of Linear sites, with the edits that act there."""
    states: dict[int, Float[Tensor, "batch tokens hidden"]]
    """The hidden states after the first k decoder layers, by k."""


@dataclass(frozen=True, eq=False, kw_only=True)
class SiteTokens:
    """The tokens of one site that can change an edit, row after row, without padding."""

    x: Float[Tensor, "tokens in"]
    delta: Float[Tensor, "tokens out"]
    of_row: tuple[int, ...]
    """Number of tokens of every row."""

    def by_row(self, values: Float[Tensor, "tokens width"]) -> Float[Tensor, "batch most width"]:
        """Return one vector per token as a batch, with zeros after the last token of each row."""
        most = max(1, *self.of_row)
        place = [most * row + n for row, count in enumerate(self.of_row) for n in range(count)]
        index = torch.tensor(place, dtype=torch.long, device=values.device)
        batch = values.new_zeros(len(self.of_row) * most, values.shape[-1])
        return batch.index_copy(0, index, values).unflatten(0, (-1, most))


def reached(
    x: Float[Tensor, "batch tokens in"], delta: Float[Tensor, "batch tokens out"]
) -> Bool[Tensor, "batch tokens"]:
    """Return a mask of the tokens at which neither x nor δ is zero throughout."""
    return (x.abs().amax(-1) != 0) & (delta.abs().amax(-1) != 0)
