"""GRACE: a codebook beside the model (Hartvigsen et al. 2023, Aging with GRACE: Lifelong Model
Editing with Discrete Key-Value Adaptors).

At the last prompt token, the input q of one Linear is compared with the keys of the codebook. If
the nearest key K_i is within its radius, its value replaces the output of the Linear there:

    y = v_i   if ‖q - K_i‖ <= ε_i,  i = argmin_j ‖q - K_j‖,     else y = W q + b

A new edit that is further than ε + ε_i from the nearest key gets an entry with radius ε. One that
is nearer and sets another answer gets an entry too, and both radii become half the distance; one
that sets the same answer widens the entry's radius to reach it. A value is found by gradient on the
answer's NLL.

Differences from the published code and EasyEdit's:

- The key is read at the last prompt token of every question. EasyEdit keeps the position of the
  last edited prompt, so that questions of another length are compared at a stale token, which alone
  gives locality 100 and little generality.
- Two answers are the same if their tokens are. The published code compares the mean of the labels.
- ε is in units of the usual distance between neighbouring prompts at this Linear, which `fit`
  estimates. The published 1.0 is a length in one network.
- The decision is made before the answer begins, and kept.
- The search for a value ends when the NLL is small. Values replace the last prompt token alone
  (`replace_last`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from mmedit.cases import Example
from mmedit.chunks import chunks
from mmedit.deltas import Delta
from mmedit.editors.closed_form.values import ValueConfig, asked_of, find_values
from mmedit.editors.codebook import (
    Expand,
    at_prompt_end,
    layer_of,
    placed,
    placed_each,
    shift_to_values,
)
from mmedit.editors.config import EditorConfig
from mmedit.editors.entries import Entries, token_rows
from mmedit.editors.fitting import Fitting
from mmedit.editors.memory import MemoryEditor
from mmedit.editors.saved import Origin, origin_of
from mmedit.editors.shifts import Shift
from mmedit.errors import DataError, EditError, EditorError
from mmedit.vlm.interface import VLM

BATCH = 32
"""Training questions in one forward of `fit`."""
MOST_PROMPTS = 500
"""Training questions by which `fit` estimates the unit of ε."""


class GRACEConfig(EditorConfig):
    """Settings of GRACE."""

    after_fit: ClassVar[frozenset[str]] = frozenset(
        {"epsilon", "expand", "steps", "lr", "stop_loss"}
    )
    layer: int | None = None
    """Decoder layer whose feed-forward block is edited, from 0; null: at two thirds of the depth.
    """
    epsilon: float = Field(default=1.0, gt=0)
    """Radius ε of a new entry, in units of the median distance of a training prompt to the nearest
    other one.
    """
    expand: Expand = "coverage"
    """An entry that another edit with the same answer is near widens its radius (coverage), or
    moves half way to it as well (moving_average). Published: coverage.
    """
    steps: int = Field(default=100, ge=1)
    """Steps of the search for a value at most. Published: 100."""
    lr: float = Field(default=1.0, gt=0)
    """Learning rate of Adam. Published: 1.0."""
    stop_loss: float = Field(default=0.01, ge=0)
    """The search for a value ends when the NLL of the answer is below this."""

    def site_in(self, vlm: VLM) -> str:
        """Return the Linear whose output values replace. Raises SiteError."""
        usual = (2 * len(vlm.value_sites)) // 3
        return vlm.value_sites[layer_of(vlm, self.layer, usual=usual)]


class GRACE(MemoryEditor[GRACEConfig]):
    """GRACE. An edit costs a forward up to the edited layer and `steps` forwards and backwards from
    there on; a question one layer more than without edits, if the base model was asked it before.
    """

    method: ClassVar[str] = "grace"
    title: ClassVar[str] = "GRACE"
    paper: ClassVar[str] = (
        "Hartvigsen et al. 2023, Aging with GRACE: Lifelong Model Editing with Discrete Key-Value "
        "Adaptors"
    )
    config_class: ClassVar[type[EditorConfig]] = GRACEConfig

    @property
    def needs_fit(self) -> bool:
        return True

    def require_fits(self, vlm: VLM) -> None:
        super().require_fits(vlm)
        self.config.site_in(vlm)

    def fit(self, vlm: VLM, fitting: Fitting) -> Self:
        requests = [case.request for case in fitting.cases[:MOST_PROMPTS]]
        if len({(r.prompt, str(r.image)) for r in requests}) < 2:
            raise DataError(
                "GRACE measures its radius by the distance between training prompts; it needs at "
                f"least 2 different ones, and {len(requests)} were given"
            )
        site, found = self.config.site_in(vlm), []
        for asked in chunks(requests, BATCH):
            found.append(at_prompt_end(vlm, list(asked), site).x)
            fitting.progress("prompts", sum(map(len, found)), len(requests), "")
        scale = usual_distance(torch.cat(found))
        return self.with_learnt(scale, origin_of(vlm, (site,), fitting.cases, fitting.seed))

    def shapes(self, vlm: VLM) -> dict[str, tuple[int | None, ...]]:
        out, width = vlm.shape(self.config.site_in(vlm))
        return {"key": (width,), "value": (out,), "label": (None,)}

    def learn(self, vlm: VLM, entries: Entries, requests: Sequence[Example]) -> dict[str, Tensor]:
        self.require_fitted_on(vlm)
        config, site = self.config, self.config.site_in(vlm)
        at = at_prompt_end(vlm, list(requests), site)
        asked = asked_of(requests, contexts=0, images=(), with_kl=False)
        search = ValueConfig(
            steps=config.steps + 1,
            lr=config.lr,
            weight_decay=0,
            kl_factor=0,
            clamp=1e6,
            stop_loss=config.stop_loss,
        )
        free = torch.ones(len(requests), 1, device=vlm.device)
        shift = find_values(vlm, asked, site, free, rule="last_prompt", config=search)
        labels = vlm.frozen.tokenize([request.target for request in requests])
        return {"key": at.x, "value": at.y + shift[:, 0], "label": token_rows(labels, vlm.device)}

    def choose(self, vlm: VLM, entries: Entries, examples: Sequence[Example]) -> dict[str, Delta]:
        site = self.config.site_in(vlm)
        at = at_prompt_end(vlm, list(examples), site)
        inside, shift = shift_to_values(entries, at)
        if not inside.any():
            return {}
        return {site: Shift(shift.unsqueeze(1), at.writes, vlm.shape(site)[1])}

    def add(self, entries: Entries, stored: Mapping[str, Tensor]) -> Entries:
        if entries.visible is not None:
            raise EditError(
                "an edit of all rows cannot follow separate edits of GRACE, whose codebooks "
                "differ; make it first, or use apply_each"
            )
        for row in range(len(stored["key"])):  # an entry depends on those before it
            one = {name: tensor[row : row + 1] for name, tensor in stored.items()}
            entries = placed(entries, one, radius=self._radius, expand=self.config.expand)
        return entries

    def add_each(self, entries: Entries, stored: Mapping[str, Tensor]) -> Entries:
        return placed_each(entries, stored, radius=self._radius, expand=self.config.expand)

    @property
    def _radius(self) -> float:
        """ε, as a length."""
        return self.config.epsilon * float(self.learnt)

    def state(self) -> dict[str, Tensor]:
        return {} if self.learnt is None else {"scale": self.learnt}

    def load_state(
        self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any], origin: Origin | None
    ) -> Self:
        if origin is None:
            return self.with_learnt(None, None)
        scale = tensors.get("scale")
        if len(tensors) != 1 or scale is None or scale.shape or not 0 < float(scale) < torch.inf:
            raise EditorError(
                "the editor's tensors are not those of a fitted GRACE; expected `scale`, a "
                "positive number; fit it anew"
            )
        return self.with_learnt(scale, origin)


def usual_distance(keys: Float[Tensor, "prompts width"]) -> Float[Tensor, ""]:
    """Return the median distance of a key to the nearest one that differs from it."""
    away = torch.cdist(keys.double(), keys.double())
    near = away.masked_fill(away < 1e-6 * away.max(), torch.inf).amin(1)
    return near[near.isfinite()].median().cpu()
