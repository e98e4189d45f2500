"""IKE, in-context knowledge editing (Zheng et al. 2023, Can We Edit Factual Knowledge by In-Context
Learning?), for VLMs as in MMEdit (Cheng et al. 2023).

    p_edited(answer | prompt) = p(answer | demonstration_1 ... demonstration_k, new fact, prompt)

The edit is text before the prompt; no weight changes. The demonstrations are the k training cases
nearest to the request, the nearest first. Each shows a new fact followed by one of three prompts:
the same prompt (answered by the fact), a rephrase (answered by the fact), or an unrelated prompt
(answered as before).

Requests are compared with the training cases as the base model represents them, whatever edits the
VLM holds. A further edit joins the context of those before it (`mmedit.methods.ike.context`).
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

from mmedit.cases import EditCase, Example, Probe, require_text
from mmedit.editors.base import Editor
from mmedit.editors.config import EditorConfig
from mmedit.editors.fitting import Fitting
from mmedit.editors.saved import Origin, origin_of
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
from mmedit.vlm.edit import Change, separate
from mmedit.vlm.interface import VLM

BATCH = 64
"""Cases per forward while they are represented."""


class IKEConfig(EditorConfig):
    """Settings of IKE. Retrieval compares representations of the VLM itself; the paper used a
    sentence encoder (MiniLM).
    """

    after_fit: ClassVar[frozenset[str]] = frozenset({"k"})
    k: int = Field(default=32, ge=0)
    """Number of demonstrations; 0: none, and nothing to fit. Paper: 32."""
    retrieval: Literal["text", "image", "both"] = "both"
    """Parts of a case that retrieval compares: the prompts, the images, or both."""

    def idle(self) -> dict[str, str]:
        return {} if self.k else {"retrieval": "with k=0"}


@dataclass(frozen=True, eq=False)
class Index:
    """The training cases as demonstrations, with a key for each."""

    demonstrations: tuple[str, ...]
    keys: Float[Tensor, "cases hidden"]
    """Representations less their mean, of length 1."""
    mean: Float[Tensor, " hidden"]


EMPTY = Index((), torch.empty(0, 0), torch.empty(0))


class IKE(Editor[IKEConfig]):
    """In-context editing. `fit` costs one forward per training case, `apply` one per request; there
    is no backward.
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

    def fit(self, vlm: VLM, fitting: Fitting) -> Self:
        cases = fitting.cases
        if not cases:
            raise DataError("IKE needs training cases for its demonstrations; none were given")
        keys = self._represent(vlm, [case.request for case in cases], fitting.progress)
        mean = keys.mean(0)
        demonstrations = tuple(demonstrate(number, case) for number, case in enumerate(cases))
        index = Index(demonstrations, F.normalize(keys - mean, dim=-1), mean)
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
        return {"demonstrations": list(self._index.demonstrations)}

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
        return self.with_learnt(Index(demonstrations, keys, mean), origin)

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
        one matrix product.
        """
        index = self._index
        if self.config.k == 0:
            return [[] for _ in requests]
        self.require_fitted_on(vlm)
        represented = self._represent(vlm, requests)
        queries = F.normalize(represented - index.mean.to(represented), dim=-1)
        similarity = queries @ index.keys.to(queries).T
        return similarity.topk(min(self.config.k, len(index.demonstrations))).indices.tolist()

    def _represent(
        self, vlm: VLM, requests: Sequence[Example], progress: Progress = silent
    ) -> Float[Tensor, "batch hidden"]:
        """Return how the base model represents the requests. An edited one would have moved since
        the training cases were indexed.
        """
        if self.config.retrieval == "text":
            requests = [replace(request, image=None) for request in requests]
        elif self.config.retrieval == "image":
            requests = [replace(request, prompt="a photo of") for request in requests]
        found = []
        for start in range(0, len(requests), BATCH):
            found.append(vlm.base.represent(requests[start : start + BATCH]))
            done = min(start + BATCH, len(requests))
            progress("indexing", done, len(requests), "cases indexed")
        return torch.cat(found)


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
