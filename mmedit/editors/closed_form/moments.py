"""Second moments C = E[k kᵀ], not centred, of what a Linear takes: of text and image tokens apart.

Image tokens are many more than text tokens in most VLMs, so in a mean over all of them they alone
would say which directions an edit must not touch. Hence the kinds of `Tokens`.

Files hold the upper triangles in float64: as many bytes as whole matrices in float32 (485 MB for
each kind at 11,008 inputs), and nothing is rounded.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmedit.editors.closed_form.second_moment import leading
from mmedit.errors import EditorError, one_line
from mmedit.storage import replaced

log = logging.getLogger(__name__)

Tokens = Literal["text", "image", "balanced", "all"]
"""Tokens that a mean is over: text, image, all of both, or half the mean of each (balanced)."""
RIDGE = 1e-5
"""Share of its mean that is added to the diagonal of every second moment."""
ENOUGH = 5
"""Tokens for each input that a second moment needs. Below, its small eigenvalues are chance."""


@dataclass(frozen=True, eq=False, kw_only=True)
class SecondMoments:
    """Sums of k kᵀ over the inputs k of one site, in float64."""

    text: Float[Tensor, "in in"]
    """The sum over text tokens: all but image tokens and padding. Markers count as text."""
    image: Float[Tensor, "in in"]
    """The sum over image tokens."""
    text_count: int
    """Number of text tokens."""
    image_count: int
    """Number of image tokens."""

    @property
    def width(self) -> int:
        """Number of inputs of the site."""
        return len(self.text)

    def count(self, tokens: Tokens) -> int:
        """Return how many tokens of this kind were seen: of balanced ones the smaller number of
        both kinds, or that of text if no image was seen.
        """
        text, image = self.text_count, self.image_count
        if tokens == "balanced":
            return min(text, image) if text and image else text + image
        return {"text": text, "image": image, "all": text + image}[tokens]

    def mean(self, tokens: Tokens) -> Float[Tensor, "in in"]:
        """Return C = E[k kᵀ] over tokens of this kind, in float64. Balanced is the half of both
        means, or the one of them that was seen. Raises EditorError if no token was seen.
        """
        if not (count := self.count(tokens)):
            raise EditorError(
                f"no {tokens} tokens were seen, so their second moment is unknown; expected some; "
                "choose other tokens, or collect it over examples that have them"
            )
        if tokens == "all":
            return (self.text + self.image) / count
        if tokens == "balanced" and self.text_count and self.image_count:
            return self.text / (2 * self.text_count) + self.image / (2 * self.image_count)
        return (self.image if tokens == "image" or not self.text_count else self.text) / count

    def is_enough(self, tokens: Tokens) -> bool:
        """Tell whether there are `ENOUGH` tokens of this kind for each input."""
        return self.count(tokens) >= ENOUGH * self.width


def usable(
    moments: SecondMoments, tokens: Tokens, *, shrink: float | None, what: str
) -> Float[Tensor, "in in"]:
    """Return the mean of `moments`, which of too few tokens shrinks towards the identity:
    (1 - ρ) C + ρ (tr C / in) I with ρ = `shrink`. A warning says so. `RIDGE` is always added.

    `what` names the site in the warning. Raises EditorError if there are too few tokens and
    `shrink` is None.
    """
    mean = moments.mean(tokens)
    # An input that was never active has no moment at all, however many tokens there are.
    mean.diagonal().add_(RIDGE * mean.diagonal().mean())
    if moments.is_enough(tokens):
        return mean
    found = (
        f"{what}: the second moment of {moments.width:,} inputs comes from "
        f"{moments.count(tokens):,} {tokens} tokens; expected at least {ENOUGH} for each input, "
        f"{ENOUGH * moments.width:,}"
    )
    if shrink is None:
        raise EditorError(f"{found}; give more training cases, or let it shrink, such as 0.05")
    log.warning(
        "%s. It shrinks towards the identity by %g; give more training cases", found, shrink
    )
    level = shrink * mean.diagonal().mean()
    mean.mul_(1 - shrink).diagonal().add_(level)
    return mean


def effective_rank(mean: Float[Tensor, "in in"]) -> float:
    """Return (tr C)² / tr C², the participation ratio: the number of directions that share the
    trace if all of them had an equal part.
    """
    return float(mean.trace().square() / mean.square().sum())


def spare_directions(mean: Float[Tensor, "in in"], eta: float) -> int:
    """Return the number of directions that are left beside the fewest which hold a share 1 - `eta`
    of the trace: the dimension of AlphaEdit's null space. Costs the eigenvalues, O(in³).
    """
    values = torch.linalg.eigvalsh(mean).flip(0)
    return int((~leading(values, 1 - eta)).sum())


def write_moments(file: Path, moments: SecondMoments, about: Mapping[str, object]) -> None:
    """Write a file, whole or not at all. `about` says what it belongs to. Raises EditorError."""
    counts = torch.tensor([moments.text_count, moments.image_count])
    tensors = {"text": packed(moments.text), "image": packed(moments.image), "counts": counts}
    # one entry: safetensors writes several in any order, and equal content must be equal bytes
    write_tensors(file, tensors, {"about": json.dumps(dict(about), ensure_ascii=False)})


def read_moments(file: Path) -> SecondMoments:
    """Read what `write_moments` wrote, bit for bit. Raises EditorError if the file is damaged."""
    try:
        tensors = load_file(file)
        text, image = (tensors[kind].to(torch.float64) for kind in ("text", "image"))
        text_count, image_count = tensors["counts"].tolist()
        return SecondMoments(
            text=symmetric(unpacked(text)),
            image=symmetric(unpacked(image)),
            text_count=text_count,
            image_count=image_count,
        )
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise damaged(file, error) from error


def has_moments(file: Path, width: int) -> bool:
    """Tell whether there is a file of a site with so many inputs. Only its header is read. Raises
    EditorError if it is damaged.
    """
    if not file.is_file():
        return False
    try:
        with safe_open(file, "pt") as opened:
            shapes = {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise damaged(file, error) from error
    entries = width * (width + 1) // 2
    if shapes != {"text": [entries], "image": [entries], "counts": [2]}:
        raise damaged(file, f"it holds {shapes}, not the moments of {width:,} inputs")
    return True


def damaged(file: Path, reason: object) -> EditorError:
    """Return the error for a file that cannot be used."""
    return EditorError(
        f"the statistics in {file} are damaged ({one_line(reason)}); expected a file that `mmedit "
        "stats` wrote; delete it, and it is made again"
    )


def write_tensors(
    file: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file, whole or not at all. Raises EditorError."""
    try:
        with replaced(file) as partial:
            save_file(dict(tensors), partial, dict(about or {}))
    except (OSError, SafetensorError) as error:
        raise EditorError(
            f"the statistics cannot be written to {file}: {one_line(error)}; free some space, or "
            "choose another folder"
        ) from error


