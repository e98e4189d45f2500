"""The base of edits that wrap a VLM and are no weight deltas."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mmedit.adapters.base import Stage
from mmedit.adapters.places import Places
from mmedit.cases import Example
from mmedit.deltas import Delta
from mmedit.vlm.edit import Edit
from mmedit.vlm.frozen import Frozen
from mmedit.vlm.identity import Identity
from mmedit.vlm.interface import VLM
from mmedit.vlm.outputs import Observed


class WrappedVLM(VLM):
    """A VLM around another one: the base of edits that are not weight deltas."""

    def __init__(self, inner: VLM) -> None:
        self.inner = inner

    @property
    def wrappers(self) -> tuple[str, ...]:
        return (type(self).__name__, *self.inner.wrappers)

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

    @property
    def value_sites(self) -> tuple[str, ...]:
        return self.inner.value_sites

    @property
    def ffn_inputs(self) -> tuple[str, ...]:
        return self.inner.ffn_inputs

    @property
    def layer_sites(self) -> tuple[str, ...]:
        return self.inner.layer_sites

    @property
    def activation(self) -> Callable[[Tensor], Tensor]:
        return self.inner.activation

    def observe(
        self, examples: Sequence[Example], sites: Sequence[str], *, after: Sequence[int] = ()
    ) -> Observed:
        return self.inner.observe(examples, sites, after=after)

    def places(self, examples: Sequence[Example]) -> Places:
        return self.inner.places(examples)

    def weight(self, site: str) -> Float[Tensor, "*edits out in"]:
        return self.inner.weight(site)

    def require_reach(self, examples: Sequence[Example], sites: Sequence[str]) -> None:
        self.inner.require_reach(examples, sites)

    def prompt_tokens(
        self, examples: Sequence[Example], *, new_tokens: int | Sequence[int] = 0
    ) -> list[int]:
        return self.inner.prompt_tokens(examples, new_tokens=new_tokens)

    def with_deltas(self, deltas: Mapping[str, Delta], *, edit: Edit | None = None) -> VLM:
        return self.rewrap(self.inner.with_deltas(deltas, edit=edit))

    @property
    def edits(self) -> tuple[Edit, ...]:
        return self.inner.edits

    def noting(self, edit: Edit) -> VLM:
        return self.rewrap(self.inner.noting(edit))

    def merged(self) -> VLM:
        return self.rewrap(self.inner.merged())

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
