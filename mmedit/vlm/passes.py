"""One pass of a batch through vision, bridge and language, under the deltas that a VLM carries."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmedit.adapters.base import Adapter, Stage
from mmedit.adapters.inputs import Inputs
from mmedit.adapters.seen import SeenImage
from mmedit.deltas import Delta, linear_at
from mmedit.errors import SiteError
from mmedit.neurons import read_by
from mmedit.vlm.acting import added
from mmedit.vlm.frozen import Frozen
from mmedit.vlm.outputs import Predictions


@dataclass(frozen=True, eq=False, kw_only=True)
class Recorder:
    """Keeps the inputs of Linear sites, and makes their outputs leaves of the graph or keeps them.

    A site that several forwards of one call go through (images one at a time) has one entry for
    each of them.
    """

    sites: tuple[str, ...]
    with_gradients: bool = True
    """Whether outputs become leaves of the graph; otherwise they are only noted."""
    inputs: dict[str, list[Tensor]] = field(default_factory=dict)
    outputs: dict[str, list[Tensor]] = field(default_factory=dict)

    @contextmanager
    def listening(self, network: nn.Module, sites: Sequence[str]) -> Iterator[None]:
        """Record at these sites of the network while the context lasts."""
        hooks = []
        try:
            for site in sites:
                hooks.append(linear_at(network, site).register_forward_hook(self._note(site)))
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _note(self, site: str):
        def note(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            self.inputs.setdefault(site, []).append(inputs[0].detach())
            if not self.with_gradients:
                self.outputs.setdefault(site, []).append(output.detach())
                return output
            probe = torch.zeros_like(output, requires_grad=True)
            self.outputs.setdefault(site, []).append(probe)
            return output + probe

        return note


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Pass:
    """One call of a network: the images of a batch, the deltas that act, and what is recorded."""

    adapter: Adapter
    frozen: Frozen
    deltas: Mapping[str, Delta]
    images: Mapping[int, SeenImage]
    """The images of the batch, by row."""
    batch: int
    """The number of rows, with or without an image."""
    recorder: Recorder | None = None

    def image_features(self) -> list[Tensor]:
        """Return the bridge's output for every image, in the order of the rows.

        Stages before the first one that is edited or recorded are looked up, the others computed.
        """
        if not self.images:
            return []
        if self._touched & {"vision", "bridge"}:
            return self.bridge(self.vision())
        return self.frozen.stage("bridge", self._seen)

    def vision(self) -> list[Tensor]:
        """Return the vision tower's output for every image."""
        seen = self._seen
        if "vision" not in self._touched:
            return self.frozen.stage("vision", seen)
        return self._in_groups(
            "vision",
            [image.shapes for image in seen],
            lambda places: self.adapter.vision([seen[place] for place in places]),
        )

    def bridge(self, vision: Sequence[Tensor]) -> list[Tensor]:
        """Return the bridge's output for every image, from the vision tower's."""
        seen = self._seen
        return self._in_groups(
            "bridge",
            [tensor.shape for tensor in vision],
            lambda places: self.adapter.bridge(
                [vision[place] for place in places], [seen[place] for place in places]
            ),
        )

    @contextmanager
    def language(self) -> Iterator[None]:
        """Add the deltas of the language model, and record in it, while the context lasts."""
        with self._acting("language", range(self.batch)):
            yield

    @property
    def layers_before(self) -> int | None:
        """Number of decoder layers before all that is edited or recorded; None if nothing is."""
        if not self._sites:
            return None
        if self._touched != {"language"}:
            return 0
        return min(map(self.adapter.layer_of, self._sites))

    @property
    def touches_head(self) -> bool:
        """Whether the layer that gives the logits is edited or recorded."""
        network = self.adapter.network
        head = network.get_output_embeddings()
        return any(network.get_submodule(site) is head for site in self._sites)

    @property
    def _sites(self) -> tuple[str, ...]:
        """The Linears that are edited, read by deltas, or recorded."""
        return (
            *self.deltas,
            *read_by(self.deltas),
            *(self.recorder.sites if self.recorder else ()),
        )

    @property
    def _seen(self) -> list[SeenImage]:
        return list(self.images.values())

    @property
    def _touched(self) -> set[Stage]:
        """The stages in which something is edited or recorded."""
        return {self.adapter.stage(site) for site in self._sites}

    def _deltas_in(self, stage: Stage) -> dict[str, Delta]:
        return {site: d for site, d in self.deltas.items() if self.adapter.stage(site) == stage}

    def _recorded_in(self, stage: Stage) -> list[str]:
        sites = self.recorder.sites if self.recorder else ()
        return [site for site in sites if self.adapter.stage(site) == stage]

    def _groups(self, stage: Stage, shapes: Sequence[object]) -> list[list[int]]:
        """Return the places of the images that go through a stage together.

        These are all images, unless rows must be told apart (separate edits, recording) and images
        differ in shape: then each goes through alone.
        """
        separate = any(delta.edits is not None for delta in self._deltas_in(stage).values())
        if (separate or self._recorded_in(stage)) and len(set(shapes)) > 1:
            return [[place] for place in range(len(shapes))]
        return [list(range(len(shapes)))]

    def _in_groups(
        self,
        stage: Stage,
        shapes: Sequence[object],
        run: Callable[[Sequence[int]], list[Tensor]],
    ) -> list[Tensor]:
        rows, made = list(self.images), []
        for places in self._groups(stage, shapes):
            with self._acting(stage, [rows[place] for place in places]):
                made += run(places)
        return made

    @contextmanager
    def _acting(self, stage: Stage, rows: Sequence[int]) -> Iterator[None]:
        """Add the deltas of one stage, for these rows of the batch, and record in it."""
        deltas = self._deltas_in(stage)
        if len(rows) < self.batch:
            _require_rows(deltas, self.batch)
            deltas = {site: delta.select(rows) for site, delta in deltas.items()}
        with ExitStack() as entered:
            layers = self.adapter.layer_sites if stage == "language" else ()
            entered.enter_context(
                added(self.adapter.network, deltas, rows=len(rows), layers=layers)
            )
            if self.recorder:
                sites = self._recorded_in(stage)
                entered.enter_context(self.recorder.listening(self.adapter.network, sites))
            yield


