"""Sums of k kᵀ that grow batch by batch, and the file in which a pass keeps them until its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mmedit.adapters.places import Places
from mmedit.editors.closed_form.moments import (
    SecondMoments,
    damaged,
    packed,
    symmetric,
    unpacked,
    write_tensors,
)
from mmedit.errors import EditorError

BLOCK = 256
"""Rows of a product that are computed at once, each from its diagonal block on."""


@dataclass(eq=False)
class Sums:
    """Sums of k kᵀ over the batches so far. They grow in place, on the device of the inputs, and
    what is below their diagonals means nothing.
    """

    upper: dict[str, Tensor]
    """The sums in float64 by site and kind: "site|text", "site|image"."""
    text_count: int = 0
    image_count: int = 0
    batches: int = 0

    def add(self, inputs: Mapping[str, Float[Tensor, "batch tokens in"]], places: Places) -> None:
        """Add one batch. Raises EditorError if a value is not finite."""
        kinds = {"text": places.is_real & ~places.is_image, "image": places.is_image}
        counts = {kind: int(mask.sum()) for kind, mask in kinds.items()}
        for kind in (kind for kind, count in counts.items() if count):
            for site, x in inputs.items():
                name = f"{site}|{kind}"
                self.upper[name] = self.upper[name].to(x.device)
                _add_products(self.upper[name], x[kinds[kind].to(x.device)].float())
                if not self.upper[name].diagonal().isfinite().all():
                    raise EditorError(
                        f"{site} takes values that are not finite; expected finite ones; load the "
                        "VLM in bfloat16 or float32"
                    )
        self.text_count += counts["text"]
        self.image_count += counts["image"]
        self.batches += 1

    def moments(self, site: str) -> SecondMoments:
        """Hand over the sums of a site."""
        text, image = (symmetric(self.upper.pop(f"{site}|{k}").cpu()) for k in ("text", "image"))
        return SecondMoments(
            text=text, image=image, text_count=self.text_count, image_count=self.image_count
        )

    def write(self, file: Path) -> None:
        """Write the sums, whole or not at all. Raises EditorError."""
        counts = torch.tensor([self.text_count, self.image_count, self.batches])
        tensors = {name: packed(upper) for name, upper in self.upper.items()}
        write_tensors(file, {**tensors, "counts": counts})


def begun(unfinished: Path, widths: Mapping[str, int]) -> Sums:
    """Return the sums in a file, or empty ones if it lacks one of the sites. Raises EditorError."""
    names = {f"{site}|{kind}": n for site, n in widths.items() for kind in ("text", "image")}
    try:
        kept = load_file(unfinished) if unfinished.is_file() else {}
        if not kept.keys() >= {*names, "counts"}:
            return Sums({m: torch.zeros(n, n, dtype=torch.float64) for m, n in names.items()})
        counts = kept.pop("counts").tolist()
        return Sums({name: unpacked(kept.pop(name)) for name in names}, *counts)
    except (OSError, SafetensorError, ValueError) as error:
        raise damaged(unfinished, error) from error


def _add_products(sums: Float[Tensor, "in in"], x: Float[Tensor, "tokens in"]) -> None:
    """Add xᵀx to a sum in place, on and above the diagonal: half of the work of all of it."""
    for begin in range(0, len(sums), BLOCK):
        rows = slice(begin, begin + BLOCK)
        sums[rows, begin:] += x[:, rows].mT @ x[:, begin:]
