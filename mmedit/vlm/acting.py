"""Deltas act in a network during one call, and the network itself is never written to.

The usual way is a forward hook that adds Δ(x) to the output of a Linear. It costs products of its
own, for a delta of a whole matrix (`Dense`) as many as the Linear. So in float32 a `Dense` of all
rows is folded: during the call the Linear reads W + ΔW in place of W, which is made once for each
delta. Half precision would round the edit away, so there the hook remains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple
from weakref import WeakKeyDictionary, ref

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mmedit.adapters.layers import forward_replaced
from mmedit.deltas import Delta, Dense, LowRank, Sum, fold, linear_at
from mmedit.errors import SiteError
from mmedit.neurons import by_input

NOTICED = 0.1
"""Share of a Linear's own product above which a low-rank delta should be a whole matrix."""


class Folded(NamedTuple):
    """A weight with a delta in it."""

    weight: Tensor
    """W + ΔW; W itself if ΔW is 0."""
    of: ref[Tensor]
    """W."""
    state: tuple[int, ...]
    """State of W and ΔW when it was made."""


_FOLDED: WeakKeyDictionary[Dense, Folded] = WeakKeyDictionary()
"""The folded weight of a delta lives as long as the delta, and takes as much memory."""


@contextmanager
def added(
    network: nn.Module, deltas: Mapping[str, Delta], rows: int, *, layers: Sequence[str] = ()
) -> Iterator[None]:
    """Add the delta of every named Linear, or of one of the decoder `layers`, to its output while
    the context lasts.

    `rows` is the batch size of the call. It must be given, because OPT flattens (rows, tokens) to
    one axis before fc1 and fc2. Raises SiteError if a delta does not fit.
    """
    with ExitStack() as until:
        for site, delta in deltas.items():
            _require_rows(delta, rows)
            if site in layers:
                module = network.get_submodule(site)
                hook = module.register_forward_hook(_adder(delta, rows, to_layer=True))
                until.callback(hook.remove)
                continue
            linear = linear_at(network, site)
            _require_fits(site, delta, linear)
            parts = by_input(delta)
            own = parts.pop(None, None)
            for reads, part in parts.items():
                until.enter_context(_added_beside(network, site, str(reads), part, rows))
            if own is None:
                continue
            whole, rest = _split(own)
            if whole is not None and takes_folded(linear, whole.change):
                reading = _reading(linear, folded(linear.weight, whole))
                until.enter_context(forward_replaced(linear, reading))
            else:
                rest = own
            if rest is not None:
                hook = linear.register_forward_hook(_adder(rest, rows))
                until.callback(hook.remove)
        yield


def takes_folded(linear: nn.Linear, change: Tensor) -> bool:
    """Return whether the Linear may read W + ΔW in place of W: both are plain float32 on one
    device, and nothing lowers the precision of products.
    """
    weight = linear.weight
    return (
        type(linear) is nn.Linear
        and type(weight) is nn.Parameter
        and "forward" not in vars(linear)  # Accelerate brings the weights in a forward of its own
        and weight.dtype == change.dtype == torch.float32
        and weight.device == change.device
        and not torch.is_autocast_enabled(weight.device.type)
        and torch.get_float32_matmul_precision() == "highest"
    )


def folded(weight: Tensor, delta: Dense) -> Float[Tensor, "out in"]:
    """Return W + ΔW. It is made once, unless a gradient goes through it."""
    if torch.is_grad_enabled() and (delta.change.requires_grad or weight.requires_grad):
        return fold(weight, delta)
    state = (*_state(weight), *_state(delta.change))
    kept = _FOLDED.get(delta)
    if kept is None or kept.of() is not weight or kept.state != state:
        with torch.inference_mode(False), torch.no_grad():
            # W itself keeps every bit of an edit that changes nothing: the last digits of a product
            # depend on where in memory a matrix lies. One row nearly always tells.
            changes = delta.change[:1].any() or delta.change.any()
            made = fold(weight, delta) if changes else weight.detach()
        kept = _FOLDED[delta] = Folded(made, ref(weight), state)
    return kept.weight


