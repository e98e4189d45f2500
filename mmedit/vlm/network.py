"""A loaded network as a VLM: its adapter, the deltas it carries, its cache of image features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmedit.adapters import Adapter, Inputs, PaddingSide, Stage
from mmedit.cases import Example
from mmedit.deltas import Delta, added, compose_all, linear_at
from mmedit.errors import DataError, SiteError
from mmedit.features import TensorCache, stack
from mmedit.images import open_image
from mmedit.metrics import answer_nll
from mmedit.vlm.interface import VLM, Captured, Predictions


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
    ) -> None:
        self.adapter = adapter
        self.deltas = dict(deltas or {})
        self.features = features or TensorCache()
        self.padding_side: PaddingSide = padding_side

    def predict(self, examples: Sequence[Example]) -> Predictions:
        return self._predict(examples, recorder=None)

    def generate(self, examples: Sequence[Example], *, max_new_tokens: int) -> list[str]:
        _require_examples(examples)
        inputs = self.adapter.inputs(examples, padding_side="left", with_target=False)
        with torch.no_grad():
            features = self._image_features(examples, inputs.image_rows, recorder=None)
            with added(self.adapter.network, self._deltas_in("language"), rows=len(examples)):
                return self.adapter.generate(inputs, features, max_new_tokens=max_new_tokens)

    def capture(self, examples: Sequence[Example], sites: Sequence[str]) -> Captured:
        self.require_reach(examples, sites)
        recorder = _Recorder(sites=tuple(sites))
        with torch.enable_grad():
            predictions = self._predict(examples, recorder)
            nll = answer_nll(predictions.logits, predictions.target, predictions.is_answer)
            gradients = torch.autograd.grad(nll.sum(), [recorder.outputs[site] for site in sites])
        rows = len(examples)
        return Captured(
            x={site: by_row(recorder.inputs[site], rows) for site in sites},
            delta={site: by_row(g, rows) for site, g in zip(sites, gradients, strict=True)},
            nll=nll.detach(),
        )

    def represent(self, examples: Sequence[Example]) -> Float[Tensor, "batch hidden"]:
        site = self.sites("language")[0]
        recorder = _Recorder(sites=(site,))
        with torch.no_grad():
            inputs, _ = self._run(examples, recorder)
        last_prompt = inputs.is_answer.int().argmax(1) - 1
        x = by_row(recorder.inputs[site], len(examples))
        return x[torch.arange(len(x), device=x.device), last_prompt].float()

    def sites(self, where: Stage) -> tuple[str, ...]:
        return self.adapter.sites(where)

    def shape(self, site: str) -> tuple[int, int]:
        linear = linear_at(self.adapter.network, site)
        return linear.out_features, linear.in_features

    def weight(self, site: str) -> Float[Tensor, "*edits out in"]:
        weight = linear_at(self.adapter.network, site).weight.detach().float().clone()
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
        return next(self.adapter.network.parameters()).device

    @property
    def fingerprint(self) -> str:
        return self.adapter.fingerprint

    def _with(self, deltas: Mapping[str, Delta]) -> NetworkVLM:
        return NetworkVLM(
            self.adapter, deltas=deltas, features=self.features, padding_side=self.padding_side
        )

    def _deltas_in(self, stage: Stage) -> dict[str, Delta]:
        return {site: d for site, d in self.deltas.items() if self.adapter.stage(site) == stage}

    def _predict(self, examples: Sequence[Example], recorder: _Recorder | None) -> Predictions:
        return align(*self._run(examples, recorder))

    def _run(
        self, examples: Sequence[Example], recorder: _Recorder | None
    ) -> tuple[Inputs, Tensor]:
        _require_examples(examples)
        inputs = self.adapter.inputs(examples, padding_side=self.padding_side)
        features = self._image_features(examples, inputs.image_rows, recorder)
        rows = tuple(range(len(examples)))
        with self._acting("language", rows, len(examples), recorder):
            return inputs, self.adapter.logits(inputs, features)

    def _image_features(
        self, examples: Sequence[Example], image_rows: Sequence[int], recorder: _Recorder | None
    ) -> Tensor | None:
        """Vision and bridge outputs of the rows with image: looked up as far as they are frozen,
        computed from there on.
        """
        if not image_rows:
            return None
        with_image = [examples[row] for row in image_rows]
        keys = [self._namespace + self.adapter.image_key(example) for example in with_image]
        touched = {
            self.adapter.stage(site)
            for site in (*self.deltas, *(recorder.sites if recorder else ()))
        }
        if not touched & {"vision", "bridge"}:
            return self._frozen("bridge", with_image, keys)
        if "vision" not in touched:
            vision = self._frozen("vision", with_image, keys)
        else:
            with self._acting("vision", image_rows, len(examples), recorder):
                vision = self._see(with_image)
        with self._acting("bridge", image_rows, len(examples), recorder):
            return self.adapter.bridge(vision)

    @property
    def _namespace(self) -> str:
        """Files outlive a process and may meet another network: their names tell whose they are."""
        return f"{self.adapter.fingerprint}-" if self.features.on_disk else ""

    def _frozen(
        self, last: Literal["vision", "bridge"], examples: Sequence[Example], keys: Sequence[str]
    ) -> Tensor:
        """The output of the last frozen stage: computed for the distinct images not seen before,
        else looked up.
        """

        @torch.no_grad()
        def compute(positions: Sequence[int]) -> Sequence[Tensor]:
            vision = self._see([examples[position] for position in positions])
            return list(vision if last == "vision" else self.adapter.bridge(vision))

        return stack(self.features.lookup([f"{last}-{key}" for key in keys], compute), self.device)

    def _see(self, examples: Sequence[Example]) -> Tensor:
        images = [open_image(example.image) for example in examples if example.image is not None]
        return self.adapter.vision(self.adapter.pixels(images))

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
    """Notes inputs of Linear sites and makes their outputs leaves of the graph."""

    sites: tuple[str, ...]
    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)

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
            self.inputs[site] = inputs[0].detach()
            probe = torch.zeros_like(output, requires_grad=True)
            self.outputs[site] = probe
            return output + probe

        return note


def by_row(tensor: Tensor, rows: int) -> Float[Tensor, "rows tokens width"]:
    """What a Linear saw, row by row: OPT flattens rows and tokens to one axis."""
    return tensor.reshape(rows, -1, tensor.shape[-1])


def align(inputs: Inputs, logits: Float[Tensor, "batch sequence vocab"]) -> Predictions:
    """Shift and crop the network's logits to the text tokens: the one place where positions are
    counted.
    """
    text_tokens = inputs.is_text.sum(1)
    offset = torch.arange(int(text_tokens.max()), device=logits.device)
    position = inputs.is_text.int().argmax(1, keepdim=True) + offset
    exists = offset < text_tokens.unsqueeze(1)
    position = position.clamp(max=inputs.input_ids.shape[1] - 1)
    before = (position - 1).clamp(min=0)
    predicted = exists & (position > 0) & inputs.attention_mask.gather(1, before).bool()
    # index_select, not logits[rows, before]: the gradient of the latter is summed in any order.
    rows = torch.arange(len(logits), device=logits.device).unsqueeze(1) * logits.shape[1]
    chosen = logits.flatten(0, 1).index_select(0, (rows + before).flatten())
    return Predictions(
        logits=chosen.unflatten(0, before.shape),
        target=inputs.input_ids.gather(1, position).where(exists, 0),
        is_text=predicted,
        is_answer=predicted & inputs.is_answer.gather(1, position),
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
