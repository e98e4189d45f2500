"""One forward in which every row begins at a layer of its own, and at a position of its own kind.

Restoring a hidden state changes nothing in the layers below it and nothing before its position. So
a row joins the forward at its layer, and layers compute it from its position on: attention reads
the keys and values that the corrupted run had before. The network's own forward runs, with its
positions, masks and head; only what its layers compute is cut.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmedit.adapters.layers import forward_replaced, resumed
from mmedit.errors import SiteError

CACHES = ("cache", "past_key_values")
"""The name of a layer's input for keys and values, in newer and older versions of transformers."""


CANNOT = "the decoder layers of this model cannot be told apart, so it cannot be traced"


class KeysValues(NamedTuple):
    """Keys and values of one layer, [rows, heads, sequence, width]."""

    keys: Tensor
    values: Tensor

    def of(self, rows: Int[Tensor, " rows"], length: int) -> KeysValues:
        """Return those of the first positions, in these rows."""
        at = rows.to(self.keys.device)
        return KeysValues(self.keys[at, :, :length], self.values[at, :, :length])


class _Recording:
    """Keeps keys and values, as transformers' caches are told of them."""

    def __init__(self) -> None:
        self.seen: list[KeysValues] = []

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.seen.append(KeysValues(keys, values))
        return keys, values


class _Prefixed:
    """Puts keys and values of earlier positions before those of a call."""

    def __init__(self, before: KeysValues) -> None:
        self._before = before

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        before = self._before
        return torch.cat([before.keys, keys], 2), torch.cat([before.values, values], 2)


@dataclass(frozen=True, eq=False)
class Prefixes:
    """Keys and values of every layer of one run, and the positions that a run may begin at."""

    layers: list[KeysValues] = field(default_factory=list)
    starts: Bool[Tensor, " sequence"] | None = None
    """Positions such that none before them looks at them or behind them; None if layers cannot be
    cut, so that every run begins at the first position.
    """

    def start_before(self, position: int) -> int:
        """Return the last position up to this one that a run may begin at."""
        if self.starts is None:
            return 0
        return int(self.starts[: position + 1].nonzero().max())


class Sweep(NamedTuple):
    """How far each row of one forward begins, and from which position all of them compute."""

    begins: Sequence[int]
    """The number of layers before the one that a row begins with, from small to large."""
    draws: Int[Tensor, " rows"]
    """The row of the noted run that each row continues."""
    start: int

    def rows_in(self, layer: int) -> int:
        """Return how many rows a layer computes."""
        return bisect_right(self.begins, layer)


@contextmanager
def noting_prefixes(
    layers: Sequence[nn.Module], implementation: str, found: list[Prefixes]
) -> Iterator[None]:
    """Note keys, values and masks of the forward that runs while the context lasts, and add them to
    `found` when it ends. `implementation` is that of attention, as the config names it.
    """
    caches, masks = [_Recording() for _ in layers], []

    def noting(own: Callable[..., Tensor], cache: _Recording) -> Callable[..., Tensor]:
        def forward(hidden_states: Tensor, *others: Any, **given: Any) -> Tensor:
            if others:
                raise SiteError(CANNOT)
            name = next((name for name in CACHES if name in given), None)
            masks.append(_reach(hidden_states, given, implementation) if name else None)
            return own(hidden_states, **given | ({name: cache} if name else {}))

        return forward

    with ExitStack() as replaced:
        for layer, cache in zip(layers, caches, strict=True):
            replaced.enter_context(forward_replaced(layer, noting(layer.forward, cache)))
        yield
    whole = [reach for reach in masks if reach is not None]
    if len(whole) == len(layers) and all(len(cache.seen) == 1 for cache in caches):
        furthest = torch.stack(whole).amax(0).cummax(0).values
        place = torch.arange(len(furthest), device=furthest.device)
        starts = torch.cat([furthest.new_ones(1, dtype=torch.bool), furthest[:-1] < place[1:]])
        found.append(Prefixes([cache.seen[0] for cache in caches], starts))
    else:
        found.append(Prefixes())


@contextmanager
def sweeping(
    layers: Sequence[nn.Module],
    sweep: Sweep,
    states: Float[Tensor, "rows sequence hidden"],
    prefixes: Prefixes,
) -> Iterator[None]:
    """Let each row begin behind its own number of layers while the context lasts: `states` are what
    goes into the layer that a row begins with.

    A layer computes the rows that have begun, and of them the positions from `sweep.start` on.
    """
    first = sweep.begins[0]
    with ExitStack() as until:
        until.enter_context(_begun(layers, first, states))
        for number, layer in enumerate(layers[first:], start=first):
            rows = sweep.rows_in(number)
            cache = None
            if sweep.start:
                before, draws = prefixes.layers[number], sweep.draws[:rows]
                cache = _Prefixed(before.of(draws, sweep.start))
            forward = _partial(layer.forward, states[rows:], rows, sweep.start, cache)
            until.enter_context(forward_replaced(layer, forward))
        yield


def _partial(
    own: Callable[..., Tensor], rest: Tensor, rows: int, start: int, cache: _Prefixed | None
) -> Callable[..., Tensor]:
    """Return a forward that computes the first rows, and gives `rest` for the others."""

    def forward(hidden_states: Tensor, **given: Any) -> Tensor:
        changed: dict[str, Any] = {}
        mask = given.get("attention_mask")
        if cache is not None:
            changed |= {name: cache for name in CACHES if name in given}
            mask = _causal(hidden_states) if mask is None else mask
        if mask is not None:
            changed["attention_mask"] = mask[:rows, :, start:]
        if (positions := given.get("position_ids")) is not None:
            changed["position_ids"] = positions[..., :rows, start:]
        if (turned := given.get("position_embeddings")) is not None:
            changed["position_embeddings"] = tuple(one[..., :rows, start:, :] for one in turned)
        computed = own(hidden_states[:rows, start:], **given | changed)
        before = hidden_states[:rows, :start].to(computed.device)
        return torch.cat([torch.cat([before, computed], 1), rest.to(computed.device)])

    return forward


@contextmanager
def _begun(layers: Sequence[nn.Module], k: int, states: Tensor) -> Iterator[None]:
    """Begin after the first k layers with these states while the context lasts; with k = 0 they are
    what goes into the first layer.
    """
    if k:
        with resumed(layers, k, states):
            yield
        return
    hook = layers[0].register_forward_pre_hook(lambda _, given: (states, *given[1:]))
    try:
        yield
    finally:
        hook.remove()


def _causal(hidden_states: Tensor) -> Bool[Tensor, "1 1 sequence sequence"]:
    place = torch.arange(hidden_states.shape[1], device=hidden_states.device)
    return (place <= place[:, None])[None, None]


def _reach(
    hidden_states: Tensor, given: Mapping[str, Any], implementation: str
) -> Int[Tensor, " sequence"] | None:
    """Return the last position that each position of a layer looks at; None if that cannot be told
    from the inputs of the layer.
    """
    mask, length = given.get("attention_mask"), hidden_states.shape[1]
    place = torch.arange(length, device=hidden_states.device)
    if mask is None and implementation != "sdpa":
        return None
    if mask is None:  # causal, as transformers leaves out such a mask
        return place
    if not isinstance(mask, Tensor) or mask.ndim != 4 or mask.shape[-2:] != (length, length):
        return None
    seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    return place.where(seen.flatten(0, 1).any(0), 0).amax(1)
