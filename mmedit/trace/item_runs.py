"""The forwards of one item: clean, corrupted, and corrupted with clean outputs put back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmedit.adapters.inputs import Inputs
from mmedit.adapters.layers import resumed
from mmedit.cases import Example
from mmedit.deltas import linear_at
from mmedit.errors import SiteError
from mmedit.trace.settings import Component
from mmedit.trace.suffix import Prefixes, cut_before, noting_prefixes
from mmedit.vlm.network import NetworkVLM
from mmedit.vlm.passes import aligned

States = Float[Tensor, "rows sequence hidden"]
CANNOT = "the decoder layers of this model cannot be told apart, so it cannot be traced"


class Probabilities(NamedTuple):
    """Teacher-forced probabilities, in float32."""

    first: Float[Tensor, " rows"]
    """Probability of the first answer token."""
    answer: Float[Tensor, " rows"]
    """Probability of the whole answer: exp of its summed log-probabilities."""
    is_right: Bool[Tensor, " rows"]
    """Whether every answer token is the likeliest one."""


@dataclass(frozen=True, eq=False)
class Captured:
    """A run whose hidden states were kept."""

    states: Sequence[States]
    """What goes into the first layer, and what comes out of each layer."""
    outputs: Mapping[Component, Sequence[States]]
    """The outputs of MLP and attention, by layer."""
    prefixes: Prefixes
    probabilities: Probabilities


class Restoration(NamedTuple):
    """What one forward puts back: a component in some layers, at some positions of each row."""

    component: Component
    layers: range
    masks: Bool[Tensor, "rows sequence"]
    draws: Int[Tensor, " rows"]
    """The corrupted run that each row continues."""
    start: int
    """The position from which on the forward computes."""

    @property
    def is_block(self) -> bool:
        """Whether whole layers are put back, so that the last of them need not run."""
        return self.component == "block"


@final
class ItemRuns:
    """One item in the network of a base model, in as many equal rows as a forward needs."""

    def __init__(self, vlm: NetworkVLM, example: Example) -> None:
        self._vlm, self._adapter, self._example = vlm, vlm.adapter, example
        self.places = vlm.places([example])
        self._seen = vlm.frozen.see([example]).get(0)
        self._inputs: dict[int, Inputs] = {}

    def features(self) -> tuple[Tensor, ...]:
        """Return the features of the item's image; none without one."""
        seen = [] if self._seen is None else [self._seen]
        return tuple(self._vlm.frozen.stage("bridge", seen))

    @property
    def tokens(self) -> Int[Tensor, " sequence"]:
        """The token ids of the item."""
        return self._of_rows(1).input_ids[0]

    @torch.no_grad()
    def probabilities(self, features: Sequence[Tensor]) -> Probabilities:
        """Return those of a run with these features, a row for each. One forward."""
        return self._run(len(features), features)

    @torch.no_grad()
    def captured(
        self,
        rows: int,
        features: Sequence[Tensor],
        components: Sequence[Component] = (),
        *,
        noise: Float[Tensor, "rows sequence hidden"] | None = None,
    ) -> Captured:
        """Run and keep the hidden states, and the outputs of components. `noise` is added to the
        embeddings. One forward.
        """
        layers = self._adapter.layers
        notes: dict[Component | str, list[Tensor]] = {c: [] for c in (*components, "states")}
        found: list[Prefixes] = []
        with ExitStack() as until:
            entered = layers[0].register_forward_pre_hook(
                lambda _, given: notes["states"].append(given[0])
            )
            until.callback(entered.remove)
            for component in {"block", *components}:
                into = notes["states" if component == "block" else component]
                for module in modules_of(self._vlm, component):
                    until.callback(module.register_forward_hook(_noting(into, rows)).remove)
            if noise is not None:
                embeddings = self._adapter.network.get_input_embeddings()
                until.callback(embeddings.register_forward_hook(_adding(noise)).remove)
            until.enter_context(noting_prefixes(layers, self._implementation, found))
            probabilities = self._run(rows, features)
        outputs = {c: notes[c] for c in components if c != "block"}
        return Captured(notes["states"], outputs, found[0], probabilities)

    @torch.no_grad()
    def restored(
        self,
        clean: Captured,
        corrupt: Captured,
        one: Restoration,
        features: Sequence[Tensor],
    ) -> Probabilities:
        """Return the probabilities after putting outputs of the clean run into corrupted ones.

        `features` are the corrupted images by draw. Costs one forward, of the positions from
        `one.start` on in the layers that come after the restored one, and of the windows that are
        restored themselves.
        """
        layers, rows = self._adapter.layers, len(one.draws)
        k = one.layers.stop if one.is_block else one.layers.start
        states = corrupt.states[k]
        states = states[one.draws.to(states.device)]
        if one.is_block:
            states = clean.states[k].where(one.masks.to(states.device).unsqueeze(-1), states)
        read_later = self._adapter.reads_features_later and features
        with ExitStack() as until:
            until.enter_context(_begun(layers, k, states))
            until.enter_context(cut_before(layers, k, one.start, corrupt.prefixes, one.draws))
            if not one.is_block:
                until.enter_context(self._putting_back(clean, one))
            return self._run(
                rows, [features[draw] for draw in one.draws.tolist()] if read_later else ()
            )

    @contextmanager
    def _putting_back(self, clean: Captured, one: Restoration) -> Iterator[None]:
        """Let the component's modules give what they gave in the clean run, at the positions."""
        modules = modules_of(self._vlm, one.component)
        with ExitStack() as until:
            for layer in one.layers:
                kept = clean.outputs[one.component][layer][:, one.start :]
                masks = one.masks[:, one.start :, None].to(kept.device)
                hook = modules[layer].register_forward_hook(_putting(kept, masks))
                until.callback(hook.remove)
            yield

    def _run(self, rows: int, features: Sequence[Tensor]) -> Probabilities:
        inputs = self._of_rows(rows)
        return probabilities_of(inputs, self._adapter.logits(inputs, features))

    def _of_rows(self, rows: int) -> Inputs:
        if rows not in self._inputs:
            images = {} if self._seen is None else dict.fromkeys(range(rows), self._seen)
            self._inputs[rows] = self._adapter.inputs(
                [self._example] * rows,
                images,
                padding_side=self._vlm.padding_side,
                answers_only=[True] * rows,
            )
        return self._inputs[rows]

    @property
    def _implementation(self) -> str:
        config = self._adapter.network.config.get_text_config()
        return str(config._attn_implementation)


