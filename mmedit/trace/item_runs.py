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
from mmedit.cases import Example
from mmedit.deltas import linear_at
from mmedit.errors import SiteError
from mmedit.trace.settings import Component
from mmedit.trace.sweep import CANNOT, Prefixes, Sweep, noting_prefixes, sweeping
from mmedit.vlm.network import NetworkVLM
from mmedit.vlm.passes import aligned

States = Float[Tensor, "rows sequence hidden"]


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
    """Input of the first layer, and output of each layer."""
    outputs: Mapping[Component, Sequence[States]]
    """The outputs of each component that was kept, by layer."""
    prefixes: Prefixes
    probabilities: Probabilities


class Restorations(NamedTuple):
    """The outputs that one forward puts back, row by row: a component in a window of layers, at
    positions.
    """

    components: Sequence[Component]
    windows: Sequence[range]
    masks: Bool[Tensor, "rows sequence"]
    sweep: Sweep

    def rows_at(self, component: Component, layer: int) -> Bool[Tensor, " rows"]:
        """Return the rows in which a component of a layer is put back, of those it computes."""
        computed = self.sweep.rows_in(layer)
        chosen = zip(self.components[:computed], self.windows[:computed], strict=True)
        return torch.tensor([one == component and layer in window for one, window in chosen])


def begin_of(component: Component, window: range) -> int:
    """Return the number of layers before the one that a restoration begins with: a whole layer that
    is put back does not run.
    """
    return window.stop if component == "block" else window.start


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
    def image_grid(self) -> tuple[int, int] | None:
        """Rows and columns of the image's tokens; None if they stand for no known places."""
        return self._seen and self._adapter.image_grid(self._seen)

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
        layers, states = self._adapter.layers, []
        kept: dict[Component, list[Tensor]] = {one: [] for one in components}
        kept["block"] = states
        found: list[Prefixes] = []
        with ExitStack() as until:
            entered = layers[0].register_forward_pre_hook(lambda _, given: states.append(given[0]))
            until.callback(entered.remove)
            for component, into in kept.items():
                for module in modules_of(self._vlm, component):
                    until.callback(module.register_forward_hook(_noting(into, rows)).remove)
            if noise is not None:
                embeddings = self._adapter.network.get_input_embeddings()
                until.callback(embeddings.register_forward_hook(_adding(noise)).remove)
            until.enter_context(noting_prefixes(layers, self._implementation, found))
            probabilities = self._run(rows, features)
        return Captured(states, kept, found[0], probabilities)

    @torch.no_grad()
    def restored(
        self,
        clean: Captured,
        corrupt: Captured,
        one: Restorations,
        features: Sequence[Tensor],
    ) -> Probabilities:
        """Return the probabilities after putting outputs of the clean run into corrupted ones.

        `features` are the corrupted images by draw. Costs one forward in which each row begins at
        its first restored layer and at the position `one.sweep.start`.
        """
        layers, draws = self._adapter.layers, one.sweep.draws.tolist()
        device, begins = corrupt.states[0].device, one.sweep.begins
        states = torch.stack(
            [corrupt.states[k][draw].to(device) for k, draw in zip(begins, draws, strict=True)]
        )
        for row, (component, window) in enumerate(zip(one.components, one.windows, strict=True)):
            if component == "block":
                mask = one.masks[row].to(device)
                states[row, mask] = clean.states[window.stop][0].to(device)[mask]
        read_later = self._adapter.reads_features_later and features
        with ExitStack() as until:
            until.enter_context(self._putting_back(clean, one))
            until.enter_context(sweeping(layers, one.sweep, states, corrupt.prefixes))
            return self._run(len(draws), [features[d] for d in draws] if read_later else ())

    @contextmanager
    def _putting_back(self, clean: Captured, one: Restorations) -> Iterator[None]:
        """Let modules give what they gave in the clean run, in their rows and positions."""
        start = one.sweep.start
        with ExitStack() as until:
            for component, kept in clean.outputs.items():
                if component == "block":
                    continue
                for layer, module in enumerate(modules_of(self._vlm, component)):
                    rows = one.rows_at(component, layer)
                    if not rows.any():
                        continue
                    masks = one.masks[: len(rows), start:] & rows.to(one.masks.device)[:, None]
                    put = _putting(kept[layer][:, start:], masks.unsqueeze(-1))
                    until.callback(module.register_forward_hook(put).remove)
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


def _noting(into: list[Tensor], rows: int) -> Callable[..., None]:
    """Return a hook that keeps outputs row by row: OPT flattens rows and tokens to one axis."""
    return lambda _module, _given, output: into.append(output.reshape(rows, -1, output.shape[-1]))


def _adding(noise: Tensor) -> Callable[..., Tensor]:
    return lambda _module, _given, output: output + noise.to(output)


def _putting(kept: States, masks: Bool[Tensor, "rows sequence 1"]) -> Callable[..., Tensor]:
    """Return a hook that gives what was kept at the positions of the masks."""

    def put(_module: nn.Module, _given: object, output: Tensor) -> Tensor:
        found = output.reshape(len(masks), -1, output.shape[-1])
        return kept.where(masks.to(found.device), found).reshape(output.shape)

    return put
