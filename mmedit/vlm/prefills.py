"""Prefills of generations, kept for the models that answer the same batch after it.

An edited model begins a generation as the base model does, up to its first edited layer. Prefills
are kept by the content of the whole batch, as hidden states are (`mmedit.vlm.states`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import final

import torch
from cachetools import LRUCache

from mmedit.adapters.base import Adapter
from mmedit.adapters.inputs import Inputs
from mmedit.adapters.prefill import Prefill, prefill_noted, prefill_resumed
from mmedit.cache import GIGABYTE
from mmedit.cases import Example
from mmedit.vlm.states import batch_key, runs_whole, usual_places


@final
class Prefills:
    """The prefills of the latest batches, up to the first edited layer."""

    def __init__(self, adapter: Adapter, *, memory_bytes: int = GIGABYTE // 2) -> None:
        self._adapter = adapter
        if adapter.device.type == "cuda":  # where they stay, beside the network
            memory_bytes = min(memory_bytes, torch.cuda.mem_get_info(adapter.device)[0] // 8)
        self._kept: LRUCache[str, Prefill] = LRUCache(memory_bytes, lambda kept: kept.nbytes)
        self._places = usual_places(adapter)
        """Numbers of layers after which a prefill of the base model keeps its states."""

    @property
    def bytes_used(self) -> int:
        """Size of the prefills that are kept, in bytes."""
        return int(self._kept.currsize)

    @contextmanager
    def used(
        self, inputs: Inputs, examples: Sequence[Example], *, before: int | None
    ) -> Iterator[None]:
        """Skip in the generation in the context what is kept of its prefill, and keep more of it.

        `before` is the number of decoder layers before the first edited one; None if nothing is
        edited.
        """
        if runs_whole(self._adapter, examples, before):
            yield
            return
        layers = self._adapter.layers
        if before is not None:
            self._places.add(before)
        key, most = batch_key(inputs), len(layers) if before is None else before
        kept = self._kept.get(key)
        at = kept.deepest(most) if kept else 0
        new = [k for k in self._places if at < k <= most]
        noted = prefill_noted(layers, new, most_bytes=int(self._kept.maxsize))
        with noted as notes, prefill_resumed(layers, at, kept):
            yield
        if (found := notes.prefill) is not None:
            self._keep(key, found if kept is None else kept.joined(found))

    def _keep(self, key: str, prefill: Prefill) -> None:
        if prefill.nbytes <= self._kept.maxsize:
            self._kept[key] = prefill
