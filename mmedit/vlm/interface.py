"""The interface of a VLM, and the base of edits that wrap one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
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
from mmedit.vlm.outputs import Captured, Predictions


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
