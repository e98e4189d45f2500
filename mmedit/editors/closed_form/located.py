"""The base of methods that write a fact where it is located: ROME, MEMIT, AlphaEdit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from mmedit.cache import GIGABYTE, TensorCache
from mmedit.cases import EditCase, Example
from mmedit.chunks import padded_batches
from mmedit.editors.base import Editor
from mmedit.editors.closed_form.config import LocatedConfig
from mmedit.editors.closed_form.contexts import in_contexts
from mmedit.editors.closed_form.direct import is_direct
from mmedit.editors.closed_form.keys import Keys, joined, read_all_keys
from mmedit.editors.closed_form.moments import SecondMoments, in_a_file, usable
from mmedit.editors.closed_form.positions import require_positions
from mmedit.editors.closed_form.second_moment import Factor
from mmedit.editors.closed_form.statistics import questions_of, second_moments
from mmedit.editors.closed_form.values import OtherImage, asked_of, find_values
from mmedit.editors.fitting import Fitting
from mmedit.editors.saved import Origin, origin_of
from mmedit.errors import DataError, EditorError, shortened
from mmedit.images import image_key, open_image
from mmedit.vlm.interface import VLM

Config = TypeVar("Config", bound=LocatedConfig)
OTHER_IMAGES, LARGEST = 2, 512
"""Images that an editor keeps for its KL term, and the longest side of each, in pixels."""
FACTORS = GIGABYTE
"""Size of the Cholesky factors that stay in memory, in bytes, at most."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Located:
    """The result of fitting: what the inputs of each edited weight are like."""

    matrices: Mapping[str, Float[Tensor, "in _"]]
    """A matrix for each site, in float32, made by `LocatedEditor.prepared`. All of a large VLM do
    not fit into memory together, so each lies in a file that the system reads as it is used.
    """
    images: tuple[OtherImage, ...]
    """Images of training cases, for the KL term."""
    _factors: TensorCache = field(
        default_factory=lambda: TensorCache(memory_bytes=FACTORS), init=False
    )

    def factor(self, site: str, device: torch.device) -> Factor:
        """Return the Cholesky factor of a site's matrix. It is made once, or anew each time for the
        sites whose factors do not fit into `FACTORS` bytes.
        """
        name = f"{site} on {device}"
        if (lower := self._factors.get(name)) is None:
            lower = Factor.of(self.matrices[site].to(device)).lower
            # An edit asks for all sites in turn, so the newest one would push out the next.
            if self._factors.bytes_used + lower.nbytes <= FACTORS:
                self._factors.put(name, lower)
        return Factor(lower)


