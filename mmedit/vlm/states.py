"""Hidden states of the base model inside the language model, kept for the models edited after them.

An edit of the last layers leaves the states before its first layer as they were, so an edited model
starts there. States are kept by the content of the whole batch: the edited model then answers the
same batch with the same shapes, and gives what a whole forward would, bit for bit. For a training,
whose batches differ in every step, states are kept example by example (`mmedit.vlm.prepared`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, final, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmedit.adapters.base import Adapter
from mmedit.adapters.inputs import Inputs
from mmedit.adapters.layers import ReachedError, noted, resumed
from mmedit.cache import GIGABYTE, TensorCache
from mmedit.cases import Example

Features = Callable[[], Sequence[Tensor]]
"""Looks up or computes the image features of a batch."""
Packed = Float[Tensor, "positions hidden"]
"""The states of a batch at the positions that are kept, row by row."""


@runtime_checkable
class ByExample(Protocol):
    """States that are kept example by example."""

    def packed(self, examples: Sequence[Example], k: int, precision: str) -> Packed | None:
        """Return the states of these rows after k layers; None if some are not kept, or if they
        were made in another precision.
        """
        ...


def content_of(example: Example) -> Hashable:
    """Return what identifies an example in a run: its texts, and its image's path or its id in
    memory.
    """
    image = example.image
    seen = image if image is None or isinstance(image, Path) else id(image)
    return (example.prompt, example.target, example.context, seen)


@final
class States:
    """The states after some of the decoder layers, and the runs of the language model from them.

    After the last layer only the positions that predict text are kept, after others all tokens.
    They are in main memory.
    """

    def __init__(self, adapter: Adapter, *, memory_bytes: int = GIGABYTE) -> None:
        self._adapter = adapter
        self._most_bytes = memory_bytes
        self._batches = TensorCache(memory_bytes=memory_bytes)
        self._places = usual_places(adapter) | ({len(adapter.layers)} - {0})
        """Numbers of layers after which a forward of the base model keeps its states."""
        self.by_example: ByExample | None = None
        """Set while a training runs."""
        self.latest: ByExample | None = None
        """The states of the training before, for one that asks the same."""

    @property
    def bytes_used(self) -> int:
        """Size of the states that are kept by batch, in bytes."""
        return self._batches.bytes_used

    def logits(
        self,
        inputs: Inputs,
        examples: Sequence[Example],
        *,
        before: int | None,
        features: Features,
    ) -> Float[Tensor, "batch text vocab"]:
        """Return the logits of a batch.

        `before` is the number of decoder layers before the first one that is edited or recorded;
        None if nothing is. Costs a forward of the layers from there on if states of the batch are
        kept, and of all layers otherwise.
        """
        if runs_whole(self._adapter, examples, before):
            return self._adapter.logits(inputs, features())
        most = len(self._adapter.layers) if before is None else before
        places = self._places if before is None else [before]
        return self._running(inputs, self._nearest(inputs, examples, most), places, features)

    def _nearest(
        self, inputs: Inputs, examples: Sequence[Example], most: int
    ) -> tuple[int, Tensor | None]:
        """Return the states after as many layers as possible, `most` at most, and that number."""
        for k in sorted((k for k in self._places | {most} if k <= most), reverse=True):
            packed = None
            if self.by_example is not None:
                packed = self.by_example.packed(examples, k, precision_on(self._adapter.device))
            if packed is None:
                packed = self._batches.get(_key(inputs, k))
            if packed is not None:
                return k, self._spread(packed, inputs, k)
        return 0, None

    def _running(
        self,
        inputs: Inputs,
        found: tuple[int, Tensor | None],
        places: Collection[int],
        features: Features,
    ) -> Tensor:
        """Return the logits from the states that were found, and keep those of the base model at
        further places on the way, also if the forward is ended there (`first_layers`).
        """
        at, states = found
        self._places.update(places)
        new = [k for k in places if k > at]
        with noted(self._adapter.layers, new, unedited=True) as passed:
            try:
                logits = self._resumed(inputs, at, states, features)
            except ReachedError:
                self._keep_all(inputs, passed)
                raise
        self._keep_all(inputs, passed)
        return logits

    def _resumed(
        self, inputs: Inputs, at: int, states: Tensor | None, features: Features
    ) -> Float[Tensor, "batch text vocab"]:
        adapter = self._adapter
        read = at == 0 or adapter.reads_features_later
        with resumed(adapter.layers, at, states):
            return adapter.logits(inputs, features() if read else ())

    def _keep_all(self, inputs: Inputs, passed: Mapping[int, Tensor]) -> None:
        for k, states in passed.items():
            packed = states[self.kept_at(inputs, k).to(states.device)]
            if packed.nbytes <= self._most_bytes:
                kept = packed.cpu()  # a GPU's memory is for the network
                self._batches.put(_key(inputs, k), kept)

    def _spread(self, packed: Packed, inputs: Inputs, k: int) -> Tensor:
        """Return packed states in their places, and zeros elsewhere."""
        packed = packed.to(inputs.input_ids.device, non_blocking=True)
        there = self.kept_at(inputs, k).to(packed.device)
        states = packed.new_zeros(*there.shape, packed.shape[-1])
        states[there] = packed
        return states

    def kept_at(self, inputs: Inputs, k: int) -> Bool[Tensor, "batch sequence"]:
        """Return the positions at which the states after k layers are kept."""
        last = k == len(self._adapter.layers)
        return inputs.predicts_text if last else inputs.attention_mask.bool()


def usual_places(adapter: Adapter) -> set[int]:
    """Return the number of layers before the first default site; nothing if all layers run."""
    first = min((adapter.layer_of(site) for site in adapter.sites("language")), default=0)
    return {first} - {0}


def runs_whole(adapter: Adapter, examples: Sequence[Example], before: int | None) -> bool:
    """Tell whether all layers run and nothing is kept: the first one is edited, layers cannot be
    skipped, or a row has a context, which is asked once and long.
    """
    has_context = any(example.context for example in examples)
    return before == 0 or not adapter.layers or has_context


def batch_key(inputs: Inputs) -> str:
    """Return a name for what the unedited layers make of a batch."""
    return f"{precision_on(inputs.input_ids.device)}-{inputs.content}"


def precision_on(device: torch.device) -> str:
    """Return the precision of products under autocast; "" without it."""
    kind = device.type
    return str(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else ""


def _key(inputs: Inputs, k: int) -> str:
    """Return a name for what the states after k layers depend on."""
    return f"{k}-{batch_key(inputs)}"
