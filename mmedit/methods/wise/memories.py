"""The side memories of a sequence of edits.

Edits go on from the open memory, which is the last one. After `save_freq` edits it is closed and
the next edit begins another. Whenever the closed ones hold `merge_freq` edits, they become one by
TIES (Yadav et al. 2023, TIES-Merging): of each change the largest entries are kept, and entries
whose sign is that of the sum are averaged.

So the memories are a fold over the edits. An edit stores the change that it adds to the open
memory, and edits that end in one memory can be added up before the fold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mmedit.editors.entries import Entries


class Rules(NamedTuple):
    """When memories are closed and merged."""

    save_freq: int
    """Edits in a memory."""
    merge_freq: int
    """Edits in closed memories at which they are merged."""
    density: float
    """Share of the entries of a change that a merge keeps."""
    retrieve: bool
    """Whether merged memories stay apart; otherwise a merge takes in the one before it."""


def open_memory(entries: Entries, rules: Rules) -> int | None:
    """Return the number of the memory that the next edit goes on from; None: a new one."""
    last = len(entries) - 1
    if last < 0 or entries["merged"][last] or entries["edits"][last] >= rules.save_freq:
        return None
    return last


def taken_in(entries: Entries, stored: Mapping[str, Tensor], rules: Rules) -> Entries:
    """Return the memories with one edit after the other, which every row sees."""
    for row in range(len(stored["edits"])):  # an edit depends on those before it
        one = {name: tensor[row : row + 1] for name, tensor in stored.items()}
        kept, new = following(entries, one, rules)
        entries = first_of(entries, kept).with_all(new)
    return entries


def taken_in_each(entries: Entries, stored: Mapping[str, Tensor], rules: Rules) -> Entries:
    """Return the memories with one separate edit for each row."""
    kept, new = following(entries, stored, rules)
    return first_of(entries, kept).with_each(new)


def first_of(entries: Entries, kept: int) -> Entries:
    """Return the first memories alone."""
    if kept == len(entries):
        return entries
    return Entries(tensors={name: tensor[:kept] for name, tensor in entries.tensors.items()})


def following(
    entries: Entries, stored: Mapping[str, Tensor], rules: Rules
) -> tuple[int, dict[str, Tensor]]:
    """Return how many memories stay as they are after an edit, and the one that takes it in: a row
    for each of the separate edits that are stored.
    """
    kept, last = len(entries), open_memory(entries, rules)
    new = {**stored, "merged": torch.zeros_like(stored["edits"], dtype=torch.bool)}
    if last is not None:
        kept = last
        new["change"] = entries["change"][last] + new["change"]
        new["activation"] = torch.minimum(entries["activation"][last], new["activation"])
        new["edits"] = entries["edits"][last] + new["edits"]
    return merged_if_due(entries, kept, new, rules)


def merged_if_due(
    entries: Entries, kept: int, new: dict[str, Tensor], rules: Rules
) -> tuple[int, dict[str, Tensor]]:
    """Return what `following` does, with the memories merged if they are due.

    The smallest activation of a merged memory is the smallest of those that it was made of.
    """
    edits = int(new["edits"][0])
    if edits < rules.save_freq:
        return kept, new
    group = int(entries["merged"].sum()) if kept else 0  # merged ones come first
    if edits + sum(entries["edits"][group:kept].tolist() if kept else ()) < rules.merge_freq:
        return kept, new
    first = group if rules.retrieve else 0
    count = kept - group + 1
    weights = [1 / count] * count
    if first < group:
        weights = [0.6, *[0.4 / count] * count]

    def together(name: str) -> Tensor:
        """Return the rows of all that are merged, [edits, memories, ...]."""
        own = new[name].unsqueeze(1)
        if first == kept:
            return own
        before = entries[name][first:kept]
        return torch.cat([before.expand(len(own), *before.shape), own], 1)

    return first, {
        "change": ties(together("change"), weights, rules.density),
        "activation": together("activation").amin(1),
        "edits": together("edits").sum(1),
        "merged": torch.ones_like(new["merged"]),
    }


def ties(
    changes: Float[Tensor, "edits memories out in"], weights: Sequence[float], density: float
) -> Float[Tensor, "edits out in"]:
    """Return the changes of each edit merged by TIES. Entries whose sum is 0 count as positive."""
    flat = changes.flatten(2)
    largest = flat.abs().topk(int(density * flat.shape[2]), dim=2).indices
    kept = torch.zeros_like(flat).scatter(2, largest, flat.gather(2, largest))
    weight = torch.tensor(weights, device=flat.device, dtype=flat.dtype).unsqueeze(1)
    weighed = weight * kept
    sign = torch.where(weighed.sum(1, keepdim=True) >= 0, 1.0, -1.0)
    agrees = weighed.sign() == sign
    share = (weight * agrees).sum(1)
    merged = (weighed * agrees).sum(1) / share.masked_fill(share == 0, 1)
    return merged.unflatten(1, changes.shape[2:])


def added_up(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], rules: Rules
) -> dict[str, Tensor]:
    """Return what edits have stored with those of one memory added up: after the fold the memories
    are the same.
    """
    rows = [{n: t[row : row + 1] for n, t in first.items()} for row in range(len(first["edits"]))]
    for row in range(len(second["edits"])):
        new = {name: tensor[row : row + 1] for name, tensor in second.items()}
        if int(rows[-1]["edits"]) >= rules.save_freq:
            rows.append(new)
            continue
        last = rows[-1]
        rows[-1] = {
            "change": last["change"] + new["change"],
            "activation": torch.minimum(last["activation"], new["activation"]),
            "edits": last["edits"] + new["edits"],
        }
    return {name: torch.cat([row[name] for row in rows]) for name in first}
