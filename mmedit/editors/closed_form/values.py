"""Value vectors: what an MLP should give at a fact's position, found by gradient (ROME, MEMIT).

    δ* = argmin  mean_c -log p(target | context_c, question, δ)  +  kl_factor · KL(p_before ‖ p_δ)
                 + weight_decay · ‖δ‖ / ‖v0‖²,              ‖δ‖ <= clamp · ‖v0‖

δ is added to the output of a layer at the fact's position, in every wording at once (Meng et al.
2022, section 3.1; Meng et al. 2023, section 4.2). The KL term keeps the first token of the answer
to other questions: the same question without its image, the same question about another image (what
a VLM may not confuse with the fact), and the subject alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from PIL import Image
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from mmedit.cases import Example
from mmedit.editors.closed_form.contexts import in_contexts, of_contexts
from mmedit.editors.closed_form.positions import Position, Spots, spots
from mmedit.editors.shifts import Shift
from mmedit.images import image_key
from mmedit.metrics.multiclass_log_probs import answer_nll
from mmedit.settings import Settings
from mmedit.vlm.interface import VLM
from mmedit.vlm.outputs import Predictions


class ValueConfig(Settings):
    """Settings of the search for value vectors."""

    steps: int = Field(default=20, ge=1)
    """Forwards of the search, each but the last with a step of Adam behind it. ROME: 20."""
    lr: float = Field(default=0.5, gt=0)
    """Learning rate. ROME and MEMIT: 0.5."""
    weight_decay: float = Field(default=0.5, ge=0)
    """Weight of ‖δ‖/‖v0‖². ROME and MEMIT: 0.5."""
    kl_factor: float = Field(default=0.0625, ge=0)
    """Weight of the KL term. ROME and MEMIT: 0.0625."""
    clamp: float = Field(default=4.0, gt=0)
    """Largest ‖δ‖, in units of ‖v0‖. ROME: 4 (v0 is an MLP's output); MEMIT: 0.75 (a block's)."""
    stop_loss: float = Field(default=0.05, ge=0)
    """The search for an edit ends when its loss is below this. ROME and MEMIT: 0.05."""


class BlockValueConfig(ValueConfig):
    """Settings of the search at the output of a block, which is larger than that of an MLP."""

    steps: int = Field(default=25, ge=1)
    """Forwards of the search, each but the last with a step of Adam behind it. MEMIT: 25."""
    clamp: float = Field(default=0.75, gt=0)
    """Largest ‖δ‖, in units of ‖v0‖. MEMIT: 0.75."""


class OtherImage(NamedTuple):
    """An image of the training cases, for the KL term."""

    key: str
    """Its `image_key` in the training cases."""
    image: Image.Image


@dataclass(frozen=True, eq=False, kw_only=True)
class Asked:
    """The rows of a search: each request in all contexts, then the questions of the KL term."""

    examples: tuple[Example, ...]
    of_edit: tuple[int, ...]
    """The edit that each row belongs to."""
    rewriting: int
    """Number of the rows of requests, which come first."""


def asked_of(
    requests: Sequence[Example], *, contexts: int, images: Sequence[OtherImage], with_kl: bool
) -> Asked:
    """Return the rows of a search. Of `images`, each request gets the first that is not its own."""
    rows = in_contexts(requests, contexts)
    of_edit = of_contexts(len(requests), contexts)
    for number, request in enumerate(requests if with_kl else ()):
        others = kl_questions(request, images)
        rows += others
        of_edit += [number] * len(others)
    rewriting = len(requests) * (1 + contexts)
    return Asked(examples=tuple(rows), of_edit=tuple(of_edit), rewriting=rewriting)


def kl_questions(request: Example, images: Sequence[OtherImage]) -> list[Example]:
    """Return the questions whose answers an edit should leave: without the image, about another
    image, and the subject alone. Only the token that follows each is compared, so targets mean
    nothing. A request without image and subject has none.
    """
    found = []
    if request.image is not None:
        own = image_key(request.image)
        others = [other.image for other in images if other.key != own][:1]
        found = [replace(request, image=image, target="?") for image in (None, *others)]
    if request.subject:
        found.append(replace(request, prompt=request.subject, target="?", image=None))
    return found


def find_values(
    vlm: VLM,
    asked: Asked,
    site: str,
    start: Float[Tensor, "edits keys"],
    *,
    rule: Position,
    config: ValueConfig,
) -> Float[Tensor, "edits keys out"]:
    """Return δ of every edit, in float32; `start` is ‖v0‖.

    The edits are searched for side by side, and none sees another. Costs at most `steps` forwards
    and `steps` - 1 backwards, from the layer of the site on, and one host sync each. Edits that are
    done are no longer asked once half of those in the batch are; the first forward after that runs
    all layers.
    """
    shape = (*start.shape, vlm.shape(site)[0])
    shift = torch.zeros(shape, device=vlm.device, requires_grad=True)
    optimizer = torch.optim.Adam([shift], lr=config.lr)
    done = torch.zeros(len(start), dtype=torch.bool, device=vlm.device)
    batch = _Batch.of(vlm, asked, site, rule)
    for step in range(config.steps):
        with torch.enable_grad():
            loss = batch.losses(shift, start, config)
        done[batch.edits] |= loss.detach() < config.stop_loss
        left = (~done).nonzero().flatten().tolist()
        if step == config.steps - 1 or not left:
            break
        (shift.grad,) = torch.autograd.grad(loss.sum(), [shift])
        _step(optimizer, shift, done, config.clamp * start)
        if 2 * len(left) <= len(batch.edits):
            batch = batch.of_edits(left)
    return shift.detach()


@dataclass(frozen=True, eq=False, kw_only=True)
class _Batch:
    """The rows of some edits, which are asked in every step."""

    vlm: VLM
    """The VLM with an edit for each row of `asked`."""
    asked: Asked
    site: str
    rule: Position
    edits: list[int]
    """The edits that the rows belong to."""
    spots: Spots
    before: Float[Tensor, "others vocab"]
    """Log-probabilities of the first tokens of the KL term's answers, before the edit."""

    @staticmethod
    def of(vlm: VLM, asked: Asked, site: str, rule: Position) -> _Batch:
        """Return all rows of a search. Costs a forward of those of the KL term."""
        rows = vlm.select(asked.of_edit)
        return _Batch(
            vlm=rows,
            asked=asked,
            site=site,
            rule=rule,
            edits=sorted(set(asked.of_edit)),
            spots=spots(rule, rows.places(asked.examples)),
            before=_first_log_probs(vlm, asked),
        )

    def of_edits(self, edits: list[int]) -> _Batch:
        """Return the rows of some of the edits alone."""
        asked, kept = self.asked, set(edits)
        rows = [row for row, edit in enumerate(asked.of_edit) if edit in kept]
        others = [row - asked.rewriting for row in rows if row >= asked.rewriting]
        part = Asked(
            examples=tuple(asked.examples[row] for row in rows),
            of_edit=tuple(asked.of_edit[row] for row in rows),
            rewriting=len(rows) - len(others),
        )
        vlm = self.vlm.select(rows)
        return replace(
            self,
            vlm=vlm,
            asked=part,
            edits=edits,
            spots=spots(self.rule, vlm.places(part.examples)),
            before=self.before[others],
        )

    def losses(
        self,
        shift: Float[Tensor, "all_edits keys out"],
        start: Float[Tensor, "all_edits keys"],
        config: ValueConfig,
    ) -> Float[Tensor, " edits"]:
        """Return the loss of every edit of the batch. None depends on another edit."""
        asked, device = self.asked, shift.device
        predictions = self._predicted(shift)
        mine = predictions[: asked.rewriting]
        nll = answer_nll(mine.logits, mine.target, mine.is_answer)
        of_edits = torch.tensor(self.edits, device=device)
        shift, start = shift[of_edits], start[of_edits]
        decay = torch.linalg.vector_norm(shift, dim=-1) / start.square().clamp(min=1e-12)
        loss = nll.unflatten(0, (len(shift), -1)).mean(1) + config.weight_decay * decay.sum(1)
        if not len(self.before):
            return loss
        first = F.log_softmax(predictions.logits[asked.rewriting :, 0].float(), dim=-1)
        kl = F.kl_div(first, self.before, log_target=True, reduction="none").sum(-1)
        place = {edit: number for number, edit in enumerate(self.edits)}
        others = [place[edit] for edit in asked.of_edit[asked.rewriting :]]
        index = torch.tensor(others, device=device)
        count = torch.zeros_like(loss).index_add(0, index, torch.ones_like(kl)).clamp(min=1)
        return loss + config.kl_factor * torch.zeros_like(loss).index_add(0, index, kl) / count

    def _predicted(self, shift: Float[Tensor, "all_edits keys out"]) -> Predictions:
        """Return predictions of the answers with the values in their places."""
        of_edit = torch.tensor(self.asked.of_edit, device=shift.device)
        value = shift[of_edit][:, : self.spots.writes.shape[2]]
        delta = Shift(value, self.spots.writes, self.vlm.shape(self.site)[1])
        return self.vlm.with_deltas({self.site: delta}).predict(
            self.asked.examples, answers_only=[True] * len(self.asked.examples)
        )


@torch.no_grad()
def _first_log_probs(vlm: VLM, asked: Asked) -> Float[Tensor, "others vocab"]:
    """Return the log-probabilities of the first tokens of the KL term's answers."""
    others = asked.examples[asked.rewriting :]
    if not others:
        return torch.zeros(0, 1, device=vlm.device)
    rows = vlm.select(asked.of_edit[asked.rewriting :])
    predictions = rows.predict(others, answers_only=[True] * len(others))
    return F.log_softmax(predictions.logits[:, 0].float(), dim=-1)


@torch.no_grad()
def _step(
    optimizer: torch.optim.Optimizer,
    shift: Float[Tensor, "edits keys out"],
    done: Bool[Tensor, " edits"],
    most: Float[Tensor, "edits keys"],
) -> None:
    """Do one step for the edits that are not done, and keep δ within its largest norm."""
    kept = shift.clone()
    optimizer.step()
    norm = torch.linalg.vector_norm(shift, dim=-1).clamp(min=1e-12)
    shift *= (most / norm).clamp(max=1).unsqueeze(-1)
    shift[done] = kept[done]
