"""The groups of positions that are restored together: image, cells of it, and parts of the text."""

from __future__ import annotations

from dataclasses import dataclass

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
    grid: tuple[int, int] | None
    """Rows and columns of the cells; None for parts of tokens that follow each other, and if there
    are no cells.
    """
    masks: Bool[Tensor, "groups_and_cells sequence"]
    """The positions of the groups, and behind them those of the cells in reading order."""

    @property
    def cells(self) -> range:
        """The places of the cells in `masks`."""
        return range(len(self.groups), len(self.masks))


def groups_of(places: Places, cells: int, grid: tuple[int, int] | None = None) -> Groups:
    """Return the groups of one item that are not empty; `cells` is their number along each side of
    the image.

    `grid` are the rows and columns of the image's tokens (`Adapter.image_grid`), which are then cut
    into cells; without it, they are cut into parts of tokens that follow each other. "question" is
    the prompt without its subject and without the position that predicts the answer, which is a
    group by itself. "text before" and "text after" are markers of the conversation.
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
    found, cut = _cells(is_image, cells, grid)
    return Groups(
        groups=tuple(Group(name=name, tokens=counts[name]) for name in GROUPS if counts[name]),
        grid=cut,
        masks=torch.stack([*(masks[name] for name in GROUPS if counts[name]), *found]),
    )


def _cells(
    is_image: Bool[Tensor, " sequence"], cells: int, grid: tuple[int, int] | None
) -> tuple[list[Bool[Tensor, " sequence"]], tuple[int, int] | None]:
    """Return cells of the image, and their rows and columns; None if they are parts."""
    tokens, cut = int(is_image.sum()), None
    if cells < 2 or tokens < 2:
        return [], None
    number = torch.arange(tokens, device=is_image.device)
    if grid and grid[0] * grid[1] == tokens:
        (high, wide), cut = grid, (min(cells, grid[0]), min(cells, grid[1]))
        row, column = number // wide * cut[0] // high, number % wide * cut[1] // wide
        of_token = row * cut[1] + column
    else:
        of_token = number * min(cells * cells, tokens) // tokens
    found = []
    for cell in range(int(of_token.max()) + 1):
        mask = torch.zeros_like(is_image)
        mask[is_image] = of_token == cell
        found.append(mask)
    return found, cut
