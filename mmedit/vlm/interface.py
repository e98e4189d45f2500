"""What a VLM is to everything above it: an interface, and the base of edits that wrap one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmedit.adapters.base import Stage
from mmedit.cases import Example
from mmedit.deltas import Delta
from mmedit.vlm.frozen import Frozen


@dataclass(frozen=True, eq=False, kw_only=True)
class Predictions:
    """Teacher-forced outputs, aligned once: `logits[b, t]` is about `target[b, t]`."""

    logits: Float[Tensor, "batch text vocab"]
    target: Int[Tensor, "batch text"]
    is_text: Bool[Tensor, "batch text"]
    """Prompt and answer tokens that something stands before: the first token of a text without
    image is predicted by nothing.
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
        """The first text tokens alone: what lies behind must be padding."""
        return Predictions(
            logits=self.logits[:, :text],
            target=self.target[:, :text],
            is_text=self.is_text[:, :text],
            is_answer=self.is_answer[:, :text],
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Captured:
    """What went into Linear sites, and the gradient of the loss with respect to what came out, for
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
        """Only the tokens that bear on the edit, which are those with x and δ: in order, shorter
        rows filled with zeros. At the last layer these are the answer's. One host sync.
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
    """The tokens that bear on an edit: neither x nor δ is zero throughout."""
    return (x != 0).any(-1) & (delta != 0).any(-1)


class Identity(NamedTuple):
    """Which network a VLM is."""

    family: str
    """The `model_type` of its config."""
    config: str
    """A hash of the config."""
    weights: str
    """A hash of all weights."""


class VLM(ABC):
    """What can be asked, captured and edited. Editors that are no weight delta return a
    `WrappedVLM` of their own.
    """

    @abstractmethod
    def predict(self, examples: Sequence[Example]) -> Predictions:
        """Teacher-forced predictions: one forward of the language model, and of vision and bridge
        for uncached images.

        Differentiable with respect to the deltas. Raises DataError without examples, ModelError
        where one is too long.
        """

    @abstractmethod
    def generate(self, examples: Sequence[Example], *, max_new_tokens: int) -> list[str]:
        """Greedy continuations of the prompts, stripped; targets are not looked at. One forward per
        new token.
        """

    @abstractmethod
    def capture(self, examples: Sequence[Example], sites: Sequence[str]) -> Captured:
        """Inputs x and output gradients δ at Linear sites. One forward, one backward."""

    @abstractmethod
    def represent(self, examples: Sequence[Example]) -> Float[Tensor, "batch hidden"]:
        """What the language model makes of image and prompt, before it answers, in float32: the
        input of its first default site at the last prompt token. For nearest-neighbour search. One
        forward, no gradient.
        """

    @abstractmethod
    def sites(self, where: Stage) -> tuple[str, ...]:
        """The family's default edit sites in the language model, the bridge or the vision tower."""

    @abstractmethod
    def shape(self, site: str) -> tuple[int, int]:
        """(out, in) of the weight at a site. Raises SiteError with the nearest name."""

    @abstractmethod
    def weight(self, site: str) -> Float[Tensor, "*edits out in"]:
        """The weight at a site with the deltas it carries, in float32; a copy."""

    @abstractmethod
    def require_reach(self, examples: Sequence[Example], sites: Sequence[str]) -> None:
        """Raise SiteError where an example does not pass through a site: one without image, an
        image site.
        """

    @abstractmethod
    def with_deltas(self, deltas: Mapping[str, Delta]) -> VLM:
        """The VLM with these deltas added to those it already carries."""

    @abstractmethod
    def select(self, rows: Sequence[int]) -> VLM:
        """The VLM that answers row i under separate edit rows[i]; itself where it carries no
        separate edits.
        """

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where inputs and new parameters go."""

    @property
    @abstractmethod
    def frozen(self) -> Frozen:
        """What no edit changes: tokens, embeddings, image features of the unedited network."""

    @property
    @abstractmethod
    def identity(self) -> Identity:
        """What the unedited network is, edited or not: what a trained editor belongs to. Reads
        every weight, the first time.
        """

    @property
    @abstractmethod
    def extra_parameters(self) -> int:
        """How many numbers an edit (of separate ones: each) adds to the network."""


class WrappedVLM(VLM):
    """A VLM that asks another one in its own way: the base of edits that are not weight deltas."""

    def __init__(self, inner: VLM) -> None:
        self.inner = inner

    @abstractmethod
    def rewrap(self, inner: VLM) -> VLM:
        """The same edit around another VLM."""

    def sites(self, where: Stage) -> tuple[str, ...]:
        return self.inner.sites(where)

    def shape(self, site: str) -> tuple[int, int]:
        return self.inner.shape(site)

    def weight(self, site: str) -> Float[Tensor, "*edits out in"]:
        return self.inner.weight(site)

    def require_reach(self, examples: Sequence[Example], sites: Sequence[str]) -> None:
        self.inner.require_reach(examples, sites)

    def with_deltas(self, deltas: Mapping[str, Delta]) -> VLM:
        return self.rewrap(self.inner.with_deltas(deltas))

    @property
    def device(self) -> torch.device:
        return self.inner.device

    @property
    def frozen(self) -> Frozen:
        return self.inner.frozen

    @property
    def identity(self) -> Identity:
        return self.inner.identity

    @property
    def extra_parameters(self) -> int:
        return self.inner.extra_parameters
