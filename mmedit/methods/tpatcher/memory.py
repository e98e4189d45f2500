"""The memory: what a feed-forward block takes at tokens of training questions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mmedit.cases import EditCase
from mmedit.chunks import chunks
from mmedit.editors.closed_form.statistics import questions_of
from mmedit.progress import Progress
from mmedit.vlm.interface import VLM

CASES = 64
"""Training cases whose questions are answered together."""
BATCH = 16
"""Questions in one forward."""


def memory_states(
    vlm: VLM,
    cases: Sequence[EditCase],
    reads: str,
    *,
    most: int,
    seed: int,
    progress: Progress,
) -> Float[Tensor, "states read"]:
    """Return what a Linear takes in the base model at text tokens of training questions, with image
    and without, each followed by the base model's own answer; `most` states at most, of cases in
    random order.

    Costs, until there are so many, a generation (which is kept on disk) and a forward for every
    question.
    """
    base, found, count = vlm.base, list[Tensor](), 0
    order = torch.randperm(len(cases), generator=torch.Generator().manual_seed(seed)).tolist()
    for some in chunks(order, CASES):
        examples = questions_of(base, [cases[number] for number in some])
        for rows in chunks(range(len(examples)), BATCH):
            batch = [examples[row] for row in rows]
            places = base.places(batch)
            x = base.observe(batch, [reads]).x[reads]
            found.append(
                x[
                    (places.is_prompt | places.is_answer | places.predicts_answer).to(x.device)
                ].float()
            )
            count += len(found[-1])
            progress("memory", min(count, most), most, "")
            if count >= most:
                return torch.cat(found)[:most]
    return torch.cat(found)