class LocatedEditor(Editor[Config]):
    """An editor that writes at `layers` what value vectors ask for at a fact's position.

    `fit` costs a generation and a forward for every question of the training cases
    (`mmedit.editors.closed_form.statistics`), or nothing if `mmedit stats` was run for them.
    """

    usual_layers: ClassVar[tuple[float, ...]]
    """Default layers, as shares of the depth."""
    is_square: ClassVar[bool] = True
    """Whether its matrices are as wide as they are high; otherwise they have fewer columns."""

    def prepared(self, moments: SecondMoments, site: str) -> Float[Tensor, "in _"]:
        """Return the matrix that the method keeps of a site's second moments: C, unless a method
        needs another. Raises EditorError.
        """
        return usable(moments, self.config.tokens, shrink=self.config.shrink, what=site)

    def require_fits(self, vlm: VLM) -> None:
        super().require_fits(vlm)
        if self.origin is None:
            self.config.sites_in(vlm, self.usual_layers)

    def require_learnt(self, vlm: VLM) -> None:
        """Raise EditorError unless the matrices are those of the weights that the settings name,
        SiteError without such weights.
        """
        sites = self.config.sites_in(vlm, self.usual_layers)
        if self.origin is not None and self.origin.sites != sites:
            raise EditorError(
                f"this {self.method} editor was fitted for {_listed(self.origin.sites)}; its "
                f"settings write at {_listed(sites)}; fit the editor anew"
            )
        for site, matrix in self.learnt.matrices.items():
            if len(matrix) != (width := vlm.shape(site)[1]):
                raise EditorError(
                    f"the matrix of {site} has {len(matrix):,} rows; expected {width:,}, one for "
                    "each input of that weight; fit the editor anew"
                )

    def edited_sites(self, vlm: VLM) -> tuple[str, ...]:
        if self.origin is not None:
            return self.origin.sites
        return self.config.sites_in(vlm, self.usual_layers)

    def fit(self, vlm: VLM, fitting: Fitting) -> Self:
        if not self.needs_fit:
            return self
        if not fitting.cases:
            raise DataError(
                f"{self.label} needs training cases, whose questions say what the model is "
                "usually asked; none were given"
            )
        sites = self.config.sites_in(vlm, self.usual_layers)
        progress = fitting.progress
        examples = questions_of(vlm, fitting.cases, progress=progress)
        moments = second_moments(vlm, examples, sites, progress=progress)
        learnt = Located(
            matrices={
                site: in_a_file(self.prepared(moments[site], site).float(), moments.folder)
                for site in sites
            },
            images=other_images(fitting.cases),
        )
        return self.with_learnt(learnt, origin_of(vlm, sites, fitting.cases, fitting.seed))

    @property
    def needs_fit(self) -> bool:
        return True

    def require_positions(self, vlm: VLM, requests: Sequence[Example]) -> None:
        """Raise EditError if `position` does not apply to a request. No forward."""
        require_positions(self.config.position, requests, vlm.places(requests))

    def keys_at(
        self, vlm: VLM, requests: Sequence[Example], sites: Sequence[str], *, after: int
    ) -> dict[str, Keys]:
        """Return the keys of requests at each site, and their states after so many layers."""
        return read_all_keys(
            vlm,
            requests,
            sites,
            rule=self.config.position,
            contexts=self.config.contexts,
            after=after,
            batches=self._batches(vlm, requests),
        )

    def _batches(self, vlm: VLM, requests: Sequence[Example]) -> list[range]:
        """Return the places of the requests that are asked together, in all contexts."""
        if len(requests) == 1:
            return [range(1)]
        rows = in_contexts(requests, self.config.contexts)
        lengths = torch.tensor(vlm.prompt_tokens(rows)).reshape(len(requests), -1)
        whole = (lengths.amax(1) * lengths.shape[1]).tolist()
        return list(padded_batches(whole, self.config.together, self.config.together_tokens))

    def found_values(
        self,
        vlm: VLM,
        requests: Sequence[Example],
        layer: int,
        start: Float[Tensor, "edits keys hidden"],
    ) -> Float[Tensor, "edits keys hidden"]:
        """Return δ of every request at a layer; `start` is what it is added to: the hidden state
        after the layer, or the output of its MLP.

        Costs the search (`find_values`), from the layer's output on where the MLP's is added to it
        as it is, for `together` requests at a time.
        """
        config = self.config
        direct = is_direct(vlm, layer, requests[0])
        site = (vlm.layer_sites if direct else vlm.value_sites)[layer]
        shifts = []
        for rows in self._batches(vlm, requests):
            asked = asked_of(
                [requests[row] for row in rows],
                contexts=config.contexts,
                images=self.learnt.images if self.learnt else (),
                with_kl=config.value.kl_factor > 0,
            )
            norms = torch.linalg.vector_norm(start[list(rows)], dim=-1)
            shifts.append(
                find_values(
                    vlm.select(rows), asked, site, norms, rule=config.position, config=config.value
                )
            )
        return joined(shifts)

    def state(self) -> dict[str, Tensor]:
        if self.learnt is None:
            return {}
        pixels = {
            f"image.{number}": torch.from_numpy(np.array(other.image))
            for number, other in enumerate(self.learnt.images)
        }
        return {**self.learnt.matrices, **pixels}

    def notes(self) -> dict[str, Any]:
        return {"images": [other.key for other in self.learnt.images]} if self.learnt else {}

    def load_state(
        self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any], origin: Origin | None
    ) -> Self:
        if origin is None:
            return self.with_learnt(None, None)
        names = [f"image.{number}" for number in range(len(notes["images"]))]
        if set(tensors) != {*origin.sites, *names} or len(names) > OTHER_IMAGES:
            raise EditorError(
                f"the tensors are not those of a fitted {self.method}; expected one for each of "
                f"its {len(origin.sites)} sites and {len(names)} images; fit the editor anew"
            )
        matrices = {site: tensors[site] for site in origin.sites}
        form = "a square matrix" if self.is_square else "a matrix of fewer columns than rows"
        for site, matrix in matrices.items():
            rows, columns = matrix.shape if matrix.ndim == 2 else (0, 1)
            fits = rows == columns if self.is_square else rows > columns
            if not fits or matrix.dtype != torch.float32:
                raise EditorError(
                    f"the tensor of {site} is {matrix.dtype} of shape {list(matrix.shape)}; "
                    f"expected {form} in float32; fit the editor anew"
                )
        images = tuple(
            OtherImage(str(key), _image(tensors[name]))
            for name, key in zip(names, notes["images"], strict=True)
        )
        return self.with_learnt(Located(matrices=matrices, images=images), origin)


def other_images(cases: Sequence[EditCase]) -> tuple[OtherImage, ...]:
    """Return the first images of the cases' requests that differ, for the KL term."""
    found: dict[str, OtherImage] = {}
    for case in cases:
        if case.request.image is not None and len(found) < OTHER_IMAGES:
            key = image_key(case.request.image)
            image = open_image(case.request.image).convert("RGB")
            image.thumbnail((LARGEST, LARGEST))
            found.setdefault(key, OtherImage(key, image))
    return tuple(found.values())


def _listed(sites: Sequence[str]) -> str:
    return shortened(", ".join(sites), 200)


def _image(pixels: Tensor) -> Image.Image:
    """Return an image from its pixels. Raises EditorError."""
    sides = pixels.shape[:2]
    is_image = pixels.dtype == torch.uint8 and pixels.ndim == 3 and pixels.shape[-1] == 3
    if not (is_image and all(1 <= side <= LARGEST for side in sides)):
        raise EditorError(
            f"an image is {pixels.dtype} of shape {list(pixels.shape)}; expected uint8 [height, "
            f"width, 3] of at most {LARGEST} pixels a side; fit the editor anew"
        )
    return Image.fromarray(pixels.numpy())
