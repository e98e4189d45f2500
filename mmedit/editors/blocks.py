"""The hidden states that one decoder layer gives, for methods that read and write them there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from mmedit.adapters.places import Places
from mmedit.cases import EditCase, Example, Probe
from mmedit.editors.config import layer_in
from mmedit.errors import DataError, EditError
from mmedit.vlm.interface import VLM


class BlockOutput(NamedTuple):
    """The hidden states of a batch behind one decoder layer, in float32."""

    states: Float[Tensor, "rows tokens hidden"]
    """0 at padding."""
    places: Places

    @property
    def has_image(self) -> Tensor:
        """Rows with an image."""
        return self.places.is_image.any(1)


def block_layer(vlm: VLM, layer: int | None, share: float) -> int:
    """Return the layer that is set, or the one at this share of the depth. Raises SiteError."""
    depth = len(vlm.layer_sites)
    return layer_in(
        depth,
        layer,
        usual=int(depth * share),
        unknown="the decoder layers of this VLM cannot be told apart; use a method that names its "
        "sites (ft, mend)",
    )


def read_block(vlm: VLM, examples: Sequence[Example], layer: int) -> BlockOutput:
    """Return what a layer gives, without gradient. Costs a forward up to that layer, or of that
    layer alone if the states before it are kept.
    """
    states = vlm.observe(examples, [], after=[layer + 1]).states[layer + 1]
    places = vlm.places(examples)
    real = places.is_real.unsqueeze(-1)
    return BlockOutput(states.to(real.device).float().masked_fill(~real, 0), places)


def require_images(requests: Sequence[Example], method: str) -> None:
    """Raise EditError for a request without image."""
    for request in requests:
        if request.image is None:
            raise EditError(
                f"{method} edits what a VLM says about images, and {request.prompt[:60]!r} has "
                "none; give the request an image, or use another method"
            )


def require_image_cases(cases: Sequence[EditCase], probes: Sequence[Probe], method: str) -> None:
    """Raise DataError unless the requests and these probes of the cases have images."""
    for case in cases:
        asked = [case.request, *(case.probes[p][0] for p in probes if p in case.probes)]
        if any(example.image is None for example in asked):
            raise DataError(
                f"{method} is trained on questions about images; case {case.id} has one without "
                "an image. Use a dataset with images, or leave out such a probe (its weight = 0)"
            )
