"""The prefill of a generation, kept and used again.

The first forward of a generation, its prefill, reads the whole prompt; every layer writes keys and
values into the cache that the later forwards, of one token each, read. An edit of the last layers
leaves keys, values and states of the layers before them as they were. So those of one prefill stand
in for these layers in the next generation after the same prompts: the other layers do the same
operations on the same shapes, and the answers are those of a whole prefill, token for token.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from mmedit.adapters.layers import States, forward_replaced

Written = tuple[
    Float[Tensor, "batch heads sequence width"], Float[Tensor, "batch heads sequence width_too"]
]
"""The keys and values of one layer."""
REFILLABLE = (DynamicLayer, DynamicSlidingWindowLayer)
"""The kinds of a cache's layers that can be filled again: the second if all tokens have room."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Prefill:
    """The work of the first decoder layers in a prefill. No generation changes it."""

    states: Mapping[int, States]
    """The hidden states after the first k layers, for some k."""
    written: tuple[Written, ...]
    """The keys and values of the layers up to the largest k, or more."""

    @property
    def nbytes(self) -> int:
        """Size in memory, in bytes."""
        return sum(map(_size, (*self.written, tuple(self.states.values()))))

    def deepest(self, most: int) -> int:
        """Return the largest k that is not above `most`; 0 if there is none."""
        return max((k for k in self.states if k <= most), default=0)

    def joined(self, other: Prefill) -> Prefill:
        """Return this and another prefill after the same prompts as one."""
        longer = max(self.written, other.written, key=len)
        return Prefill(states={**self.states, **other.states}, written=longer)


class PrefillNotes:
    """Notes of the prefill of one generation."""

    def __init__(self, after: Collection[int], most_bytes: int) -> None:
        self._after = after
        self._room = most_bytes
        self._states: dict[int, Tensor] = {}
        self._written: list[Written] = []

    @property
    def prefill(self) -> Prefill | None:
        """The prefill; None if not all of its layers could be noted."""
        if not self._states or len(self._written) < max(self._after):
            return None
        return Prefill(states=self._states, written=tuple(self._written))

    def listen(self, layer: nn.Module, place: int) -> Callable[[], None]:
        """Note the next forward of a layer. Returns what ends it."""

        def note(_: nn.Module, _args: Any, options: dict[str, Any], output: Tensor) -> None:
            hook.remove()
            self._note(place, options.get("cache"), output.detach())

        # before the hook of an edit of what the layer gives
        hook = layer.register_forward_hook(note, with_kwargs=True, prepend=True)
        return hook.remove

    def _note(self, place: int, cache: Any, output: Tensor) -> None:
        pair = _written(cache, place, tokens=output.shape[1])
        is_place = place + 1 in self._after
        if pair is None or len(self._written) < place:
            return
        self._room -= _size(pair) + is_place * output.nbytes
        if self._room < 0:
            self._written.clear()  # so that nothing after it is noted either
            self._states.clear()
            return
        self._written.append(pair)
        if is_place:
            self._states[place + 1] = output


@contextmanager
def prefill_noted(
    layers: Sequence[nn.Module], after: Collection[int], *, most_bytes: int
) -> Iterator[PrefillNotes]:
    """Note the prefill of the generation in the context: the states after the first k layers for
    each k of `after`, and what these layers write into the cache.

    Nothing is noted if it takes more than `most_bytes`, or if the cache cannot be filled again.
    """
    notes = PrefillNotes(after, most_bytes)
    with ExitStack() as hooks:
        for place, layer in enumerate(layers[: max(after, default=0)]):
            hooks.callback(notes.listen(layer, place))
        yield notes


@contextmanager
def prefill_resumed(layers: Sequence[nn.Module], k: int, prefill: Prefill | None) -> Iterator[None]:
    """Skip the first k layers in the prefill of the generation in the context; in its later
    forwards they run. With k = 0 none is skipped.
    """
    with ExitStack() as skipped:
        for place, layer in enumerate(layers[:k]):
            assert prefill is not None
            given = prefill.states[k] if place + 1 == k else None
            skipped.enter_context(_skipped_once(layer, place, prefill.written[place], given))
        yield


@contextmanager
def _skipped_once(
    layer: nn.Module, place: int, written: Written, states: Tensor | None
) -> Iterator[None]:
    def forward(hidden_states: Tensor, *_: Any, cache: DynamicCache, **__: Any) -> Tensor:
        restore()
        cache.update(*written, place)
        return hidden_states if states is None else states

    with forward_replaced(layer, forward) as restore:
        yield


def _written(cache: Any, place: int, *, tokens: int) -> Written | None:
    """Return what a layer wrote into a cache; None if the cache cannot be filled with it again."""
    if type(cache) is not DynamicCache or len(cache.layers) <= place:
        return None
    layer: Any = cache.layers[place]
    if type(layer) not in REFILLABLE or not layer.is_initialized:
        return None
    if layer.keys.shape[-2] != tokens:  # beyond its window, a layer keeps the last tokens alone
        return None
    return layer.keys, layer.values


def _size(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
