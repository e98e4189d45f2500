"""Decoder layers run from one position on, with the keys and values of what stands before it.

Restoring a hidden state changes nothing before its position, so a forward need not compute what
stands there: attention reads the keys and values that the corrupted run had. The network's own
forward still runs; only what its layers compute is cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from mmedit.adapters.layers import forward_replaced

CACHES = ("cache", "past_key_values")
"""The name of a layer's input for keys and values, in newer and older versions of transformers."""


class KeysValues(NamedTuple):
    """Keys and values of one layer, [rows, heads, sequence, width]."""

    keys: Tensor
    values: Tensor


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


@contextmanager
def noting_prefixes(
    layers: Sequence[nn.Module], implementation: str, found: list[Prefixes]
) -> Iterator[None]:
    """Note keys, values and masks of the forward that runs while the context lasts, and add them to
    `found` when it ends. `implementation` is that of attention, as the config names it.
    """
    caches, masks = [_Recording() for _ in layers], []

    def noting(own: Callable[..., Tensor], cache: _Recording) -> Callable[..., Tensor]:
        def forward(hidden_states: Tensor, *args: Any, **given: Any) -> Tensor:
            name = next((name for name in CACHES if name in given), None)
            masks.append(_reach(hidden_states, args, given, implementation) if name else None)
            return own(hidden_states, *args, **given | ({name: cache} if name else {}))

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
def cut_before(
    layers: Sequence[nn.Module],
    first: int,
    start: int,
    prefixes: Prefixes,
    rows: Int[Tensor, " rows"],
) -> Iterator[None]:
    """Let layers from number `first` on compute the positions from `start` on alone while the
    context lasts; `rows` says which row of the noted run each row continues.

    The hidden states before `start` pass through unchanged.
    """
    with ExitStack() as replaced:
        for number, layer in enumerate(layers[first:] if start else (), start=first):
            before = prefixes.layers[number]
            at = rows.to(before.keys.device)
            kept = KeysValues(before.keys[at, :, :start], before.values[at, :, :start])
            cut = _cut(layer.forward, start, _Prefixed(kept))
            replaced.enter_context(forward_replaced(layer, cut))
        yield


def _cut(own: Callable[..., Tensor], start: int, cache: _Prefixed) -> Callable[..., Tensor]:
    def forward(hidden_states: Tensor, **given: Any) -> Tensor:
        changed: dict[str, Any] = {name: cache for name in CACHES if name in given}
        changed["attention_mask"] = _mask_from(start, hidden_states, given)
        if (positions := given.get("position_ids")) is not None:
            changed["position_ids"] = positions[..., start:]
        if (turned := given.get("position_embeddings")) is not None:
            changed["position_embeddings"] = tuple(one[..., start:, :] for one in turned)
        computed = own(hidden_states[:, start:], **given | changed)
        return torch.cat([hidden_states[:, :start], computed], 1)

    return forward


def _mask_from(start: int, hidden_states: Tensor, given: Mapping[str, Any]) -> Tensor:
    mask = given.get("attention_mask")
    if mask is not None:
        return mask[:, :, start:]
    length = hidden_states.shape[1]
    place = torch.arange(length, device=hidden_states.device)
    return (place <= place[start:, None])[None, None]


def _reach(
    hidden_states: Tensor, args: Sequence[Any], given: Mapping[str, Any], implementation: str
) -> Int[Tensor, " sequence"] | None:
    """Return the last position that each position of a layer looks at; None if that cannot be told
    from the inputs of the layer.
    """
    mask, length = given.get("attention_mask"), hidden_states.shape[1]
    place = torch.arange(length, device=hidden_states.device)
    if args or (mask is None and implementation != "sdpa"):
        return None
    if mask is None:  # causal, as transformers leaves out such a mask
        return place
    if not isinstance(mask, Tensor) or mask.ndim != 4 or mask.shape[-2:] != (length, length):
        return None
    seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    return place.where(seen.flatten(0, 1).any(0), 0).amax(1)