def _state(tensor: Tensor) -> tuple[int, int]:
    """Return what changes when other numbers are written to a tensor."""
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version


def cheapest(network: nn.Module, deltas: Mapping[str, Delta]) -> dict[str, Delta]:
    """Return the deltas with whole matrices in place of low-rank ones that a call would notice,
    where a whole matrix can be folded and so costs nothing.
    """
    return {site: _cheapest(linear_at(network, site), delta) for site, delta in deltas.items()}


def _cheapest(linear: nn.Linear, delta: Delta) -> Delta:
    if not isinstance(delta, LowRank) or delta.edits is not None:
        return delta
    (out, in_), rank = delta.shape, len(delta.u)
    noticed = rank * (out + in_) > NOTICED * out * in_
    return Dense(delta.weight()) if noticed and takes_folded(linear, delta.u) else delta


@contextmanager
def _added_beside(
    network: nn.Module, site: str, reads: str, delta: Delta, rows: int
) -> Iterator[None]:
    """Add Δ(x) to the output of a Linear while the context lasts, where x is what the Linear named
    `reads` took before in the same forward.
    """
    noted: list[Tensor] = []

    def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        noted[:] = inputs[:1]

    add = _adder(delta, rows)

    def add_to(linear: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not noted:
            raise SiteError(
                f"the delta at {site} reads {reads}, which did not run before it; expected "
                "a Linear that begins the same feed-forward block"
            )
        return add(linear, (noted.pop(),), output)

    read = linear_at(network, reads)
    with ExitStack() as until:
        until.callback(read.register_forward_pre_hook(note).remove)
        until.callback(linear_at(network, site).register_forward_hook(add_to).remove)
        yield


def _split(delta: Delta) -> tuple[Dense | None, Delta | None]:
    """Return the part of a delta that is one matrix for all rows, and the rest of it."""
    parts = delta.parts if isinstance(delta, Sum) else (delta,)
    whole = next((p for p in parts if isinstance(p, Dense) and p.edits is None), None)
    rest = tuple(part for part in parts if part is not whole)
    return whole, Sum(rest) if len(rest) > 1 else next(iter(rest), None)


def _reading(linear: nn.Linear, weight: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the forward of a Linear that reads another weight."""
    return lambda x: F.linear(x, weight, linear.bias)


def _adder(delta: Delta, rows: int, *, to_layer: bool = False):
    """Return a hook that adds Δ(x), where x is the input of a Linear or the output of a layer."""
    of_call = [delta, _without_prompt_parts(delta)]  # for the first forward, and for those after it

    def add(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        acting = of_call.pop(0) if len(of_call) > 1 else of_call[0]
        if acting is None:
            return output
        x = output if to_layer else inputs[0]
        together = 1 if acting.edits is None else rows  # rows of one edit may be ragged
        change = acting(x.reshape(together, -1, x.shape[-1])).reshape(output.shape)
        return (output + change.to(output.device)).to(output.dtype)

    return add


def _without_prompt_parts(delta: Delta) -> Delta | None:
    """Return what acts in every forward of a call."""
    if not isinstance(delta, Sum):
        return None if delta.of_prompt else delta
    parts = tuple(part for part in delta.parts if not part.of_prompt)
    return Sum(parts) if len(parts) > 1 else next(iter(parts), None)


def _require_rows(delta: Delta, rows: int) -> None:
    if delta.edits is not None and delta.edits != rows:
        raise SiteError(
            f"{delta.edits} separate edits cannot answer {rows} rows: row i is answered "
            "under edit i. "
            "Use select(rows) to say which edit answers which row."
        )


def _require_fits(site: str, delta: Delta, linear: nn.Linear) -> None:
    if delta.shape != (linear.out_features, linear.in_features):
        raise SiteError(
            f"the delta for {site} is {delta.shape}, the weight there "
            f"({linear.out_features}, {linear.in_features})"
        )
