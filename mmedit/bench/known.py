"""Asking a base model which questions of a dataset it answers right (`mmedit data known`)."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mmedit.bench.base_outputs import scores_of
from mmedit.cases import Example
from mmedit.chunks import chunks
from mmedit.datasets.known import MAKE, Known
from mmedit.errors import DataError
from mmedit.progress import Progress, by_itself
from mmedit.storage import make_folder
from mmedit.vlm.identity import Identity
from mmedit.vlm.interface import VLM

logger = logging.getLogger(__name__)

WRITTEN = 20
"""Batches between two writings of the file."""


def find_known(
    vlm: VLM,
    questions: Iterable[tuple[str, Example]],
    file: str | Path,
    *,
    dataset: str,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> Known:
    """Ask a base model the questions of a dataset, and write the file.

    `questions` are those of `mmedit.config.load_questions`. An answer is right if every token of it
    is the likeliest (exact match, teacher-forced). Costs a forward per batch. What an existing file
    holds is kept and not asked again: a call that was stopped continues, and two splits share a
    file. Raises DataError if the file is about another VLM.
    """
    progress = progress or by_itself()
    path = Path(os.path.expanduser(file))
    make_folder(path.parent)
    known = _begun(vlm, path, dataset)
    known.write(path)  # a file that cannot be written is found before anything is asked
    asked, right = dict(questions), dict(known.right)
    known = replace(known, right=right)
    left = [(key, example) for key, example in asked.items() if key not in right]
    done, task = len(asked) - len(left), "asking the base model"
    progress(task, done, len(asked), "")
    for number, batch in enumerate(chunks(left, batch_size), start=1):
        right.update(_asked(vlm, batch))
        done += len(batch)
        if number % WRITTEN == 0 or done == len(asked):
            known.write(path)
        progress(task, done, len(asked), f"right {sum(right.values()):,}")
    return known


def warn_of_another_vlm(settings: Mapping[str, Any], vlm: VLM) -> None:
    """Warn if a dataset's settings name a file about another VLM than this one."""
    if not settings.get("known"):
        return
    known = Known.read(Path(settings["known"]))
    if other := _another(vlm, known, settings["known"]):
        logger.warning(
            "%s says what %s answers right, %s; make one for this VLM with: mmedit data known",
            settings["known"], known.vlm, other,
        )  # fmt: skip


def _begun(vlm: VLM, path: Path, dataset: str) -> Known:
    """Return what the file holds already. Raises DataError if it is about something else."""
    fresh = Known(vlm=vlm.name, identity=vlm.identity._asdict(), dataset=dataset)
    if not path.is_file():
        return fresh
    known = Known.read(path)
    if other := _another(vlm, known, path):
        raise DataError(f"{path} is about {other}; name another file")
    return known


def _another(vlm: VLM, known: Known, file: str | Path) -> str | None:
    """Return what other VLM a file is about; None if it is about this one. Raises DataError."""
    try:
        identity = Identity(**known.identity)
    except TypeError:
        raise DataError(f"{file} does not say which VLM it is about. {MAKE}") from None
    return vlm.identity.described(identity)


@torch.no_grad()
def _asked(vlm: VLM, batch: Sequence[tuple[str, Example]]) -> dict[str, bool]:
    examples = [example for _, example in batch]
    scores = scores_of(vlm.predict(examples, answers_only=[True] * len(examples)))
    return {key: s.exact_match == 1 for (key, _), s in zip(batch, scores, strict=True)}
