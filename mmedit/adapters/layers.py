"""The decoder layers of a language model, run from any of them on.

An edit of the last layers leaves what the layers before them compute as it was. So the output of
the last unedited layer, noted once in a forward of the base model, stands in for all of them. The
network's own forward still runs, with its positions, masks and head, and every layer that runs does
the same operations on the same shapes: the result is that of a whole forward, bit for bit.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn
from transformers.activations import ACT2FN

from mmedit.errors import SiteError

States = Float[Tensor, "batch sequence hidden"]
OF_ALL_LAYERS = ("attention_mask", "position_ids", "position_embeddings")
"""Inputs that are the same for all layers of a call."""
VALUE_WEIGHTS = ("fc2", "mlp.down_proj", "mlp.fc2", "mlp.c_proj", "feed_forward.w2")
"""Names of the weight that ends the feed-forward block, in OPT, Llama, Phi, GPT-2, LFM2."""
KEY_WEIGHTS = (
    "fc1", "mlp.up_proj", "mlp.gate_up_proj", "mlp.fc1", "mlp.c_fc", "feed_forward.w1",
)  # fmt: skip
"""Names of a weight that begins the feed-forward block, in OPT, Llama, Phi-3, Phi, GPT-2, LFM2."""
ATTENTION_WEIGHTS = ("self_attn.out_proj", "self_attn.o_proj", "self_attn.dense", "attn.c_proj")
"""Names of the weight that ends the attention block, in OPT, Llama, Phi, GPT-2."""
ACTIVATIONS = ("activation_function", "hidden_activation", "hidden_act")
"""Names of the activation function in configs: OPT and GPT-2; Gemma; Llama and most others."""
GIVE_STATES = ("Gemma3DecoderLayer",)
"""Layers that give states alone, though their annotation says otherwise."""


class Layered:
    """A network that can be run from any decoder layer on, if it has `layers`."""

    network: Any
    reads_features_later: ClassVar[bool] = False
    """Whether image features are also added behind decoder layers, not only to the embeddings."""

    @cached_property
    def layers(self) -> Sequence[nn.Module]:
        """The decoder layers of the language model, in order: each takes the hidden states first
        and returns them. Empty if one cannot be run without the others.
        """
        decoder = self._decoder()
        config = getattr(decoder, "config", None)
        if getattr(config, "num_kv_shared_layers", 0):  # later layers read the keys of earlier ones
            return ()
        found = getattr(decoder, "layers", ())
        return tuple(found) if all(map(_gives_states_alone, found)) else ()

    def _decoder(self) -> Any:
        """Return the module that holds the decoder layers."""
        return self.network.get_decoder()

    def layer_of(self, site: str) -> int:
        """Return how many decoder layers run before a site; 0 if that cannot be told. A layer's own
        site is what it gives, so the layer is among them.
        """
        names = self.layer_sites
        if site in names:
            return names.index(site) + 1
        for number, name in enumerate(names):
            if site.startswith(f"{name}."):
                return number
        module = self.network.get_submodule(site)
        return len(names) if module is self.network.get_output_embeddings() else 0

    @cached_property
    def value_sites(self) -> tuple[str, ...]:
        """The weight that ends the feed-forward block of each decoder layer, in order; empty if a
        layer has none that is known, or several.
        """
        return self._ending(VALUE_WEIGHTS)

    @cached_property
    def ffn_inputs(self) -> tuple[str, ...]:
        """A weight that takes the input of the feed-forward block of each decoder layer, as
        `value_sites`.
        """
        return self._ending(KEY_WEIGHTS)

    @cached_property
    def attention_sites(self) -> tuple[str, ...]:
        """The weight that ends the attention block of each decoder layer, as `value_sites`."""
        return self._ending(ATTENTION_WEIGHTS)

    def _ending(self, endings: Sequence[str]) -> tuple[str, ...]:
        """Return the one weight of each layer whose name ends so; empty if a layer has not one."""
        found = [
            [f"{name}.{ending}" for ending in endings if ending in dict(layer.named_modules())]
            for name, layer in zip(self.layer_sites, self.layers, strict=True)
        ]
        return tuple(site for (site,) in found) if all(len(one) == 1 for one in found) else ()

    @property
    def activation(self) -> Callable[[Tensor], Tensor]:
        """The activation function of the feed-forward blocks. Raises SiteError if the config names
        none that transformers knows.
        """
        config = self.network.config.get_text_config()
        names = [str(getattr(config, key, None)) for key in ACTIVATIONS]
        known = [name for name in names if name in ACT2FN]
        if not known:
            raise SiteError(
                "the config of this language model names no activation function; expected one of "
                f"{', '.join(ACTIVATIONS)}"
            )
        return ACT2FN[known[0]]

    @cached_property
    def layer_sites(self) -> tuple[str, ...]:
        """The names of the decoder layers, in order."""
        names = {id(module): name for name, module in self.network.named_modules()}
        return tuple(names[id(layer)] for layer in self.layers)


def _gives_states_alone(layer: nn.Module) -> bool:
    """Tell whether hidden states are all that a layer gets from the one before it, and all that it
    gives.
    """
    signature = inspect.signature(layer.forward)
    needs = [name for name, one in signature.parameters.items() if one.default is one.empty]
    flows = [name for name in needs if name not in (*OF_ALL_LAYERS, "args", "kwargs")]
    returned = signature.return_annotation in (Tensor, "torch.Tensor")
    return flows == ["hidden_states"] and (returned or type(layer).__name__ in GIVE_STATES)


class ReachedError(Exception):
    """Ends a forward whose further layers are not needed."""

    def __init__(self, states: Tensor) -> None:
        super().__init__("the last layer that is needed has run")
        self.states = states


@contextmanager
def noted(
    layers: Sequence[nn.Module], after: Sequence[int], *, unedited: bool = False
) -> Iterator[dict[int, States]]:
    """Note the hidden states after the first k layers, for each k of `after`, while the context
    lasts; if `unedited`, as layer k gives them, without an edit of what it gives.
    """
    found: dict[int, Tensor] = {}

    def note(k: int) -> Callable[..., None]:
        return lambda _module, _inputs, output: found.__setitem__(k, output.detach())

    with ExitStack() as hooks:
        for k in after:
            hook = layers[k - 1].register_forward_hook(note(k), prepend=unedited)
            hooks.callback(hook.remove)
        yield found


def first_layers(layers: Sequence[nn.Module], k: int, run: Callable[[], Any]) -> States:
    """Return the hidden states after the first k layers of the forward that `run` begins; nothing
    after them is computed.
    """

    def stop(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        raise ReachedError(output.detach())

    return _until(layers[k - 1].register_forward_hook(stop), run)


def input_at(module: nn.Module, run: Callable[[], Any]) -> Tensor:
    """Return the first input of a module in the forward that `run` begins; nothing after it is
    computed.
    """

    def stop(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        raise ReachedError(inputs[0].detach())

    return _until(module.register_forward_pre_hook(stop), run)


def _until(hook: Any, run: Callable[[], Any]) -> Tensor:
    try:
        run()
    except ReachedError as reached:
        return reached.states
    finally:
        hook.remove()
    raise RuntimeError("the forward ended before it reached the module that was asked for")


@contextmanager
def resumed(layers: Sequence[nn.Module], k: int, states: States | None) -> Iterator[None]:
    """Skip the first k layers while the context lasts: `states` is what they give. With k = 0 all
    layers run.
    """
    with ExitStack() as skipped:
        for number, layer in enumerate(layers[:k], start=1):
            given = states if number == k else None
            skipped.enter_context(forward_replaced(layer, _giving(given)))
        yield


def _giving(states: Tensor | None) -> Callable[..., Tensor]:
    """Return a forward that gives `states`, or what it was given, in place of computing."""
    return lambda hidden_states, *_, **__: hidden_states if states is None else states


@contextmanager
def forward_replaced(
    layer: nn.Module, forward: Callable[..., Tensor]
) -> Iterator[Callable[[], None]]:
    """Let a layer have another `forward` until the context ends, or until the function that it
    gives is called.

    It is its `forward` that is replaced, not the layer, so that whatever reads the layer's other
    attributes finds them.
    """
    own = layer.__dict__.get("forward")  # Accelerate's, for offloaded weights

    def restore() -> None:
        if own is not None:
            layer.forward = own
        else:
            layer.__dict__.pop("forward", None)

    layer.forward = forward
    try:
        yield restore
    finally:
        restore()
