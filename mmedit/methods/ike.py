"""IKE, in-context knowledge editing (Zheng et al. 2023, Can We Edit Factual Knowledge by In-Context
Learning?), for VLMs as in MMEdit (Cheng et al. 2023).

    p_edited(answer | prompt) = p(answer | demonstration_1 ... demonstration_k, new fact, prompt)

The edit is text before the prompt; no weight changes. The demonstrations are the k training cases
nearest to the request, the nearest first. Each shows a new fact followed by one of three prompts:
the same prompt (answered by the fact), a rephrase (answered by the fact), or an unrelated prompt
(answered as before).
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
from mmedit.editors.base import Editor, EditorConfig, Fitting
from mmedit.editors.saved import Origin, origin_of
from mmedit.errors import DataError, EditorError
from mmedit.vlm.interface import VLM, Captured, Predictions, WrappedVLM

BATCH = 64
"""Training cases per forward while they are indexed."""


class IKEConfig(EditorConfig):
    """Settings of IKE. Retrieval compares representations of the VLM itself; the paper used a
    sentence encoder (MiniLM).
    """

    k: int = Field(default=32, ge=0)
    """Number of demonstrations; 0: none, and nothing to fit. Paper: 32."""
    retrieval: Literal["text", "image", "both"] = "both"
    """Parts of a case that retrieval compares: the prompts, the images, or both."""


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
        chunks = []
        for start in range(0, len(cases), BATCH):
            chunks.append(
                self._represent(vlm, [case.request for case in cases[start : start + BATCH]])
            )
            done = min(start + BATCH, len(cases))
            fitting.progress("indexing", done, len(cases), "cases indexed")
        keys = torch.cat(chunks)
        mean = keys.mean(0)
        demonstrations = tuple(demonstrate(number, case) for number, case in enumerate(cases))
        index = Index(demonstrations, F.normalize(keys - mean, dim=-1), mean)
        return self.with_learnt(index, origin_of(vlm, (), cases, fitting.seed))

    def apply(self, vlm: VLM, requests: Sequence[Example]) -> VLM:
        if not requests:
            return vlm
        by_rank = zip(*self._retrieve(vlm, requests), strict=True)  # the nearest of each, and so on
        nearest = dict.fromkeys(number for numbers in by_rank for number in numbers)
        texts = self._texts(list(nearest)[: self.config.k])
        facts = [new_fact(request.prompt, request.target) for request in requests]
        return InContextVLM(vlm, "".join([*texts, *facts[:-1], as_prompt(facts[-1])]))

    def apply_each(self, vlm: VLM, requests: Sequence[Example]) -> VLM:
        if not requests:
            return vlm
        contexts = [
            "".join([*self._texts(near), as_prompt(new_fact(request.prompt, request.target))])
            for near, request in zip(self._retrieve(vlm, requests), requests, strict=True)
        ]
        return InContextVLM(vlm, tuple(contexts))

    def state(self) -> dict[str, Tensor]:
        return {"keys": self._index.keys, "mean": self._index.mean}

    def notes(self) -> dict[str, Any]:
        return {"demonstrations": list(self._index.demonstrations)}

    def load_state(
        self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any], origin: Origin | None
    ) -> Self:
        keys, mean = tensors["keys"], tensors["mean"]
        demonstrations = tuple(str(text) for text in notes["demonstrations"])
        if (*keys.shape,) != (len(demonstrations), *mean.shape) or mean.ndim != 1:
            raise EditorError(
                f"the tensors do not fit the {len(demonstrations)} demonstrations: keys have shape "
                f"{list(keys.shape)}, the mean {list(mean.shape)}; expected [demonstrations, "
                "width] and [width]; fit the editor anew"
            )
        return self.with_learnt(Index(demonstrations, keys, mean), origin)

    def _texts(self, numbers: Sequence[int]) -> list[str]:
        return [self._index.demonstrations[number] for number in numbers]

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

    def _represent(self, vlm: VLM, requests: Sequence[Example]) -> Float[Tensor, "batch hidden"]:
        if self.config.retrieval == "text":
            requests = [replace(request, image=None) for request in requests]
        elif self.config.retrieval == "image":
            requests = [replace(request, prompt="a photo of") for request in requests]
        return vlm.represent(requests)


class InContextVLM(WrappedVLM):
    """A VLM that reads a text before every prompt: one text for all rows, or one per row."""

    def __init__(self, inner: VLM, context: str | tuple[str, ...]) -> None:
        super().__init__(inner)
        self.context = context

    def rewrap(self, inner: VLM) -> InContextVLM:
        return InContextVLM(inner, self.context)

    def predict(self, examples: Sequence[Example]) -> Predictions:
        return self.inner.predict(self._in_context(examples))

    def generate(self, examples: Sequence[Example], *, max_new_tokens: int) -> list[str]:
        return self.inner.generate(self._in_context(examples), max_new_tokens=max_new_tokens)

    def capture(self, examples: Sequence[Example], sites: Sequence[str]) -> Captured:
        return self.inner.capture(self._in_context(examples), sites)

    def represent(self, examples: Sequence[Example]) -> Float[Tensor, "batch hidden"]:
        return self.inner.represent(self._in_context(examples))

    def select(self, rows: Sequence[int]) -> InContextVLM:
        chosen = (
            self.context
            if isinstance(self.context, str)
            else tuple(self.context[row] for row in rows)
        )
        return InContextVLM(self.inner.select(rows), chosen)

    def _in_context(self, examples: Sequence[Example]) -> list[Example]:
        contexts = (
            (self.context,) * len(examples) if isinstance(self.context, str) else self.context
        )
        if len(contexts) != len(examples):
            raise DataError(
                f"{len(contexts)} separate edits cannot answer {len(examples)} rows: row i is "
                "answered under edit i. Use select(rows) to choose the edit of each row."
            )
        return [replace(e, context=c + e.context) for e, c in zip(examples, contexts, strict=True)]


def new_fact(prompt: str, target: str) -> str:
    """Return the line that states a new fact."""
    return f"New Fact: {prompt} {target}\n"


def as_prompt(text: str) -> str:
    """Return the text followed by the word that introduces a prompt."""
    return f"{text}Prompt: "


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
