"""What an export wrote, and what was seen when it was opened."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from mmedit.cases import image_name
from mmedit.errors import EditError, LostEditError, SiteError
from mmedit.export.check import Check, Outputs, Questions, answer_tokens, ask, questions_for
from mmedit.vlm.edit import Edit
from mmedit.vlm.interface import VLM
from mmedit.vlm.network import NetworkVLM

REPORT = "mmedit-export.json"
PACKAGES = ("mmedit", "torch", "transformers", "safetensors")


@dataclass(frozen=True, kw_only=True)
class Export:
    """One export that was written and opened."""

    form: str
    """"transformers" or "peft"."""
    folder: Path
    size: int
    """Size of all its files, in bytes."""
    stored: Mapping[str, Any]
    """How it was stored: dtypes, ranks, and the error of rounding or of the truncation."""
    checks: tuple[Check, ...]
    """What the export answered, by the dtype it was opened in; the first is that of the files."""

    @property
    def is_kept(self) -> bool:
        """Whether the export, opened as it is stored, answers all requests as the edited VLM."""
        return self.checks[0].is_kept


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The edited VLM's own outputs, with which an export is compared."""

    questions: Questions
    outputs: Outputs
    max_new_tokens: int

    @property
    def right(self) -> int:
        """Number of requests that the edited VLM itself answers as asked."""
        from mmedit.metrics.generation import exact

        answers = zip(self.questions.requests, self.outputs.answers, strict=False)
        return sum(bool(exact(answer.text, example.accepted)) for example, answer in answers)


def exportable(vlm: VLM) -> NetworkVLM:
    """Return an edited VLM whose edits are changes of weights. Raises EditError for any other."""
    if not vlm.edits:
        raise EditError("this VLM holds no edit, so there is nothing to export")
    for edit in vlm.edits:
        require_weights(edit)
    if not isinstance(vlm, NetworkVLM) or not vlm.deltas:
        raise EditError(
            f"a {type(vlm).__name__} does not hold its edits as changes of weights; serve it with "
            "`mmedit serve`"
        )
    if any(delta.edits is not None for delta in vlm.deltas.values()):
        raise EditError(
            "this VLM holds separate edits, one for each row of a batch (apply_each); choose one: "
            "make it with editor.apply(vlm, [request])"
        )
    return vlm


def require_weights(edit: Edit) -> None:
    """Raise EditError if an edit, or one in its stack, is not a change of weights."""
    for part in edit.parts:
        if part.deltas is None:
            raise EditError(
                f"{part.name} was made by {part.label}, which changes how the VLM is asked and not "
                "its weights, so it cannot be exported; serve it: mmedit serve --edit ..."
            )


def ask_edited(edited: NetworkVLM, questions: Questions) -> Asked:
    """Ask the edited VLM all questions. Raises EditError if its outputs are not finite."""
    length = answer_tokens(edited, questions)
    outputs = ask(edited, questions, max_new_tokens=length)
    if not outputs.are_finite:
        raise EditError(
            "the edited VLM itself gives NaN or infinite logits; make a weaker edit, or take out "
            "the one that broke it"
        )
    return Asked(questions=questions, outputs=outputs, max_new_tokens=length)
