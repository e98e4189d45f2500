"""Corruptions of a run: noise on image features or on the embeddings of text, or another image.

    image_noise: features + N(0, (3σ)²), σ the standard deviation of the features of all items
    text_noise:  the same on the embeddings of the subject's tokens, or of the whole prompt's

The factor 3 is that of Meng et al. 2022. `image_swap` stays among real images, as Golovanevsky et
al. 2024 (NOTICE) advise: noise shows the network what it never saw.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from jaxtyping import Bool
from torch import Tensor

from mmedit.adapters.seen import SeenImage
from mmedit.cases import Example
from mmedit.trace.item import Corrupted
from mmedit.trace.item_runs import ItemRuns
from mmedit.trace.settings import TraceSettings
from mmedit.vlm.network import NetworkVLM

TRIES = 8
"""Number of other images that are tried for an item, at most."""
NO_SWAP = "no other image of as many tokens changes the answer"


def sigma_of(
    vlm: NetworkVLM, items: Mapping[str, Example], settings: TraceSettings
) -> float | None:
    """Return the standard deviation of what the noise is added to, over all items; None for a swap.

    Costs one pass through vision and bridge for each image that is not cached.
    """
    if settings.corruption == "image_swap":
        return None
    count, total, squares = 0, 0.0, 0.0
    for example in items.values():
        for values in _noised(vlm, example, settings):
            found = values.double()
            count += found.numel()
            total += float(found.sum())
            squares += float(found.square().sum())
    mean = total / max(1, count)
    return max(0.0, squares / max(1, count) - mean * mean) ** 0.5


def corrupted(
    vlm: NetworkVLM, name: str, items: Mapping[str, Example], how: tuple[TraceSettings, float]
) -> tuple[ItemRuns, Corrupted | None]:
    """Return the runs of an item and its corruption; None if no other image changes its answer.

    The noise depends on the seed and the item's name alone. A swap costs one forward.
    """
    settings, sigma = how
    example = items[name]
    runs = ItemRuns(vlm, example)
    if settings.corruption == "image_swap":
        return runs, _swapped(vlm, runs, name, items, settings.seed)
    generator = torch.Generator().manual_seed(_seed(settings.seed, name))
    clean, draws = runs.features(), settings.draws
    if settings.corruption == "image_noise":
        noise = [_noise(clean[0], generator, settings.noise * sigma) for _ in range(draws)]
        first = int(runs.places.is_image[0].int().argmax())
        features = [clean[0] + one for one in noise]
        return runs, Corrupted(name, example, features, draws, first=first)
    mask = noised_text(runs)
    at = torch.zeros(draws, len(mask), vlm.frozen.hidden)
    drawn = torch.randn(draws, int(mask.sum()), vlm.frozen.hidden, generator=generator)
    at[:, mask.cpu()] = drawn * settings.noise * sigma
    first = int(mask.int().argmax())
    return runs, Corrupted(name, example, [*clean] * draws, draws, at, first)


def noised_text(runs: ItemRuns) -> Bool[Tensor, " sequence"]:
    """Return the positions of the subject, or of the whole prompt if it has none."""
    places = runs.places
    return (places.is_subject if places.is_subject.any() else places.is_prompt)[0]


def _noised(vlm: NetworkVLM, example: Example, settings: TraceSettings) -> Iterator[Tensor]:
    """Yield what the noise of an item is added to."""
    if settings.corruption == "image_noise":
        yield from vlm.frozen.stage("bridge", list(vlm.frozen.see([example]).values()))
        return
    runs = ItemRuns(vlm, example)
    yield vlm.frozen.embed(runs.tokens[noised_text(runs)])


def _noise(like: Tensor, generator: torch.Generator, deviation: float) -> Tensor:
    return (torch.randn(like.shape, generator=generator) * deviation).to(like)


def _swapped(
    vlm: NetworkVLM, runs: ItemRuns, name: str, items: Mapping[str, Example], seed: int
) -> Corrupted | None:
    """Return the item with another image: the first one drawn that changes the base model's answer.

    Items that ask the same come first.
    """
    example = items[name]
    (own,) = vlm.frozen.see([example]).values()
    drawn = _others(name, items, seed)
    seen = [(other, vlm.frozen.see([replace(example, image=other.image)])[0]) for other in drawn]
    fitting = [(other, image) for other, image in seen if _are_alike(own, image)][:TRIES]
    if not fitting:
        return None
    features = vlm.frozen.stage("bridge", [image for _, image in fitting])
    is_right = runs.probabilities(features).is_right.tolist()
    for (other, _), feature, right in zip(fitting, features, is_right, strict=True):
        if not right:
            first = int(runs.places.is_image[0].int().argmax())
            return Corrupted(name, example, [feature], 1, first=first, other=other)
    return None


def _others(name: str, items: Mapping[str, Example], seed: int) -> list[Example]:
    """Return the items of another answer in a drawn order, first those of the same prompt."""
    example = items[name]
    others = [other for other in items.values() if other.target != example.target and other.image]
    generator = torch.Generator().manual_seed(_seed(seed, name))
    drawn = [others[place] for place in torch.randperm(len(others), generator=generator).tolist()]
    return sorted(drawn, key=lambda other: other.prompt != example.prompt)[: 4 * TRIES]


def _are_alike(own: SeenImage, other: SeenImage) -> bool:
    """Return whether an image has the same tokens, and the same sizes, as another one."""
    mine, theirs = own.layout, other.layout
    return mine.placeholder == theirs.placeholder and _equal(mine.sizes, theirs.sizes)


def _equal(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    return mine.keys() == theirs.keys() and all(mine[k].equal(theirs[k]) for k in mine)


def _seed(seed: int, name: str) -> int:
    digest = hashlib.blake2b(f"{seed} {name}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")
