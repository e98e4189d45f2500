"""The groups of positions that are restored together: image, cells of it, and parts of the text."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

import torch
from jaxtyping import Bool
from torch import Tensor

from mmedit.adapters.places import Places
from mmedit.trace.records import Group
from mmedit.trace.settings import GROUPS


@dataclass(frozen=True, eq=False)
class Groups:
    """The groups of one item, with their positions."""

    groups: tuple[Group, ...]
    grid: int
    """Cells along each side of the image; 0 if its tokens are no square, or there are no cells."""
    masks: Bool[Tensor, "groups_and_cells sequence"]
    """The positions of the groups, and behind them those of the cells in reading order."""

    @property
    def cells(self) -> range:
        """The places of the cells in `masks`."""
        return range(len(self.groups), len(self.masks))


def groups_of(places: Places, cells: int) -> Groups:
    """Return the groups of one item that are not empty; `cells` is their number along each side of
    the image.

    Image tokens whose number is a square are cut into cells of rows and columns, others into parts
    of tokens that follow each other. "question" is the prompt without its subject and without the
    position that predicts the answer, which is a group by itself. "text before" and "text after"
    are markers of the conversation.
    """
    is_image, is_prompt = places.is_image[0], places.is_prompt[0]
    place = torch.arange(len(is_image), device=is_image.device)
    last = place == places.last_prompt[0]
    rest = places.is_real[0] & ~is_image & ~is_prompt & ~places.is_answer[0] & ~last
    first_text = place.where(is_prompt | last, len(place)).min()
    is_subject = places.is_subject[0] & ~last
    masks = {
        "text before": rest & (place < first_text),
        "image": is_image,
        "question": is_prompt & ~is_subject & ~last,
        "subject": is_subject,
        "text after": rest & (place > first_text),
        "last prompt token": last,
    }
    counts = {name: int(masks[name].sum()) for name in GROUPS}
    found, grid = _cells(is_image, cells)
    return Groups(
        groups=tuple(Group(name=name, tokens=counts[name]) for name in GROUPS if counts[name]),
        grid=grid,
        masks=torch.stack([*(masks[name] for name in GROUPS if counts[name]), *found]),
    )


def _cells(
    is_image: Bool[Tensor, " sequence"], cells: int
) -> tuple[list[Bool[Tensor, " sequence"]], int]:
    """Return cells of the image, and how many there are along each side; parts if it is 0."""
    tokens = int(is_image.sum())
    side = isqrt(tokens)
    if cells < 2 or tokens < 2:
        return [], 0
    number = torch.arange(tokens, device=is_image.device)
    grid = min(cells, side) if side * side == tokens else 0
    if grid:
        of_token = (number // side * grid // side) * grid + number % side * grid // side
    else:
        of_token = number * min(cells * cells, tokens) // tokens
    found = []
    for cell in range(int(of_token.max()) + 1):
        mask = torch.zeros_like(is_image)
        mask[is_image] = of_token == cell
        found.append(mask)
    return found, grid
