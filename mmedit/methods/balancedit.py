"""BalancEdit: a codebook of layer edits, each with its own radius (Guo et al. 2025, BalancEdit:
Dynamically Balancing the Generality-Locality Trade-off in Multi-modal Model Editing).

The hidden state q that enters decoder layer l at the last prompt token is compared with the keys of
the codebook. If the nearest key is within its radius, the layer answers with the entry's change:

    W' = W + U_iᵀ V_i   if ‖q - k_i‖ <= ε_i,  i = argmin_j ‖q - k_j‖,     else W
    ε = (1-α) ‖k_pos - k‖ + α ‖k_neg - k‖

k_pos is the key of a rephrase with the same image, k_neg that of the same question about a black
image. The change is fitted to the edit alone: U, V ≈ argmin -(1/n) Σ_j log p(y_j | prompt, image).

Differences from the paper (its code could not be read):

- An entry is a change of rank r of the weight that ends the layer's feed-forward block. The paper
  stores the whole fine-tuned layer.
- The key is read at the last prompt token, not as the mean over tokens, which is that of the image
  wherever an image has many tokens.
- The rephrase is a template around the question (`rephrase`), so that it needs no other model and
  no rephrase of the case.
- A request without image has a fixed, unrelated question as its negative (`unrelated`).
- A new edit inside a ball takes the place of its entry, whether the answers agree or not. In the
  paper, training goes on from the old value if they do.
- The decision is made before the answer begins, and kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from pydantic import Field
from torch import Tensor

from mmedit.cases import Example
from mmedit.deltas import Delta, LowRank
from mmedit.editors.closed_form.positions import spots
from mmedit.editors.codebook import layer_of, nearest
from mmedit.editors.config import EditorConfig
from mmedit.editors.descent import initial_factor, step_undone
from mmedit.editors.entries import Entries
from mmedit.editors.memory import MemoryEditor
from mmedit.images import require_header
from mmedit.metrics.multiclass_log_probs import answer_nll
from mmedit.settings import MAX_SEED
from mmedit.vlm.interface import VLM

PROMPT = "{prompt}"
"""Stands for the question in `rephrase`."""


class BalancEditConfig(EditorConfig):
    """Settings of BalancEdit."""

    layer: int | None = None
    """Decoder layer l whose inputs are keys and which is edited, from 0; null: the last but one.
    Published: 29 to 31 of 32.
    """
    alpha: float = Field(default=0.2, ge=0, le=1)
    """α: 0 is a radius that reaches the rephrase, 1 one that reaches the negative. Published: 0.1
    to 0.3.
    """
    rephrase: str = Field(default="Please answer: {prompt}", pattern=r"\{prompt\}")
    """The rephrase of a question, which stands at {prompt}."""
    unrelated: str = Field(default="What is the capital of Peru?", min_length=1)
    """The question that is the negative of a request without image."""
    rank: int = Field(default=8, ge=1)
    """r, the rank of a change."""
    steps: int = Field(default=50, ge=1)
    """Steps of Adam for an edit at most."""
    lr: float = Field(default=1e-2, gt=0)
    """Learning rate of Adam."""
    stop_loss: float = Field(default=0.01, ge=0)
    """An edit is done when the NLL of its answer is below this."""
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    """Seed of the initial V, the same for every edit."""

    def layer_of(self, vlm: VLM) -> int:
        """Return the layer on this VLM. Raises SiteError."""
        return layer_of(vlm, self.layer, usual=max(len(vlm.value_sites) - 2, 0))

    def site_in(self, vlm: VLM) -> str:
        """Return the Linear that is changed. Raises SiteError."""
        return vlm.value_sites[self.layer_of(vlm)]


class BalancEdit(MemoryEditor[BalancEditConfig]):
    """BalancEdit. An edit costs three forwards up to the edited layer, and `steps` forwards and
    backwards from there on; a question one layer more than without edits, if the base model was
    asked it before. An entry stores r (in + out) numbers and its key.
    """

    method: ClassVar[str] = "balancedit"
    title: ClassVar[str] = "BalancEdit"
    paper: ClassVar[str] = (
        "Guo et al. 2025, BalancEdit: Dynamically Balancing the Generality-Locality Trade-off in "
        "Multi-modal Model Editing"
    )
    config_class: ClassVar[type[EditorConfig]] = BalancEditConfig

    def require_fits(self, vlm: VLM) -> None:
        super().require_fits(vlm)
        self.config.site_in(vlm)

    def shapes(self, vlm: VLM) -> dict[str, tuple[int | None, ...]]:
        site, rank = self.config.site_in(vlm), self.config.rank
        out, width = vlm.shape(site)
        hidden, _ = vlm.shape(vlm.layer_sites[self.config.layer_of(vlm)])
        return {"key": (hidden,), "radius": (), "u": (rank, out), "v": (rank, width)}

    def learn(self, vlm: VLM, entries: Entries, requests: Sequence[Example]) -> dict[str, Tensor]:
        config = self.config
        key, positive, negative = (
            self.keys(vlm, examples)
            for examples in (
                requests,
                [rephrased(request, config.rephrase) for request in requests],
                [negative_of(request, config.unrelated) for request in requests],
            )
        )
        u, v = fitted_factors(vlm, requests, config)
        return {
            "key": key,
            "radius": balanced(key, positive, negative, config.alpha),
            "u": u,
            "v": v,
        }

    def keys(self, vlm: VLM, examples: Sequence[Example]) -> Float[Tensor, "rows hidden"]:
        """Return what enters the edited layer where the first token of the answer is predicted, in
        float32. Costs a forward up to that layer.
        """
        layer = self.config.layer_of(vlm)
        states = vlm.observe(examples, [], after=[layer]).states[layer]
        return spots("last_prompt", vlm.places(examples)).read(states.float())[:, 0]

    def choose(self, vlm: VLM, entries: Entries, examples: Sequence[Example]) -> dict[str, Delta]:
        asked = self.keys(vlm, examples)
        inside, entry = containing(entries, asked, entries.seen_by(len(examples)))
        if not inside.any():
            return {}
        u = entries["u"][entry].where(inside[:, None, None], 0)
        return {self.config.site_in(vlm): LowRank(u, entries["v"][entry])}

    def add(self, entries: Entries, stored: Mapping[str, Tensor]) -> Entries:
        for row in range(len(stored["key"])):  # a later request takes the place of an earlier one
            one = {name: tensor[row : row + 1] for name, tensor in stored.items()}
            entries = with_one(entries, one)
        return entries

    def add_each(self, entries: Entries, stored: Mapping[str, Tensor]) -> Entries:
        if not len(entries):
            return entries.with_each(stored)
        inside, entry = containing(entries, stored["key"], entries.seen_by(len(stored["key"])))
        kept = entries.hidden_from_rows(entry, inside) if inside.any() else entries
        return kept.with_each(stored)


def rephrased(request: Example, template: str) -> Example:
    """Return the request with the template around its question."""
    return replace(request, prompt=template.replace(PROMPT, request.prompt))


def negative_of(request: Example, unrelated: str) -> Example:
    """Return the same question about a black image of the same size; for a request without image,
    the unrelated question.
    """
    if request.image is None:
        return replace(request, prompt=unrelated, subject="")
    return replace(request, image=Image.new("RGB", require_header(request.image)))


def balanced(
    key: Float[Tensor, "rows hidden"],
    positive: Float[Tensor, "rows hidden"],
    negative: Float[Tensor, "rows hidden"],
    alpha: float,
) -> Float[Tensor, " rows"]:
    """Return the radius ε of every key."""
    near, far = (torch.linalg.vector_norm(other - key, dim=1) for other in (positive, negative))
    return (1 - alpha) * near + alpha * far


def containing(
    entries: Entries, asked: Float[Tensor, "rows hidden"], visible: Bool[Tensor, "rows entries"]
) -> tuple[Bool[Tensor, " rows"], Int[Tensor, " rows"]]:
    """Return whether each row is inside the ball of its nearest entry, and that entry."""
    distance, entry = nearest(entries["key"], asked, visible)
    return distance <= entries["radius"][entry], entry


def with_one(entries: Entries, new: Mapping[str, Tensor]) -> Entries:
    """Return the codebook with one more entry, in the place of the one whose ball it lies in."""
    if not len(entries):
        return entries.with_all(new)
    rows = 1 if entries.visible is None else len(entries.visible)
    inside, entry = containing(entries, new["key"].expand(rows, -1), entries.seen_by(rows))
    if entries.visible is not None:
        return entries.hidden_from_rows(entry, inside).with_all(new)
    return entries.replaced(int(entry), new) if inside.any() else entries.with_all(new)


def fitted_factors(
    vlm: VLM, requests: Sequence[Example], config: BalancEditConfig
) -> tuple[Float[Tensor, "edits rank out"], Float[Tensor, "edits rank in"]]:
    """Return the factors of each request's change. None sees another.

    V begins uniform within ±1/√in and U as 0. Costs at most `steps` forwards and backwards from the
    layer on, and one host sync each.
    """
    site, edits = config.site_in(vlm), len(requests)
    out, width = vlm.shape(site)
    generator = torch.Generator().manual_seed(config.seed)
    start = initial_factor(config.rank, width, generator)
    v = start.to(vlm.device).repeat(edits, 1, 1).requires_grad_()
    u = torch.zeros(edits, config.rank, out, device=vlm.device, requires_grad=True)
    optimizer = torch.optim.Adam([u, v], lr=config.lr)
    done = torch.zeros(edits, dtype=torch.bool, device=vlm.device)
    for _ in range(config.steps):
        with torch.enable_grad():
            edited = vlm.with_deltas({site: LowRank(u, v)})
            found = edited.predict(requests, answers_only=[True] * edits)
            nll = answer_nll(found.logits, found.target, found.is_answer)
            done |= nll.detach() < config.stop_loss
            if done.all():
                break
            # Separate edits share no number: with the sum, each gets the gradient of its own loss.
            u.grad, v.grad = torch.autograd.grad(nll.sum(), [u, v])
        step_undone(optimizer, [u, v], done)
    return u.detach(), v.detach()
