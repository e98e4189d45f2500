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
    last token all is 0.
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

    def reached(self) -> Captured:
        """Return only the tokens that can change an edit: x and δ are both not zero there.

        They keep their order; shorter rows are filled with zeros. At the last layer these are the
        answer's tokens. One host sync.
        """
        bears = {site: reached(self.x[site], self.delta[site]) for site in self.x}
        most = torch.stack([mask.sum(1).amax() for mask in bears.values()]).clamp(min=1).tolist()
        x, delta = {}, {}
        for (site, mask), tokens in zip(bears.items(), most, strict=True):
            first = (~mask).int().argsort(dim=1, stable=True)[:, :tokens].unsqueeze(-1)
            there = mask.unsqueeze(-1).take_along_dim(first, dim=1)
            x[site] = self.x[site].take_along_dim(first, dim=1).where(there, 0)
            delta[site] = self.delta[site].take_along_dim(first, dim=1).where(there, 0)
        return Captured(x=x, delta=delta, nll=self.nll)


def reached(
    x: Float[Tensor, "batch tokens in"], delta: Float[Tensor, "batch tokens out"]
) -> Bool[Tensor, "batch tokens"]:
    """Return a mask of the tokens at which neither x nor δ is zero throughout."""
    return (x != 0).any(-1) & (delta != 0).any(-1)