def in_a_file(matrix: Float[Tensor, "in _"], folder: Path) -> Float[Tensor, "in _"]:
    """Return a matrix whose memory is a file in the folder, which the system reads as the matrix is
    used. The file has lost its name already, and is gone with the matrix. Where the folder cannot
    be written, the matrix stays in memory.
    """
    kept = matrix.cpu().contiguous()
    try:
        with TemporaryDirectory(dir=folder, prefix=".", ignore_cleanup_errors=True) as place:
            file = Path(place) / "matrix.safetensors"
            write_tensors(file, {"matrix": kept})
            with safe_open(file, "pt") as opened:
                return opened.get_tensor("matrix")
    except (OSError, EditorError, SafetensorError):  # read-only, or full
        return kept


def packed(matrix: Float[Tensor, "in in"]) -> Float[Tensor, " entries"]:
    """Return the upper triangle of a matrix row by row, on the CPU."""
    return torch.cat([row[place:] for place, row in enumerate(matrix.cpu())])


def unpacked(entries: Float[Tensor, " entries"]) -> Float[Tensor, "in in"]:
    """Return the matrix of which these are the upper triangle, with zeros below. Raises ValueError
    for a number of entries that no triangle has.
    """
    width = (int((8 * len(entries) + 1) ** 0.5) - 1) // 2
    if width * (width + 1) // 2 != len(entries):
        raise ValueError(f"{len(entries)} entries are not a triangle")
    matrix, begin = entries.new_zeros(width, width), 0
    for place, row in enumerate(matrix):
        row[place:] = entries[begin : begin + width - place]
        begin += width - place
    return matrix


def symmetric(upper: Float[Tensor, "in in"]) -> Float[Tensor, "in in"]:
    """Return a matrix with the entries above its diagonal below it too, in the same memory."""
    for place, row in enumerate(upper):
        upper[place + 1 :, place] = row[place + 1 :]
    return upper
