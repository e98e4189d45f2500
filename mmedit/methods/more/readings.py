"""Values that a step of M-ORE reads at its sites: gradients of B, and codes A x."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmedit.cases import Example
from mmedit.errors import SiteError
from mmedit.methods.more.config import Keys
from mmedit.methods.more.steps import mean_over
from mmedit.vlm.interface import VLM


@dataclass(frozen=True, eq=False, kw_only=True)
class Reading:
    """The values of one site, row by row."""

    gradient: Float[Tensor, "rows out rank"]
    """Gradient of each row's mean answer NLL with respect to B."""
    code: Float[Tensor, "rows rank"]
    """Mean of A x over the row's key positions; in vision and bridge over all tokens."""
    image_code: Float[Tensor, "rows rank"]
    """Mean of A x over the image's tokens in the language model; 0 elsewhere."""
    is_text: bool
    """Whether text passes through the site: it is in the language model."""


def readings(
    vlm: VLM,
    requests: Sequence[Example],
    bases: Mapping[str, Float[Tensor, "rank _"]],
    *,
    keys: Keys,
    scale: float,
) -> dict[str, Reading]:
    """Return what a step reads at each site, in float32: ∂L/∂B = s Σ_t δ_t (A x_t)ᵀ. Costs one
    capture.
    """
    captured, places = vlm.capture(requests, list(bases)), vlm.places(requests)
    at = places.predicts_answer if keys == "predicting" else places.is_answer
    read = {}
    for site, basis in bases.items():
        x, delta = captured.x[site].float(), captured.delta[site].float()
        is_text = reads_text(vlm, site)
        if is_text:
            mean, image_mean = mean_over(x, at), mean_over(x, places.is_image)
        else:
            mean = mean_over(x, is_token(x))
            image_mean = torch.zeros_like(mean)
        read[site] = Reading(
            gradient=scale * delta.mT @ (x @ basis.mT),
            code=mean @ basis.mT,
            image_code=image_mean @ basis.mT,
            is_text=is_text,
        )
    return read


def reads_text(vlm: VLM, site: str) -> bool:
    """Tell whether text passes through a site, as it does in the language model."""
    try:
        vlm.require_reach([Example(prompt="?", target="?")], [site])
    except SiteError:
        return False
    return True


def is_token(x: Float[Tensor, "rows tokens in"]) -> Bool[Tensor, "rows tokens"]:
    """Return which inputs of an image stage are no filling: images of unequal size are filled with
    zeros.
    """
    return x.abs().amax(-1) != 0
