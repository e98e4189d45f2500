"""The interface of a VLM, and the base of edits that wrap one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmedit.adapters.base import Stage
from mmedit.adapters.generation import Answer
from mmedit.arguments import check_arguments
from mmedit.cases import Example
from mmedit.deltas import Delta
from mmedit.errors import ModelError, shortened
from mmedit.vlm.doors import DOORS
from mmedit.vlm.frozen import Frozen
from mmedit.vlm.identity import Identity


@dataclass(frozen=True, eq=False, kw_only=True)
class Predictions:
    """Teacher-forced outputs, aligned once: `logits[b, t]` is about `target[b, t]`."""

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


class VLM(ABC):
    """A vision-language model that predicts, generates and is edited.

    Editors whose edit is not a weight delta return a `WrappedVLM` of their own. Arguments are
    checked before they reach a method of a subclass (`DOORS`).
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        check_arguments(cls, DOORS)

    @property
    def protocol(self) -> Mapping[str, object]:
        """Image size and text format (`mmedit.adapters.protocol`); empty if it cannot say."""
        return {}

    @property
    @abstractmethod
    def name(self) -> str:
        """The name, folder or hub id that it was loaded by; "" for one made by hand."""

    @abstractmethod
    def predict(self, examples: Sequence[Example]) -> Predictions:
        """Return teacher-forced predictions.

        They are differentiable with respect to the deltas. Costs one forward of the language model,
        and one of vision and bridge for images that are not cached. Raises DataError without
        examples, ModelError if one is too long.
        """

    @abstractmethod
    def answer(self, examples: Sequence[Example], *, max_new_tokens: int) -> list[Answer]:
        """Return greedy continuations of the prompts. Targets are not read.

        Costs one forward per new token, until every row has ended or has `max_new_tokens`: a larger
        number costs only where the VLM does not stop by itself.
        """

    def generate(self, examples: Sequence[Example], *, max_new_tokens: int) -> list[str]:
        """Return the texts of `answer`, stripped."""
        return [answer.text for answer in self.answer(examples, max_new_tokens=max_new_tokens)]

    @abstractmethod
    def capture(self, examples: Sequence[Example], sites: Sequence[str]) -> Captured:
        """Return inputs x and output gradients δ at Linear sites. One forward, one backward."""

    @abstractmethod
    def represent(self, examples: Sequence[Example]) -> Float[Tensor, "batch hidden"]:
        """Return one vector for each image and prompt, in float32, for nearest-neighbour search.

        It is the input of the language model's first default site at the last prompt token. One
        forward, no gradient.
        """

    @abstractmethod
    def sites(self, where: Stage) -> tuple[str, ...]:
        """Return the default edit sites in the language model, the bridge or the vision tower."""

    @abstractmethod
    def shape(self, site: str) -> tuple[int, int]:
        """Return (out, in) of the weight at a site. Raises SiteError with the nearest name."""

    @abstractmethod
    def weight(self, site: str) -> Float[Tensor, "*edits out in"]:
        """Return a copy of the weight at a site with the deltas it carries, in float32."""

    @abstractmethod
    def require_reach(self, examples: Sequence[Example], sites: Sequence[str]) -> None:
        """Raise SiteError if an example does not pass through a site.

        An example without image passes through no site of the vision tower or the bridge.
        """

    @abstractmethod
    def with_deltas(self, deltas: Mapping[str, Delta]) -> VLM:
        """Return the VLM with these deltas added to the ones it already carries."""

    @abstractmethod
    def select(self, rows: Sequence[int]) -> VLM:
        """Return the VLM that answers row i under separate edit rows[i].

        A VLM without separate edits returns an equal one.
        """

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The device of inputs and of new parameters."""

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """All devices that the network is on, that of inputs first."""
        return (self.device,)

    @property
    @abstractmethod
    def frozen(self) -> Frozen:
        """The parts that no edit changes: tokens, embeddings, image features of the base model."""

    @property
    @abstractmethod
    def identity(self) -> Identity:
        """The identity of the base model, which a trained editor belongs to.

        It is the same for edited models. Reads every weight, the first time.
        """

    @property
    @abstractmethod
    def base(self) -> VLM:
        """The base model: this VLM without its edits."""

    @property
    @abstractmethod
    def extra_parameters(self) -> int:
        """Number of values that an edit adds to the network; of separate edits, each one."""


check_arguments(VLM, DOORS)


def as_vlm(given: Any) -> VLM:
    """Return a VLM as it is. Raises ModelError for anything else, such as the name of one."""
    if isinstance(given, VLM):
        return given
    name = given if isinstance(given, str) else "embedded"
    raise ModelError(
        f"{shortened(given)} was given where a VLM is expected; load one: "
        f"vlm = mmedit.load_vlm({shortened(name)})"
    )


class WrappedVLM(VLM):
    """A VLM around another one: the base of edits that are not weight deltas."""

    def __init__(self, inner: VLM) -> None:
        self.inner = inner

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.inner!r})"

    @property
    def name(self) -> str:
        return self.inner.name

    @abstractmethod
    def rewrap(self, inner: VLM) -> VLM:
        """Return the same edit around another VLM."""

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
    def devices(self) -> tuple[torch.device, ...]:
        return self.inner.devices

    @property
    def frozen(self) -> Frozen:
        return self.inner.frozen

    @property
    def identity(self) -> Identity:
        return self.inner.identity

    @property
    def base(self) -> VLM:
        return self.inner.base

    @property
    def extra_parameters(self) -> int:
        return self.inner.extra_parameters
