"""Report of an export: the files, and how the VLM in them answers."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from mmedit.cases import image_name
from mmedit.errors import EditError, LostEditError, shortened
from mmedit.export.check import Check, Outputs, Questions, answer_tokens, ask
from mmedit.export.places import write_json
from mmedit.neurons import read_by
from mmedit.progress import Progress
from mmedit.vlm.edit import Edit
from mmedit.vlm.interface import VLM
from mmedit.vlm.network import NetworkVLM

ASKING = "asking the edited VLM"
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
    right: int
    """Number of requests that the edited VLM itself answers as asked, before the export."""
    checks: tuple[Check, ...]
    """Checks of the export, by the dtype it was opened in; the first is that of the files."""

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
        return sum(self.outputs.right[: len(self.questions.requests)])


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
        if read_by(part.deltas):
            raise EditError(
                f"{part.name} was made by {part.label}, which adds neurons beside the weights and "
                "does not change them, so it cannot be exported; serve it: mmedit serve --edit ..."
            )


def ask_edited(edited: NetworkVLM, questions: Questions, progress: Progress) -> Asked:
    """Ask the edited VLM all questions. Raises EditError if its outputs are not finite."""
    progress(ASKING, 0, 1, "")
    length = answer_tokens(edited, questions)
    outputs = ask(edited, questions, max_new_tokens=length)
    if not outputs.are_finite:
        raise EditError(
            "the edited VLM itself gives NaN or infinite logits; make a weaker edit, or take out "
            "the one that broke it"
        )
    progress(ASKING, 1, 1, "")
    return Asked(questions=questions, outputs=outputs, max_new_tokens=length)


def described(edited: NetworkVLM) -> dict[str, Any]:
    """Return as plain JSON which edits of which VLM were exported."""
    return {
        "vlm": {"name": edited.name, **edited.identity._asdict()},
        "edits": [
            {
                "name": edit.name,
                "method": edit.label,
                "requests": [
                    {"prompt": r.prompt, "target": r.target, "image": image_name(r)}
                    for r in edit.requests
                ],
            }
            for edit in edited.edits
        ],
        "versions": {package: version(package) for package in PACKAGES},
    }


def finish(export: Export, origin: Mapping[str, Any], folder: Path, *, allow_lost: bool) -> None:
    """Write the report into the folder of an export. Raises LostEditError, unless it is allowed, if
    a request is no longer answered as the edited VLM answers it.
    """
    content = {
        "form": export.form,
        "is_kept": export.is_kept,
        "stored": dict(export.stored),
        "right_before": export.right,
        "checks": [check.as_json() for check in export.checks],
        **origin,
    }
    write_json(folder / REPORT, content)
    first = export.checks[0]
    if first.is_kept or allow_lost:
        return
    raise LostEditError(_loss(export, first), export)


def _loss(export: Export, check: Check) -> str:
    advice = {
        "transformers": (
            "Store the edited weights in float32 (--keep-float32), export in float32 (--dtype "
            "float32), or as an adapter (--to peft)"
        ),
        "peft": "Give a larger --rank",
    }[export.form]
    if not check.lost:
        found = "its logits are not finite numbers"
    else:
        one = check.lost[0]
        found = (
            f"{len(check.lost)} of {check.requests} requests are answered differently, for example "
            f"{shortened(one.prompt)}: {shortened(one.found)}, expected {shortened(one.expected)}"
        )
    return (
        f"the export in {check.opened_in} lost the edit and was removed: {found}. {advice}; "
        "--allow-lost keeps it as it is"
    )


def release_memory() -> None:
    """Give the memory of networks that nothing refers to any more back to the GPU."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
