"""A VLM that counts what the base model is asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mmedit.adapters.generation import Answer
from mmedit.cases import Example
from mmedit.vlm.edit import Edit
from mmedit.vlm.interface import VLM
from mmedit.vlm.outputs import Captured, Predictions
from mmedit.vlm.wrapped import WrappedVLM


class CountedVLM(WrappedVLM):
    """Counts the examples that it answers; an edited one counts nothing."""

    def __init__(self, inner: VLM) -> None:
        super().__init__(inner)
        self.asked = 0

    def rewrap(self, inner: VLM) -> VLM:
        return inner

    def noting(self, edit: Edit) -> VLM:
        return self  # what is asked of it within a wrapper counts

    def select(self, rows: Sequence[int]) -> VLM:
        return self.inner.select(rows)

    def predict(self, examples: Sequence[Example], **how: Any) -> Predictions:
        self.asked += len(examples)
        return self.inner.predict(examples, **how)

    def answer(self, examples: Sequence[Example], **how: Any) -> list[Answer]:
        self.asked += len(examples)
        return self.inner.answer(examples, **how)

    def capture(self, examples: Sequence[Example], sites: Sequence[str]) -> Captured:
        return self.inner.capture(examples, sites)

    def represent(self, examples: Sequence[Example]) -> torch.Tensor:
        return self.inner.represent(examples)
