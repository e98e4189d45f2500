"""IKE, in-context knowledge editing (Zheng et al. 2023, Can We Edit Factual Knowledge by In-Context
Learning?), for VLMs as in MMEdit (Cheng et al. 2023).

    p_edited(answer | prompt) = p(answer | demonstration_1 ... demonstration_k, new fact, prompt)

The edit is text before the prompt; no weight changes. The demonstrations are the k training cases
nearest to the request, the nearest first. Each shows a new fact followed by one of three prompts:
the same prompt (answered by the fact), a rephrase (answered by the fact), or an unrelated prompt
(answered as before).

Requests are compared with the training cases by the cosine of sentence embeddings of the new fact,
as in the paper (`sentence_encoder`), or of the base model's own representations, whatever edits the
VLM holds; the mean of the training cases is taken away first. Where texts are compared by the one
and images by the other, the two cosines are added. A further edit joins the context of those before
it (`mmedit.methods.ike.context`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from mmedit.cases import EditCase, Example, Probe
from mmedit.editors.base import Editor
from mmedit.editors.config import EditorConfig
from mmedit.editors.fitting import Fitting
from mmedit.editors.saved import Origin, origin_of
from mmedit.editors.sentences import (
    SentenceEncoder,
    encoder_folder,
    load_sentence_encoder,
    require_encoder,
)
from mmedit.errors import DataError, EditorError
from mmedit.methods.ike.context import (
    Demonstration,
    Fact,
    FactsChange,
    as_prompt,
    in_context,
    new_fact,
)
from mmedit.progress import Progress, silent
from mmedit.storage import require_text
from mmedit.vlm.edit import Change, separate
from mmedit.vlm.interface import VLM

BATCH = 64
"""Cases per forward while they are represented."""


class IKEConfig(EditorConfig):
    """Settings of IKE."""

    after_fit: ClassVar[frozenset[str]] = frozenset({"k"})
    k: int = Field(default=32, ge=0)
    """Number of demonstrations; 0: none, and nothing to fit. Paper: 32."""
    retrieval: Literal["text", "image", "both"] = "both"
    """Parts of a case that retrieval compares: the prompts, the images, or both."""
    sentence_encoder: str | None = None
    """Encoder that compares the texts: all-MiniLM-L6-v2 (the paper's; extra `retrieval`), a folder
    or a hub id. It reads the new fact, with its answer. null: the VLM's own representation.
    """

    def idle(self) -> dict[str, str]:
        if not self.k:
            return dict.fromkeys(("retrieval", "sentence_encoder"), "with k=0")
        return {"sentence_encoder": "with retrieval=image"} if self.retrieval == "image" else {}

    @property
    def encoder(self) -> str | None:
        """The sentence encoder that retrieval uses; None if it uses none."""
        return None if "sentence_encoder" in self.idle() else self.sentence_encoder


@dataclass(frozen=True, eq=False)
class Index:
    """The training cases as demonstrations, with a key for each."""

    demonstrations: tuple[str, ...]
    keys: Float[Tensor, "cases width"]
    """Representations less their mean, of length 1. Sentence embeddings come first, if both count.
    """
    mean: Float[Tensor, " width"]
    encoder: str | None = None
    """SHA-256 of the sentence encoder's weights, in hexadecimal digits."""


EMPTY = Index((), torch.empty(0, 0), torch.empty(0))


class IKE(Editor[IKEConfig]):
    """In-context editing. `fit` costs one forward per training case and `apply` one per request: of
    the VLM, of the sentence encoder, or of both. There is no backward.
    """

    method: ClassVar[str] = "ike"
    paper: ClassVar[str] = (
        "Zheng et al. 2023, Can We Edit Factual Knowledge by In-Context Learning?"
    )
    config_class: ClassVar[type[EditorConfig]] = IKEConfig

    @property
    def needs_fit(self) -> bool:
        return self.config.k > 0

    @property
    def _index(self) -> Index:
        return EMPTY if self.learnt is None else self.learnt

    def require_fits(self, vlm: VLM) -> None:
        super().require_fits(vlm)
        if self.config.encoder:
            encoder_folder(self.config.encoder)

    def fit(self, vlm: VLM, fitting: Fitting) -> Self:
        cases = fitting.cases
        if not cases:
            raise DataError("IKE needs training cases for its demonstrations; none were given")
        parts = self._represent(vlm, [case.request for case in cases], fitting.progress)
        mean = torch.cat([part.mean(0) for part in parts])
        demonstrations = tuple(demonstrate(number, case) for number, case in enumerate(cases))
        encoder = self._encoder(vlm)
        index = Index(demonstrations, _keys(parts, mean), mean, encoder and encoder.sha256)
        return self.with_learnt(index, origin_of(vlm, (), cases, fitting.seed))

    def change(self, vlm: VLM, requests: Sequence[Example]) -> Change:
        return FactsChange(self._facts(vlm, requests), self.config.k)

    def apply_each(self, vlm: VLM, requests: Sequence[Example]) -> VLM:
        if not requests:
            return vlm
        edited = in_context(vlm).with_each(self._facts(vlm, requests), self.config.k)
        return edited.noting(separate(self.label, self.method, requests))

    def _facts(self, vlm: VLM, requests: Sequence[Example]) -> list[Fact]:
        texts = self._index.demonstrations
        return [
            Fact(
                new_fact(request.prompt, request.target),
                tuple(Demonstration(number, texts[number]) for number in numbers),
            )
            for request, numbers in zip(requests, self._retrieve(vlm, requests), strict=True)
        ]

    def state(self) -> dict[str, Tensor]:
        return {"keys": self._index.keys, "mean": self._index.mean}

    def notes(self) -> dict[str, Any]:
        notes: dict[str, Any] = {"demonstrations": list(self._index.demonstrations)}
        return notes | ({"encoder_sha256": self._index.encoder} if self._index.encoder else {})

    def load_state(
        self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any], origin: Origin | None
    ) -> Self:
        keys, mean = tensors["keys"], tensors["mean"]
        if len(tensors) > 2 or not (keys.is_floating_point() and mean.is_floating_point()):
            raise EditorError(
                "the tensors are not those of an index of IKE; expected keys and mean, in "
                "floating-point numbers; fit the editor anew"
            )
        demonstrations = tuple(notes["demonstrations"])
        for text in demonstrations:
            require_text(text, "a demonstration")
        if (*keys.shape,) != (len(demonstrations), *mean.shape) or mean.ndim != 1:
            raise EditorError(
                f"the tensors do not fit the {len(demonstrations)} demonstrations: keys have shape "
                f"{list(keys.shape)}, the mean {list(mean.shape)}; expected [demonstrations, "
                "width] and [width]; fit the editor anew"
            )
        name = self.config.encoder
        encoder = require_encoder(name, notes["encoder_sha256"]) if name else None
        return self.with_learnt(Index(demonstrations, keys, mean, encoder), origin)

    @classmethod
    def load_change(
        cls,
        kind: str,
        tensors: Mapping[str, Tensor],
        notes: Mapping[str, Any],
        *,
        requests: Sequence[Example],
        editor: Any,
    ) -> Change:
        if kind != FactsChange.kind:
            return super().load_change(kind, tensors, notes, requests=requests, editor=editor)
        return FactsChange.of_notes(notes)

    def _retrieve(self, vlm: VLM, requests: Sequence[Example]) -> list[list[int]]:
        """Return the numbers of the k nearest training cases of every request, the nearest first;
        equally near ones (a fact about two images) keep their order. One matrix product.
        """
        index = self._index
        if self.config.k == 0:
            return [[] for _ in requests]
        self.require_fitted_on(vlm)
        queries = _keys(self._represent(vlm, requests), index.mean)
        similarity = queries.double() @ index.keys.to(queries.device).double().T
        order = similarity.round(decimals=9).sort(descending=True, stable=True).indices
        return order[:, : self.config.k].tolist()

    def _represent(
        self, vlm: VLM, requests: Sequence[Example], progress: Progress = silent
    ) -> list[Float[Tensor, "batch width"]]:
        """Return what stands for the requests in the comparison: sentence embeddings, how the base
        model represents them, or both. An edited model would have moved since the training cases
        were indexed.
        """
        found = []
        for start in range(0, len(requests), BATCH):
            found.append(self._parts(vlm, requests[start : start + BATCH]))
            done = min(start + BATCH, len(requests))
            progress("indexing", done, len(requests), "cases indexed")
        return [torch.cat(part) for part in zip(*found, strict=True)]

    def _parts(self, vlm: VLM, requests: Sequence[Example]) -> list[Tensor]:
        compared, encoder = self.config.retrieval, self._encoder(vlm)
        texts = []
        if encoder is not None:
            texts = [encoder([f"{request.prompt} {request.target}" for request in requests])]
            if compared == "text":
                return texts
            compared = "image"
        if compared == "text":
            requests = [replace(request, image=None) for request in requests]
        elif compared == "image":
            requests = [replace(request, prompt="a photo of") for request in requests]
        return [*texts, vlm.base.represent(requests)]

    def _encoder(self, vlm: VLM) -> SentenceEncoder | None:
        name = self.config.encoder
        return None if name is None else load_sentence_encoder(name, vlm.device)


def _keys(parts: Sequence[Tensor], mean: Tensor) -> Float[Tensor, "batch width"]:
    """Return the parts side by side, each less its mean and of length 1."""
    means = mean.to(parts[0]).split([part.shape[-1] for part in parts])
    pairs = zip(parts, means, strict=True)
    return torch.cat([F.normalize(part - its, dim=-1) for part, its in pairs], dim=-1)


def demonstration(fact: str, answer: str, prompt: str, target: str) -> str:
    """Return one in-context example: a new fact, and a prompt with its answer (Zheng et al. 2023,
    section 3).
    """
    return f"{as_prompt(new_fact(fact, answer))}{prompt} {target}\n\n"


def demonstrate(number: int, case: EditCase) -> str:
    """Return the case as a demonstration. Its number chooses among the three kinds of prompts: the
    same, a rephrase, an unrelated one.
    """
    request = case.request
    kind = (None, Probe.TEXT_GENERALITY, Probe.TEXT_LOCALITY)[number % 3]
    probe = case.probes[kind][0] if kind is not None and kind in case.probes else request
    return demonstration(request.prompt, request.target, probe.prompt, probe.target)