def modules_of(vlm: NetworkVLM, component: Component) -> Sequence[nn.Module]:
    """Return the module of every layer whose output is restored. Raises SiteError."""
    adapter = vlm.adapter
    if not adapter.layers:
        raise SiteError(CANNOT)
    if component == "block":
        return adapter.layers
    sites = adapter.value_sites if component == "mlp" else adapter.attention_sites
    if not sites:
        raise SiteError(
            f"the weight that ends the {component} of each layer cannot be told in this model; "
            "trace other components, for example --component block"
        )
    return [linear_at(adapter.network, site) for site in sites]


def probabilities_of(inputs: Inputs, logits: Tensor) -> Probabilities:
    """Return the probabilities of the answers of a batch whose logits are about answers alone."""
    found = aligned(inputs, logits)
    scores = found.logits.float().log_softmax(-1)
    log_probs = scores.gather(-1, found.target.unsqueeze(-1)).squeeze(-1)
    is_right = (scores.argmax(-1) == found.target) | ~found.is_answer
    return Probabilities(
        first=log_probs[:, 0].exp(),
        answer=log_probs.where(found.is_answer, 0).sum(1).exp(),
        is_right=is_right.all(1),
    )


@contextmanager
def _begun(layers: Sequence[nn.Module], k: int, states: States) -> Iterator[None]:
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


def _noting(into: list[Tensor], rows: int) -> Callable[..., None]:
    """Return a hook that keeps outputs row by row: OPT flattens rows and tokens to one axis."""
    return lambda _module, _given, output: into.append(output.reshape(rows, -1, output.shape[-1]))


def _adding(noise: Tensor) -> Callable[..., Tensor]:
    return lambda _module, _given, output: output + noise.to(output)


def _putting(kept: States, masks: Bool[Tensor, "rows sequence 1"]) -> Callable[..., Tensor]:
    """Return a hook that gives what was kept at the positions of the masks."""

    def put(_module: nn.Module, _given: object, output: Tensor) -> Tensor:
        found = output.reshape(len(masks), -1, output.shape[-1])
        return kept.where(masks, found).reshape(output.shape)

    return put
