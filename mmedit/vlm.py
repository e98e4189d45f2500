"""A vision-language model as a value: a frozen network, the adapter that speaks to it, and the
edits it carries as deltas.

Axes in all public signatures: `batch` rows of a call; `text` prompt and answer tokens after the
image; `sequence` tokens as the network sees them (image placeholders, context, text, padding);
`vocab`; `in`, `out` widths of a Linear; `edits` separate edits, one per row; `rank` of a low-rank
delta.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, cast, final

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoProcessor

from mmedit.adapters import ADAPTERS, Adapter, Inputs, PaddingSide, Stage
from mmedit.cases import Example
from mmedit.deltas import Delta, added, compose_all, linear_at
from mmedit.errors import DataError, ModelError, SiteError, UnknownNameError
from mmedit.features import TensorCache, stack
from mmedit.images import open_image
from mmedit.metrics import answer_nll


@dataclass(frozen=True, eq=False, kw_only=True)
class Predictions:
    """Teacher-forced outputs, aligned once: `logits[b, t]` is about `target[b, t]`."""

    logits: Float[Tensor, "batch text vocab"]
    target: Int[Tensor, "batch text"]
    is_text: Bool[Tensor, "batch text"]
    """Prompt and answer tokens that something stands before: the first token of a text without
    image is predicted by nothing.
    """
    is_answer: Bool[Tensor, "batch text"]

    def __getitem__(self, rows: slice | Sequence[int]) -> Predictions:
        index = rows if isinstance(rows, slice) else torch.tensor(rows, device=self.target.device)
        return Predictions(
            logits=self.logits[index],
            target=self.target[index],
            is_text=self.is_text[index],
            is_answer=self.is_answer[index],
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Captured:
    """What went into Linear sites, and the gradient of the loss with respect to what came out, for
    every token.

    `x[site]` is [batch, tokens, in], `delta[site]` is [batch, tokens, out]. The loss is the sum
    over rows of the row's mean answer NLL, so that a row's values do not depend on the rest of the
    batch. Tokens that the loss does not reach (padding, all after the last prediction) have delta
    0. At bridge and vision sites rows without image are zero.
    """

    x: dict[str, Float[Tensor, "batch tokens in"]]
    delta: dict[str, Float[Tensor, "batch tokens out"]]
    nll: Float[Tensor, " batch"]


class VLM(ABC):
    """What can be asked, captured and edited. Editors that are no weight delta return a
    `WrappedVLM` of their own.
    """

    @abstractmethod
    def predict(self, examples: Sequence[Example]) -> Predictions:
        """Teacher-forced predictions: one forward of the language model, and of vision and bridge
        for uncached images.

        Differentiable with respect to the deltas. Raises DataError without examples, ModelError
        where one is too long.
        """

    @abstractmethod
    def generate(self, examples: Sequence[Example], *, max_new_tokens: int) -> list[str]:
        """Greedy continuations of the prompts, stripped; targets are not looked at. One forward per
        new token.
        """

    @abstractmethod
    def capture(self, examples: Sequence[Example], sites: Sequence[str]) -> Captured:
        """Inputs x and output gradients δ at Linear sites. One forward, one backward."""

    @abstractmethod
    def represent(self, examples: Sequence[Example]) -> Float[Tensor, "batch hidden"]:
        """What the language model makes of image and prompt, before it answers, in float32: the
        input of its first default site at the last prompt token. For nearest-neighbour search. One
        forward, no gradient.
        """

    @abstractmethod
    def sites(self, where: Stage) -> tuple[str, ...]:
        """The family's default edit sites in the language model, the bridge or the vision tower."""

    @abstractmethod
    def shape(self, site: str) -> tuple[int, int]:
        """(out, in) of the weight at a site. Raises SiteError with the nearest name."""

    @abstractmethod
    def weight(self, site: str) -> Float[Tensor, "*edits out in"]:
        """The weight at a site with the deltas it carries, in float32; a copy."""

    @abstractmethod
    def require_reach(self, examples: Sequence[Example], sites: Sequence[str]) -> None:
        """Raise SiteError where an example does not pass through a site: one without image, an
        image site.
        """

    @abstractmethod
    def with_deltas(self, deltas: Mapping[str, Delta]) -> VLM:
        """The VLM with these deltas added to those it already carries."""

    @abstractmethod
    def select(self, rows: Sequence[int]) -> VLM:
        """The VLM that answers row i under separate edit rows[i]; itself where it carries no
        separate edits.
        """

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where inputs and new parameters go."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of the unedited network's weights: what a trained editor belongs to. Reads every
        weight once.
        """


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
        return recorder.captured(dict(zip(sites, gradients, strict=True)), nll.detach())

    def represent(self, examples: Sequence[Example]) -> Float[Tensor, "batch hidden"]:
        site = self.sites("language")[0]
        recorder = _Recorder(sites=(site,))
        with torch.no_grad():
            inputs, _ = self._run(examples, recorder)
        last_prompt = inputs.is_answer.int().argmax(1) - 1
        x = recorder.by_row(site, recorder.inputs[site])
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
        keys = [self.adapter.image_key(example) for example in with_image]
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
                entered.enter_context(recorder.listening(self.adapter.network, sites, rows, batch))
            yield


class WrappedVLM(VLM):
    """A VLM that asks another one in its own way: the base of edits that are not weight deltas."""

    def __init__(self, inner: VLM) -> None:
        self.inner = inner

    @abstractmethod
    def rewrap(self, inner: VLM) -> VLM:
        """The same edit around another VLM."""

    def sites(self, where: Stage) -> tuple[str, ...]:
        return self.inner.sites(where)

    def shape(self, site: str) -> tuple[int, int]:
        return self.inner.shape(site)

    def weight(self, site: str) -> Float[Tensor, "*edits out in"]:
        return self.inner.weight(site)

    def require_reach(self, examples: Sequence[Example], sites: Sequence[str]) -> None:
        self.inner.require_reach(examples, sites)

    def with_deltas(self, deltas: Mapping[str, Delta]) -> VLM:
        return self.rewrap(self.inner.with_deltas(deltas))

    @property
    def device(self) -> torch.device:
        return self.inner.device

    @property
    def fingerprint(self) -> str:
        return self.inner.fingerprint


@dataclass(eq=False)
class _Recorder:
    """Notes inputs of Linear sites and makes their outputs leaves of the graph."""

    sites: tuple[str, ...]
    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, tuple[Sequence[int], int]] = field(default_factory=dict)

    @contextmanager
    def listening(
        self, network: nn.Module, sites: Sequence[str], rows: Sequence[int], batch: int
    ) -> Iterator[None]:
        hooks = []
        try:
            for site in sites:
                self.rows[site] = (rows, batch)
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

    def captured(self, gradients: Mapping[str, Tensor], nll: Tensor) -> Captured:
        return Captured(
            x={site: self.by_row(site, self.inputs[site]) for site in self.sites},
            delta={site: self.by_row(site, gradients[site]) for site in self.sites},
            nll=nll,
        )

    def by_row(self, site: str, tensor: Tensor) -> Tensor:
        rows, batch = self.rows[site]
        tensor = tensor.reshape(len(rows), -1, tensor.shape[-1])
        if len(rows) == batch:
            return tensor
        spread = tensor.new_zeros(batch, *tensor.shape[1:])
        spread[list(rows)] = tensor
        return spread


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
    return Predictions(
        logits=logits[torch.arange(len(logits), device=logits.device).unsqueeze(1), before],
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


# --- loading

BUILT_IN = {"embedded": "assets/embedded-vlm"}
"""VLMs shipped inside the package: ordinary transformers folders."""

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def resolve_vlm(name_or_path: str | Path) -> str:
    """The folder or hub id behind a name, without loading anything. Raises UnknownNameError or
    ModelError.
    """
    name = str(name_or_path)
    if name in BUILT_IN:
        return str(resources.files("mmedit").joinpath(BUILT_IN[name]))
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{path} has no config.json; a transformers model folder was wanted")
        return str(path)
    if path.exists():
        raise ModelError(f"{path} is a file; a transformers model folder was wanted")
    if HUB_ID.fullmatch(name) and not name.startswith((".", "/")):
        return name
    raise UnknownNameError("VLM (nor model folder, nor hub id like owner/name)", name, BUILT_IN)


def load_vlm(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    device_map: str | dict[str, str | int] | None = None,
    features: TensorCache | None = None,
) -> NetworkVLM:
    """A VLM from a built-in name ("embedded"), a transformers folder, or a hub id: the same code
    path for all.

    `dtype` defaults to float32 without a GPU and to the checkpoint's own with one; `device_map` is
    transformers'. The adapter follows from the config's model type. Raises UnknownNameError,
    ModelError.
    """
    source = resolve_vlm(name_or_path)
    try:
        config = AutoConfig.from_pretrained(source)
        adapter_class = ADAPTERS.get(config.model_type)
        if adapter_class is None:
            raise ModelError(
                f"{name_or_path} is of model type {config.model_type!r}, which has no adapter "
                "yet; there are: "
                f"{', '.join(sorted(ADAPTERS))}"
            )
        processor = AutoProcessor.from_pretrained(source)
        loaded = adapter_class.network_class.from_pretrained(
            source,
            dtype=dtype or ("auto" if torch.cuda.is_available() else torch.float32),
            device_map=device_map,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{name_or_path} cannot be loaded: {error}") from error
    network, loading = cast("tuple[Any, dict[str, Any]]", loaded)
    if missing := sorted(loading["missing_keys"]):
        raise ModelError(
            f"{name_or_path} cannot be loaded: its files lack {len(missing)} of the network's "
            "weights, "
            f"for instance {missing[0]}, which would be random"
        )
    network.eval().requires_grad_(False)
    return NetworkVLM(adapter_class(network, processor), features=features)