def by_row(recorded: Sequence[Tensor], rows: int) -> Float[Tensor, "rows tokens width"]:
    """Return what a Linear took or gave, row by row.

    OPT flattens rows and tokens to one axis. Rows that went through one at a time are filled with
    zeros to the length of the longest.
    """
    if len(recorded) == 1:
        return recorded[0].reshape(rows, -1, recorded[0].shape[-1])
    flat = [row.reshape(-1, row.shape[-1]) for row in recorded]
    return nn.utils.rnn.pad_sequence(flat, batch_first=True)


def aligned(inputs: Inputs, logits: Float[Tensor, "batch text vocab"]) -> Predictions:
    """Return the logits together with the tokens that they predict."""
    exists = inputs.exists
    predicted = (
        exists & (inputs.position > 0) & inputs.attention_mask.gather(1, inputs.before).bool()
    )
    return Predictions(
        logits=logits.to(inputs.input_ids.device),  # the head may be on another one
        target=inputs.input_ids.gather(1, inputs.position).where(exists, 0),
        is_text=predicted,
        is_answer=predicted & inputs.is_answer.gather(1, inputs.position),
    )


def _require_rows(deltas: Mapping[str, Delta], batch: int) -> None:
    for site, delta in deltas.items():
        if delta.edits is not None and delta.edits != batch:
            raise SiteError(
                f"{delta.edits} separate edits at {site} cannot answer {batch} rows; use "
                "select(rows)"
            )
