"""IKE: in-context knowledge editing (Zheng et al. 2023), for VLMs as in MMEdit (Cheng et al. 2023).

The edit is text before the prompt: the k training cases nearest to the request as demonstrations
(nearest first), then the new fact. Demonstrations come in three sorts: the new fact copied, its
rephrase answered by it, an unrelated prompt left alone. No weight changes. The base answer of a
locality probe is the one without this text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from mmedit.cases import EditCase, Example, Probe
from mmedit.editors.base import Editor, EditorConfig
from mmedit.editors.saved import origin_of
from mmedit.errors import DataError
from mmedit.progress import Progress, silent
from mmedit.vlm.interface import VLM, Captured, Predictions, WrappedVLM

BATCH = 64


class IKEConfig(EditorConfig):
    """k and the order of the demonstrations are the paper's. The paper's MiniLM is replaced by the
    VLM's own representation.
    """

    k: int = Field(default=32, ge=0)
    retrieval: Literal["text", "image", "both"] = "both"
    """What is compared: the prompts, the images, or both."""


class IKE(Editor[IKEConfig]):
    """`fit` costs one forward per training case, `apply` one per request; no backward."""

    method: ClassVar[str] = "ike"
    config_class: ClassVar[type[EditorConfig]] = IKEConfig

    def __init__(self, config: IKEConfig) -> None:
        super().__init__(config)
        self._demonstrations: list[str] = []
        self._keys = torch.empty(0, 0)
        self._mean = torch.empty(0)

    @property
    def needs_fit(self) -> bool:
        return self.config.k > 0

    def fit(
        self,
        vlm: VLM,
        cases: Sequence[EditCase],
        *,
        validation: Sequence[EditCase] = (),
        seed: int = 0,
        progress: Progress = silent,
        folder: Path | None = None,
    ) -> None:
        if not cases:
            raise DataError("IKE needs training cases for its demonstrations; none were given")
        chunks = []
        for start in range(0, len(cases), BATCH):
            chunks.append(
                self._represent(vlm, [case.request for case in cases[start : start + BATCH]])
            )
            progress("indexing", min(start + BATCH, len(cases)), len(cases), "cases indexed")
        keys = torch.cat(chunks)
        self._mean = keys.mean(0)
        self._keys = F.normalize(keys - self._mean, dim=-1)
        self._demonstrations = [demonstrate(number, case) for number, case in enumerate(cases)]
        self.origin = origin_of(vlm, (), cases, seed)

    def apply(self, vlm: VLM, requests: Sequence[Example]) -> VLM:
        if not requests:
            return vlm
        by_rank = zip(*self._retrieve(vlm, requests), strict=True)  # every request's nearest first
        nearest = dict.fromkeys(text for texts in by_rank for text in texts)
        facts = [new_fact(request.prompt, request.target) for request in requests]
        return InContextVLM(
            vlm, "".join([*list(nearest)[: self.config.k], *facts[:-1], as_prompt(facts[-1])])
        )

    def apply_each(self, vlm: VLM, requests: Sequence[Example]) -> VLM:
        if not requests:
            return vlm
        contexts = [
            "".join([*texts, as_prompt(new_fact(request.prompt, request.target))])
            for texts, request in zip(self._retrieve(vlm, requests), requests, strict=True)
        ]
        return InContextVLM(vlm, tuple(contexts))

    def state(self) -> dict[str, Tensor]:
        return {"keys": self._keys, "mean": self._mean}

    def notes(self) -> dict[str, Any]:
        return {"demonstrations": self._demonstrations}

    def load_state(self, tensors: dict[str, Tensor], notes: Mapping[str, Any]) -> None:
        self._keys, self._mean = tensors["keys"], tensors["mean"]
        self._demonstrations = [str(text) for text in notes["demonstrations"]]

    def _retrieve(self, vlm: VLM, requests: Sequence[Example]) -> list[list[str]]:
        """The k nearest demonstrations of every request, nearest first: one matrix product."""
        if self.config.k == 0:
            return [[] for _ in requests]
        self.require_fitted_on(vlm)
        represented = self._represent(vlm, requests)
        queries = F.normalize(represented - self._mean.to(represented), dim=-1)
        similarity = queries @ self._keys.to(queries).T
        best = similarity.topk(min(self.config.k, len(self._demonstrations))).indices.tolist()
        return [[self._demonstrations[index] for index in row] for row in best]

    def _represent(self, vlm: VLM, requests: Sequence[Example]) -> Float[Tensor, "batch hidden"]:
        if self.config.retrieval == "text":
            requests = [replace(request, image=None) for request in requests]
        elif self.config.retrieval == "image":
            requests = [replace(request, prompt="a photo of") for request in requests]
        return vlm.represent(requests)


class InContextVLM(WrappedVLM):
    """A VLM that reads a text before every prompt: one for all rows, or one per row."""

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
                "answered under edit i. "
                "Use select(rows) to say which edit answers which row."
            )
        return [replace(e, context=c + e.context) for e, c in zip(examples, contexts, strict=True)]


def new_fact(prompt: str, target: str) -> str:
    """A fact that holds from here on."""
    return f"New Fact: {prompt} {target}\n"


def as_prompt(text: str) -> str:
    """The text, and what leads over to the prompt."""
    return f"{text}Prompt: "


def demonstration(fact: str, answer: str, prompt: str, target: str) -> str:
    """One in-context example: a new fact, and a prompt answered in its light (Zheng et al. 2023,
    section 3).
    """
    return f"{as_prompt(new_fact(fact, answer))}{prompt} {target}\n\n"


def demonstrate(number: int, case: EditCase) -> str:
    """The case as a demonstration; the three sorts (copy, rephrase, unrelated) take turns."""
    request = case.request
    sort = (None, Probe.TEXT_GENERALITY, Probe.TEXT_LOCALITY)[number % 3]
    probe = case.probes[sort][0] if sort is not None and sort in case.probes else request
    return demonstration(request.prompt, request.target, probe.prompt, probe.target)
