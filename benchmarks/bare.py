"""The work that no editor can avoid, with plain calls of torch and transformers: images through the
tower, rows of tokens through the layers of the language model, and an editor's own matrices.

Tokens, masks, positions, image features and hidden states are ready before a clock starts. mmedit
makes the tokens; its reuse of layers, its batching and its hooks have no part in what is timed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from measuring import Clock, Work, in_turn
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache

from mmedit import Example
from mmedit.adapters.seen import SeenImage
from mmedit.vlm.network import NetworkVLM


class LanguageModel:
    """The layers, the last norm and the head of a network's language model."""

    def __init__(self, network: Any) -> None:
        self.network = network
        decoder = network.get_decoder()
        while not hasattr(decoder, "layers"):
            decoder = decoder.get_decoder()
        self.decoder = decoder
        self.layers: list[nn.Module] = list(decoder.layers)
        self.norm = (
            decoder.final_layer_norm if hasattr(decoder, "final_layer_norm") else decoder.norm
        )
        self.head = network.get_output_embeddings()

    def layer_of(self, site: str) -> int:
        """Return the number of the layer that a Linear site is in."""
        [place] = [
            n
            for n, layer in enumerate(self.layers)
            if self.network.get_submodule(site) in layer.modules()
        ]
        return place

    def note(self, embeds: Tensor, mask: Tensor, layers: Sequence[int]) -> tuple[dict, dict]:
        """Return what the layers are called with beside the hidden states, and the hidden states
        before some of them.
        """
        states: dict[int, Tensor] = {}
        calls: dict[str, Any] = {}

        def noting(number: int) -> Any:
            def note(_: nn.Module, inputs: tuple[Tensor, ...], keywords: dict[str, Any]) -> None:
                states[number] = inputs[0]
                calls.update(keywords)

            return self.layers[number].register_forward_pre_hook(note, with_kwargs=True)

        hooks = [noting(number) for number in {0, *layers}]
        try:
            self.decoder(inputs_embeds=embeds, attention_mask=mask, use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        return calls, states


@dataclass(frozen=True, eq=False)
class Group:
    """Rows of about one length, in one padded batch."""

    model: LanguageModel
    calls: dict[str, Any]
    """Keywords of every layer's call: mask and positions."""
    states: dict[int, Tensor]
    """Hidden states before some layers, by the layer's number."""
    scored: Tensor
    """Positions whose logits are needed, bool [rows, sequence]."""
    target: Tensor
    """Tokens that they predict."""

    def hidden(self, start: int, stop: int | None = None) -> Tensor:
        """Run layers from one on, up to another."""
        state = self.states[start]
        for layer in self.model.layers[start:stop]:
            state = layer(state, **self.calls)
        return state

    def logits(self, state: Tensor) -> Tensor:
        return self.model.head(self.model.norm(state)[self.scored])

    def loss(self, start: int) -> Tensor:
        return F.cross_entropy(self.logits(self.hidden(start)).float(), self.target)


class Rows:
    """Examples, sorted by length into padded batches of `size` rows."""

    def __init__(
        self,
        vlm: NetworkVLM,
        examples: Sequence[Example],
        *,
        size: int,
        layers: Sequence[int],
        all_text: Sequence[bool] = (),
    ) -> None:
        """`layers` may be started from. In rows of `all_text`, by default none, the logits of all
        text tokens are needed, in others those of the answer.
        """
        self.model = LanguageModel(vlm.adapter.network)
        self.vlm, self.layers = vlm, layers
        whole = list(zip(examples, all_text or [False] * len(examples), strict=True))
        lengths = self._inputs(examples).attention_mask.sum(1).tolist() if whole else []
        order = sorted(range(len(whole)), key=lengths.__getitem__)
        self.lengths = [lengths[row] for row in order]
        self.groups = [
            self._group([whole[row] for row in order[at : at + size]])
            for at in range(0, len(order), size)
        ]

    def _inputs(self, examples: Sequence[Example], **how: Any) -> Any:
        images = self.vlm.frozen.see(examples)
        how = {"padding_side": "right", **how}
        return self.vlm.adapter.inputs(examples, images, **how)

    def embedded(self, examples: Sequence[Example], inputs: Any) -> Tensor:
        """Return the token embeddings, with the image features in their places."""
        network, images = self.vlm.adapter.network, self.vlm.frozen.see(examples)
        embeds = network.get_input_embeddings()(inputs.input_ids)
        if not images:
            return embeds
        features = self.vlm.frozen.stage("bridge", list(images.values()))
        flat = torch.cat([one.reshape(-1, one.shape[-1]) for one in features])
        place = (inputs.input_ids == self.vlm.adapter.image_token).unsqueeze(-1)
        return embeds.masked_scatter(place, flat.to(embeds))

    @torch.no_grad()
    def _group(self, rows: Sequence[tuple[Example, bool]]) -> Group:
        examples = [example for example, _ in rows]
        inputs = self._inputs(examples)
        whole = torch.tensor([all_text for _, all_text in rows], device=self.vlm.device)
        needed = inputs.is_answer | (inputs.is_text & whole.unsqueeze(-1))
        needed[:, 0] = False  # no token stands before it
        scored = torch.cat([needed[:, 1:], needed[:, :1]], dim=1)
        mask = inputs.attention_mask
        embeds = self.embedded(examples, inputs)
        calls, states = self.model.note(embeds, mask, self.layers)
        return Group(self.model, calls, states, scored, inputs.input_ids[needed])

    @torch.no_grad()
    def forward(self, start: int = 0) -> None:
        """Run the layers from one on, and the head where logits are needed."""
        for group in self.groups:
            group.logits(group.hidden(start))

    @torch.no_grad()
    def lower(self, stop: int | None) -> None:
        """Run the layers before one, or all, without the head."""
        for group in self.groups:
            group.hidden(0, stop)

    def backward(self, site: str, start: int = 0) -> None:
        """Run `forward`, and backward to the output of a Linear site."""
        for group in self.groups:
            with leaf_at(self.model.network, site) as entered, torch.enable_grad():
                torch.autograd.grad(group.loss(start), entered)

    @torch.no_grad()
    def head(self, kept: Sequence[Tensor]) -> None:
        """Run the head alone, on hidden states of `last`."""
        for group, state in zip(self.groups, kept, strict=True):
            group.logits(state)

    @torch.no_grad()
    def last(self) -> list[Tensor]:
        return [group.hidden(0) for group in self.groups]

    @property
    def scored(self) -> int:
        return sum(int(group.scored.sum()) for group in self.groups)


@contextmanager
def leaf_at(network: nn.Module, site: str) -> Iterator[list[Tensor]]:
    """Make the output of a Linear site a leaf of the graph."""
    entered: list[Tensor] = []

    def note(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
        entered.append(output.detach().requires_grad_())
        return entered[-1]

    hook = network.get_submodule(site).register_forward_hook(note)
    try:
        yield entered
    finally:
        hook.remove()


class DenseSteps:
    """Fine-tuning of a matrix of its own for every row: one step of AdamW."""

    def __init__(self, rows: Rows, sites: Sequence[str], vlm: NetworkVLM) -> None:
        self.rows, self.sites, self.network = rows, sites, vlm.adapter.network
        self.changes = [
            [torch.zeros(len(group.scored), *vlm.shape(site), device=vlm.device) for site in sites]
            for group in rows.groups
        ]
        flat = [change.requires_grad_() for changes in self.changes for change in changes]
        self.optimizer = torch.optim.AdamW(flat, lr=1e-6, weight_decay=0.0)

    def step(self, start: int) -> None:
        for group, changes in zip(self.rows.groups, self.changes, strict=True):
            with torch.enable_grad(), self._added(changes):
                found = torch.autograd.grad(group.loss(start), changes)
            for change, gradient in zip(changes, found, strict=True):
                change.grad = gradient
        self.optimizer.step()

    @contextmanager
    def _added(self, changes: Sequence[Tensor]) -> Iterator[None]:
        def adding(change: Tensor) -> Callable[..., Tensor]:
            def add(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
                x = inputs[0].reshape(len(change), -1, change.shape[-1])
                return output + (x.float() @ change.mT).reshape(output.shape).to(output)

            return add

        hooks = [
            self.network.get_submodule(site).register_forward_hook(adding(change))
            for site, change in zip(self.sites, changes, strict=True)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


class Tower:
    """Distinct images, preprocessed, through vision and bridge in batches of the best size."""

    def __init__(self, vlm: NetworkVLM, examples: Sequence[Example], clock: Clock) -> None:
        seen = {image.key: image for image in vlm.frozen.see(examples).values()}
        self.adapter = vlm.adapter
        self.images = [ready(image) for image in seen.values()]
        tried = {size: Work(partial(self._run, self.images[:16], size)) for size in (1, 4, 16)}
        times = in_turn(tried, 1, clock)
        self.size = min(tried, key=times.__getitem__)

    def forward(self) -> None:
        self._run(self.images, self.size)

    @torch.no_grad()
    def _run(self, images: Sequence[SeenImage], size: int) -> None:
        for at in range(0, len(images), size):
            self.adapter.encode(images[at : at + size])


def ready(image: SeenImage) -> SeenImage:
    pixels = image.pixels
    return SeenImage(image.example, image.key, image.layout, lambda: pixels)


class Generation:
    """Greedy answers of one length, with a cache of keys and values."""

    def __init__(self, vlm: NetworkVLM, examples: Sequence[Example], new_tokens: int) -> None:
        rows = Rows(vlm, [], size=1, layers=())
        self.model, self.new_tokens = rows.model, new_tokens
        inputs = rows._inputs(examples, padding_side="left", with_target=False)
        self.mask = inputs.attention_mask
        with torch.no_grad():
            self.embeds = rows.embedded(examples, inputs)

    @cached_property
    def _cache_name(self) -> str:
        known = inspect.signature(self.model.decoder.forward).parameters
        return "cache" if "cache" in known else "past_key_values"

    @torch.no_grad()
    def run(self) -> None:
        cache = {self._cache_name: DynamicCache(config=self.model.decoder.config)}
        embeds, mask = self.embeds, self.mask
        for _ in range(self.new_tokens):
            made = self.model.decoder(
                inputs_embeds=embeds, attention_mask=mask, use_cache=True, **cache
            ).last_hidden_state[:, -1:]
            best = self.model.head(made).argmax(-1)
            embeds = self.model.network.get_input_embeddings()(best)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
