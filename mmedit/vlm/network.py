"""A loaded network as a VLM: its adapter, the deltas it carries, its cache of image features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmedit.adapters.base import Adapter, SeenImage, Stage
from mmedit.adapters.inputs import Inputs, PaddingSide
from mmedit.adapters.weights import weight_of
from mmedit.cache import TensorCache
from mmedit.cases import Example
from mmedit.deltas import Delta, added, compose_all, linear_at
from mmedit.errors import DataError, SiteError
from mmedit.metrics.multiclass_log_probs import answer_nll
from mmedit.vlm.frozen import Frozen
from mmedit.vlm.interface import VLM, Captured, Identity, Predictions


@final
class NetworkVLM(VLM):
    """A network as loaded, with or without deltas. All values over one network share its cache of
    image features.
    """

    def __init__(
        self,
        adapter: Adapter,
        *,
        deltas: Mapping[str, Delta] | None = None,
        features: TensorCache | None = None,
        padding_side: PaddingSide = "right",
        sites: Mapping[Stage, tuple[str, ...]] | None = None,
    ) -> None:
        self.adapter = adapter
        self._sites = dict(sites or {})
        self.deltas = dict(deltas or {})
        self._frozen = Frozen(adapter, features or TensorCache())
        self.padding_side: PaddingSide = padding_side

    def predict(self, examples: Sequence[Example]) -> Predictions:
        return self._predict(examples, recorder=None)

    def generate(self, examples: Sequence[Example], *, max_new_tokens: int) -> list[str]:
        _require_examples(examples)
        images = self._frozen.see(examples)
        inputs = self.adapter.inputs(examples, images, padding_side="left", with_target=False)
        with torch.no_grad():
            features = self._image_features(images, len(examples), recorder=None)
            with added(self.adapter.network, self._deltas_in("language"), rows=len(examples)):
                return self.adapter.generate(inputs, features, max_new_tokens=max_new_tokens)

    def capture(self, examples: Sequence[Example], sites: Sequence[str]) -> Captured:
        self.require_reach(examples, sites)
        recorder = _Recorder(sites=tuple(sites))
        with torch.enable_grad():
            predictions = self._predict(examples, recorder)
            nll = answer_nll(predictions.logits, predictions.target, predictions.is_answer)
            outputs = [recorder.outputs[site] for site in sites]
            gradients = iter(torch.autograd.grad(nll.sum(), [o for site in outputs for o in site]))
        rows = len(examples)
        return Captured(
            x={site: by_row(recorder.inputs[site], rows).to(self.device) for site in sites},
            delta={
                site: by_row([next(gradients) for _ in chunks], rows).to(self.device)
                for site, chunks in zip(sites, outputs, strict=True)
            },
            nll=nll.detach(),
        )

    def represent(self, examples: Sequence[Example]) -> Float[Tensor, "batch hidden"]:
        site = self.sites("language")[0]
        recorder = _Recorder(sites=(site,))
        with torch.no_grad():
            inputs, _ = self._run(examples, recorder)
        last_prompt = inputs.is_answer.int().argmax(1) - 1
        x = by_row(recorder.inputs[site], len(examples))
        return x[torch.arange(len(x), device=x.device), last_prompt.to(x.device)].float()

    def sites(self, where: Stage) -> tuple[str, ...]:
        return self._sites.get(where) or self.adapter.sites(where)

    def shape(self, site: str) -> tuple[int, int]:
        linear = linear_at(self.adapter.network, site)
        return linear.out_features, linear.in_features

    def weight(self, site: str) -> Float[Tensor, "*edits out in"]:
        weight = weight_of(linear_at(self.adapter.network, site)).to(self.device)
        return weight + self.deltas[site].weight() if site in self.deltas else weight

    def require_reach(self, examples: Sequence[Example], sites: Sequence[str]) -> None:
        for site in sites:
            self.shape(site)
        image_sites = [site for site in sites if self.adapter.stage(site) != "language"]
        text_only = [example.prompt for example in examples if example.image is None]
        if image_sites and text_only:
            raise SiteError(
                f"{image_sites[0]} acts on images, and {text_only[0]!r} has none: it can teach "
                "that site "
                "nothing. Give the request an image, or edit the language model."
            )

    def with_deltas(self, deltas: Mapping[str, Delta]) -> NetworkVLM:
        for site, delta in deltas.items():
            if delta.shape != self.shape(site):
                raise SiteError(
                    f"the delta for {site} is {delta.shape}, the weight there {self.shape(site)}"
                )
        return self._with(compose_all(self.deltas, deltas))

    def select(self, rows: Sequence[int]) -> NetworkVLM:
        return self._with({site: delta.select(rows) for site, delta in self.deltas.items()})

    @property
    def device(self) -> torch.device:
        return self.adapter.device

    @property
    def features(self) -> TensorCache:
        """The cache of image features."""
        return self._frozen.features

    @property
    def frozen(self) -> Frozen:
        return self._frozen

    @property
    def identity(self) -> Identity:
        adapter = self.adapter
        return Identity(
            family=str(adapter.network.config.model_type),
            config=adapter.config_hash,
            weights=adapter.fingerprint,
        )

    @property
    def extra_parameters(self) -> int:
        return sum(delta.parameters for delta in self.deltas.values())

    def _with(self, deltas: Mapping[str, Delta]) -> NetworkVLM:
        return NetworkVLM(
            self.adapter,
            deltas=deltas,
            features=self.features,
            padding_side=self.padding_side,
            sites=self._sites,
        )

    def _deltas_in(self, stage: Stage) -> dict[str, Delta]:
        return {site: d for site, d in self.deltas.items() if self.adapter.stage(site) == stage}

    def _predict(self, examples: Sequence[Example], recorder: _Recorder | None) -> Predictions:
        return aligned(*self._run(examples, recorder))

    def _run(
        self, examples: Sequence[Example], recorder: _Recorder | None
    ) -> tuple[Inputs, Tensor]:
        _require_examples(examples)
        images = self._frozen.see(examples)
        inputs = self.adapter.inputs(examples, images, padding_side=self.padding_side)
        features = self._image_features(images, len(examples), recorder)
        rows = tuple(range(len(examples)))
        with self._acting("language", rows, len(examples), recorder):
            return inputs, self.adapter.logits(inputs, features)

    def _image_features(
        self, images: Mapping[int, SeenImage], batch: int, recorder: _Recorder | None
    ) -> list[Tensor]:
        """Vision and bridge outputs of every image: looked up as far as they are frozen, computed
        from there on.
        """
        if not images:
            return []
        seen = list(images.values())
        touched = {
            self.adapter.stage(site)
            for site in (*self.deltas, *(recorder.sites if recorder else ()))
        }
        if not touched & {"vision", "bridge"}:
            return self._frozen.stage("bridge", seen)
        if "vision" not in touched:
            vision = self._frozen.stage("vision", seen)
        else:
            shapes = [image.shapes for image in seen]
            groups = self._groups("vision", shapes, recorder)
            vision = self._in_groups("vision", groups, images, batch, recorder, self._look(seen))
        groups = self._groups("bridge", [tensor.shape for tensor in vision], recorder)
        return self._in_groups("bridge", groups, images, batch, recorder, self._cross(seen, vision))

    def _look(self, seen: Sequence[SeenImage]) -> Callable[[Sequence[int]], list[Tensor]]:
        return lambda places: self.adapter.vision([seen[place] for place in places])

    def _cross(
        self, seen: Sequence[SeenImage], vision: Sequence[Tensor]
    ) -> Callable[[Sequence[int]], list[Tensor]]:
        return lambda places: self.adapter.bridge(
            [vision[place] for place in places], [seen[place] for place in places]
        )

    def _groups(
        self, stage: Stage, shapes: Sequence[object], recorder: _Recorder | None
    ) -> list[list[int]]:
        """Which images go through a stage together: all, but where rows are told apart (separate
        edits, capturing) and images differ in shape, each alone.
        """
        told_apart = any(delta.edits is not None for delta in self._deltas_in(stage).values())
        if recorder:
            told_apart |= any(self.adapter.stage(site) == stage for site in recorder.sites)
        if told_apart and len(set(shapes)) > 1:
            return [[place] for place in range(len(shapes))]
        return [list(range(len(shapes)))]

    def _in_groups(
        self,
        stage: Stage,
        groups: Sequence[Sequence[int]],
        images: Mapping[int, SeenImage],
        batch: int,
        recorder: _Recorder | None,
        run: Callable[[Sequence[int]], list[Tensor]],
    ) -> list[Tensor]:
        rows, made = list(images), []
        for places in groups:
            with self._acting(stage, [rows[place] for place in places], batch, recorder):
                made += run(places)
        return made

    @contextmanager
    def _acting(
        self, stage: Stage, rows: Sequence[int], batch: int, recorder: _Recorder | None
    ) -> Iterator[None]:
        """The deltas, and the recorder, of one stage, for the rows of the batch that pass through
        it.
        """
        deltas = self._deltas_in(stage)
        if len(rows) < batch:
            _require_rows(deltas, batch)
            deltas = {site: delta.select(rows) for site, delta in deltas.items()}
        with ExitStack() as entered:
            entered.enter_context(added(self.adapter.network, deltas, rows=len(rows)))
            if recorder:
                sites = [site for site in recorder.sites if self.adapter.stage(site) == stage]
                entered.enter_context(recorder.listening(self.adapter.network, sites))
            yield


@dataclass(eq=False)
class _Recorder:
    """Notes inputs of Linear sites and makes their outputs leaves of the graph. A site that is
    passed through several times in a call (images one at a time) is noted as often.
    """

    sites: tuple[str, ...]
    inputs: dict[str, list[Tensor]] = field(default_factory=dict)
    outputs: dict[str, list[Tensor]] = field(default_factory=dict)

    @contextmanager
    def listening(self, network: nn.Module, sites: Sequence[str]) -> Iterator[None]:
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
            probe = torch.zeros_like(output, requires_grad=True)
            self.outputs.setdefault(site, []).append(probe)
            return output + probe

        return note


def by_row(passes: Sequence[Tensor], rows: int) -> Float[Tensor, "rows tokens width"]:
    """What a Linear saw, row by row. OPT flattens rows and tokens to one axis; of rows that came
    one at a time the shorter are filled with zeros.
    """
    if len(passes) == 1:
        return passes[0].reshape(rows, -1, passes[0].shape[-1])
    flat = [row.reshape(-1, row.shape[-1]) for row in passes]
    return nn.utils.rnn.pad_sequence(flat, batch_first=True)


def aligned(inputs: Inputs, logits: Float[Tensor, "batch text vocab"]) -> Predictions:
    """The logits with what they are about."""
    exists = torch.arange(
        inputs.position.shape[1], device=inputs.position.device
    ) < inputs.is_text.sum(1, keepdim=True)
    predicted = (
        exists & (inputs.position > 0) & inputs.attention_mask.gather(1, inputs.before).bool()
    )
    return Predictions(
        logits=logits.to(inputs.input_ids.device),  # the head may be on another one
        target=inputs.input_ids.gather(1, inputs.position).where(exists, 0),
        is_text=predicted,
        is_answer=predicted & inputs.is_answer.gather(1, inputs.position),
    )


def _require_examples(examples: Sequence[Example]) -> None:
    if not examples:
        raise DataError("no examples were given; a call needs at least one")


def _require_rows(deltas: Mapping[str, Delta], batch: int) -> None:
    for site, delta in deltas.items():
        if delta.edits is not None and delta.edits != batch:
            raise SiteError(
                f"{delta.edits} separate edits at {site} cannot answer {batch} rows; use "
                "select(rows)"
            )
