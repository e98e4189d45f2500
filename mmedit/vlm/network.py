"""A loaded network as a VLM: its adapter, the deltas it carries, its cache of image features."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from mmedit.adapters.base import STAGES, Adapter, Stage
from mmedit.adapters.generation import Answer, Decoding, require_decoding_of
from mmedit.adapters.inputs import Inputs, PaddingSide
from mmedit.adapters.layers import input_at
from mmedit.adapters.places import Places, places_of
from mmedit.adapters.protocol import protocol_of
from mmedit.adapters.weights import weight_of
from mmedit.cache import TensorCache
from mmedit.cases import Example
from mmedit.deltas import Delta, compose_all, linear_at
from mmedit.errors import SiteError
from mmedit.metrics.multiclass_log_probs import answer_nll
from mmedit.neurons import by_input
from mmedit.vlm.acting import cheapest
from mmedit.vlm.decoding import groups_with_room
from mmedit.vlm.edit import DeltaChange, Edit, merged, nameless, with_own_name
from mmedit.vlm.frozen import Frozen
from mmedit.vlm.identity import Identity
from mmedit.vlm.interface import VLM
from mmedit.vlm.observing import observed, require_layers
from mmedit.vlm.outputs import Captured, Observed, Predictions
from mmedit.vlm.passes import Pass, Recorder, aligned, by_row


@final
class NetworkVLM(VLM):
    """A network as loaded, with or without deltas.

    All values over one network share its cache of image features and hidden states. Both are known
    by what is asked, so nothing may write to the network's weights between two calls.
    """

    def __init__(
        self,
        adapter: Adapter,
        *,
        name: str = "",
        deltas: Mapping[str, Delta] | None = None,
        features: TensorCache | None = None,
        frozen: Frozen | None = None,
        padding_side: PaddingSide = "right",
        sites: Mapping[Stage, tuple[str, ...]] | None = None,
        edits: tuple[Edit, ...] = (),
    ) -> None:
        self.adapter = adapter
        self._name = name
        self._sites = dict(sites or {})
        self.deltas = dict(deltas or {})
        self._edits = edits or ((nameless(DeltaChange(self.deltas)),) if self.deltas else ())
        self._frozen = frozen or Frozen(adapter, features or TensorCache())
        self.padding_side: PaddingSide = padding_side

    def __repr__(self) -> str:
        network = self.adapter.network
        count = sum(parameter.numel() for parameter in network.parameters())
        sites = ", ".join(f"{len(self.sites(stage))} {stage}" for stage in STAGES)
        parts = (
            repr(self.name) if self.name else "no name",
            f"family {network.config.model_type}",
            f"{count:,} parameters",
            str(network.dtype).removeprefix("torch."),
            f"on {self.device}",
            f"edit sites: {sites}",
            _described(self.deltas),
        )
        return f"VLM({'; '.join(parts)})"

    @property
    def name(self) -> str:
        return self._name

    def predict(
        self, examples: Sequence[Example], *, answers_only: Sequence[bool] | None = None
    ) -> Predictions:
        return aligned(*self._run(examples, answers_only=answers_only))

    def answer(
        self,
        examples: Sequence[Example],
        *,
        max_new_tokens: int,
        decoding: Decoding | None = None,
    ) -> list[Answer]:
        require_decoding_of(decoding, len(examples))
        one = self._pass(examples)
        inputs = self.adapter.inputs(examples, one.images, padding_side="left", with_target=False)
        if decoding is not None:
            lengths, limits = inputs.attention_mask.sum(1), decoding.limits(max_new_tokens)
            groups = groups_with_room(lengths.tolist(), limits, self.adapter.max_tokens)
            if len(groups) > 1:
                return self._answer_apart(examples, groups, max_new_tokens, decoding)
        with torch.no_grad():
            features = one.image_features()
            prefills = self._frozen.prefills
            with one.language(), prefills.used(inputs, examples, before=one.layers_before):
                return self.adapter.generate(
                    inputs, features, max_new_tokens=max_new_tokens, decoding=decoding
                )

    def _answer_apart(
        self,
        examples: Sequence[Example],
        groups: Sequence[Sequence[int]],
        max_new_tokens: int,
        decoding: Decoding,
    ) -> list[Answer]:
        found: dict[int, Answer] = {}
        for rows in groups:
            asked, how = [examples[row] for row in rows], decoding.select(rows)
            vlm = self.select(rows)
            said = vlm.answer(asked, max_new_tokens=max_new_tokens, decoding=how)
            found |= zip(rows, said, strict=True)
        return [found[row] for row in range(len(examples))]

    def capture(self, examples: Sequence[Example], sites: Sequence[str]) -> Captured:
        self.require_reach(examples, sites)
        recorder = Recorder(sites=tuple(sites))
        with torch.enable_grad():
            answers = [True] * len(examples)
            predictions = aligned(*self._run(examples, recorder, answers_only=answers))
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

    def observe(
        self, examples: Sequence[Example], sites: Sequence[str], *, after: Sequence[int] = ()
    ) -> Observed:
        require_layers(self.adapter, sites, after)
        recorder = Recorder(sites=tuple(sites), with_gradients=False)
        one = self._pass(examples, recorder)
        inputs = self.adapter.inputs(examples, one.images, padding_side=self.padding_side)
        # After the last layer states are kept for some positions alone.
        reached = [min(k, len(self.adapter.layers) - 1) for k in after]
        reached += [k for k in (one.layers_before,) if k is not None]

        def run() -> Tensor:
            states = self._frozen.states
            return states.logits(inputs, examples, before=min(reached), features=one.image_features)

        with torch.no_grad(), one.language():
            return observed(self.adapter, run, recorder, after=after, rows=len(examples))

    def places(self, examples: Sequence[Example]) -> Places:
        images = self._frozen.see(examples)
        inputs = self.adapter.inputs(examples, images, padding_side=self.padding_side)
        return places_of(self.adapter, examples, inputs)

    @property
    def value_sites(self) -> tuple[str, ...]:
        return self.adapter.value_sites

    @property
    def ffn_inputs(self) -> tuple[str, ...]:
        return self.adapter.ffn_inputs

    def represent(self, examples: Sequence[Example]) -> Float[Tensor, "batch hidden"]:
        site = linear_at(self.adapter.network, self.sites("language")[0])
        one = self._pass(examples)
        inputs = self.adapter.inputs(examples, one.images, padding_side=self.padding_side)
        with torch.no_grad():
            features = one.image_features()
            with one.language():
                entered = input_at(site, lambda: self.adapter.logits(inputs, features))
        last_prompt = inputs.is_answer.int().argmax(1) - 1
        x = by_row([entered], len(examples))
        return x[torch.arange(len(x), device=x.device), last_prompt.to(x.device)].float()

    def sites(self, where: Stage) -> tuple[str, ...]:
        return self._sites.get(where) or self.adapter.sites(where)

    @property
    def layer_sites(self) -> tuple[str, ...]:
        return self.adapter.layer_sites

    @property
    def activation(self) -> Callable[[Tensor], Tensor]:
        return self.adapter.activation

    def shape(self, site: str) -> tuple[int, int]:
        if site in self.layer_sites:
            width = self._frozen.hidden
            return width, width
        linear = linear_at(self.adapter.network, site)
        return linear.out_features, linear.in_features

    def weight(self, site: str) -> Float[Tensor, "*edits out in"]:
        weight = weight_of(linear_at(self.adapter.network, site)).to(self.device)
        own = by_input(self.deltas[site]).get(None) if site in self.deltas else None
        return weight if own is None else weight + own.weight()

    def require_reach(self, examples: Sequence[Example], sites: Sequence[str]) -> None:
        for site in sites:
            self.shape(site)
        image_sites = [site for site in sites if self.adapter.stage(site) != "language"]
        text_only = [example.prompt for example in examples if example.image is None]
        if image_sites and text_only:
            raise SiteError(
                f"{image_sites[0]} acts on images, and {text_only[0]!r} has none, so it cannot "
                "change that site. Give the request an image, or edit the language model."
            )

    @property
    def edits(self) -> tuple[Edit, ...]:
        return self._edits

    def noting(self, edit: Edit) -> NetworkVLM:
        return self._with(self.deltas, with_own_name(self._edits, edit))

    def merged(self) -> NetworkVLM:
        deltas = cheapest(self.adapter.network, self.deltas)
        edits = merged(self._edits, deltas)
        return self if edits == self._edits else self._with(deltas, edits)

    def with_deltas(self, deltas: Mapping[str, Delta], *, edit: Edit | None = None) -> NetworkVLM:
        for site, delta in deltas.items():
            if delta.shape != self.shape(site):
                raise SiteError(
                    f"the delta for {site} is {delta.shape}, the weight there {self.shape(site)}"
                )
        edits = with_own_name(self._edits, edit or nameless(DeltaChange(deltas)))
        return self._with(compose_all(self.deltas, deltas), edits)

    def select(self, rows: Sequence[int]) -> NetworkVLM:
        chosen = {site: delta.select(rows) for site, delta in self.deltas.items()}
        return self._with(chosen, self._edits)

    @property
    def device(self) -> torch.device:
        return self.adapter.device

    @property
    def devices(self) -> tuple[torch.device, ...]:
        return tuple(dict.fromkeys((self.device, *self.adapter.devices)))

    @property
    def features(self) -> TensorCache:
        """The cache of image features."""
        return self._frozen.features

    @property
    def frozen(self) -> Frozen:
        return self._frozen

    @property
    def protocol(self) -> dict[str, object]:
        return protocol_of(self.adapter)

    @property
    def identity(self) -> Identity:
        adapter = self.adapter
        return Identity(
            family=str(adapter.network.config.model_type),
            config=adapter.config_hash,
            weights=adapter.fingerprint,
            processing=adapter.processing_hash,
        )

    @property
    def base(self) -> NetworkVLM:
        return self._with({}, ()) if self._edits else self

    @property
    def extra_parameters(self) -> int:
        return sum(delta.parameters for delta in self.deltas.values())

    def _with(self, deltas: Mapping[str, Delta], edits: tuple[Edit, ...]) -> NetworkVLM:
        return NetworkVLM(
            self.adapter,
            name=self.name,
            deltas=deltas,
            frozen=self._frozen,
            padding_side=self.padding_side,
            sites=self._sites,
            edits=edits,
        )

    def _pass(self, examples: Sequence[Example], recorder: Recorder | None = None) -> Pass:
        return Pass(
            adapter=self.adapter,
            frozen=self._frozen,
            deltas=self.deltas,
            images=self._frozen.see(examples),
            batch=len(examples),
            recorder=recorder,
        )

    def _run(
        self,
        examples: Sequence[Example],
        recorder: Recorder | None = None,
        answers_only: Sequence[bool] | None = None,
    ) -> tuple[Inputs, Tensor]:
        one = self._pass(examples, recorder)
        inputs = self.adapter.inputs(
            examples, one.images, padding_side=self.padding_side, answers_only=answers_only
        )
        inputs = replace(inputs, rows_apart=one.touches_head)
        with one.language():
            return inputs, self._frozen.states.logits(
                inputs, examples, before=one.layers_before, features=one.image_features
            )


def _described(deltas: Mapping[str, Delta]) -> str:
    """Return the kinds and the number of the edits that a VLM carries, in a few words."""
    if not deltas:
        return "not edited"
    kinds = Counter(type(delta).__name__ for delta in deltas.values())
    separate = {delta.edits for delta in deltas.values() if delta.edits is not None}
    each = f", {max(separate)} separate edits" if separate else ""
    said = ", ".join(
        f"{kind} at {count} {'site' if count == 1 else 'sites'}" for kind, count in kinds.items()
    )
    return f"edited: {said}{each}"
