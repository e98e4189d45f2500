"""Hidden states of the base model on the examples of a training, made once before its first step.

A training asks the same examples again and again, in batches that differ every time, and the base
model never changes. So what it computes of each example is kept by example: the states before the
first edited layer, where every edited model starts, and the states after the last layer, from which
the head gives the base model's own logits. The examples go through in an order and in groups that
depend on them alone, so a resumed training finds the same bits.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, final, runtime_checkable

import torch
from torch import Tensor

from mmedit.adapters.base import Adapter
from mmedit.adapters.faults import prompt_tokens
from mmedit.adapters.layers import first_layers, noted
from mmedit.adapters.seen import SeenImage
from mmedit.cache import GIGABYTE
from mmedit.cases import Example
from mmedit.images import image_key
from mmedit.progress import Progress, silent
from mmedit.storage import reserve
from mmedit.vlm.states import Packed, States, content_of, precision_on

log = logging.getLogger(__name__)

TOGETHER, TOKENS = 32, 4096
"""Examples in one forward, and tokens with padding, at most. One example may have more."""
IN_MEMORY = 4 * GIGABYTE
"""States that take more bytes than this go to a file, and into memory as they are read."""
STAYING = GIGABYTE
"""States that take no more bytes than this stay in memory for the next training."""


@dataclass(frozen=True)
class Asked:
    """The examples that a training asks again and again."""

    edited: Sequence[Example] = ()
    """Examples that edited models are asked."""
    sites: Sequence[str] = ()
    """The sites that their edits change or read."""
    base: Sequence[Example] = ()
    """Examples that the base model itself is asked."""


@final
class Prepared:
    """States by the number of decoder layers before them, and by example."""

    def __init__(
        self, plan: _Plan, places: Mapping[int, Mapping[Hashable, Tensor]], precision: str
    ) -> None:
        self._plan = plan
        self._places = places
        self._precision = precision

    def is_of(self, plan: _Plan, precision: str) -> bool:
        """Tell whether these are the states of a plan. A plan with other examples would make them
        in other groups, which moves their last digits.
        """
        same = plan.places == self._plan.places and plan.contents == self._plan.contents
        return same and precision == self._precision

    def packed(self, examples: Sequence[Example], k: int, precision: str) -> Packed | None:
        kept = self._places.get(k)
        if kept is None or precision != self._precision:
            return None
        rows = [kept.get(content_of(example)) for example in examples]
        found = [row for row in rows if row is not None]
        return torch.cat(found) if len(found) == len(rows) else None


@runtime_checkable
class Images(Protocol):
    """Finds the images of examples, and their features."""

    def see(self, examples: Sequence[Example]) -> dict[int, SeenImage]:
        """Return the images, by row."""
        ...

    def stage(self, last: Literal["vision", "bridge"], images: Sequence[SeenImage]) -> list[Tensor]:
        """Return the output of a stage for every image."""
        ...


@contextmanager
def prepared(
    states: States,
    images: Images,
    adapter: Adapter,
    asked: Asked,
    *,
    folder: Path | None = None,
    progress: Progress = silent,
) -> Iterator[None]:
    """Keep the states of these examples while the context lasts, in memory or, where they take more
    than `IN_MEMORY`, in a file of `folder`, which the system deletes when the process ends. They
    are made in the precision (autocast) in which this is called.

    Costs one forward of each example through the layers before the first edited one, and of those
    that the base model is asked through all layers; nothing if the training before asked the same
    examples (another point of a search, MEND after KE) and their states are small enough to stay in
    memory. Where no disk has room for the states nothing is kept, a warning says so, and every step
    computes what it needs.
    """
    plan, precision = _Plan.of(adapter, asked), precision_on(adapter.device)
    latest = states.latest
    if not isinstance(latest, Prepared) or not latest.is_of(plan, precision):
        states.latest = latest = None  # frees its memory first
        room = _room(plan, adapter.network.dtype, folder) if plan.examples else None
        if room is not None:
            made = _Making(images, adapter, states, room).all_of(plan, progress)
            latest = Prepared(plan, made, precision)
    states.by_example = latest
    try:
        yield
    finally:
        states.by_example = None
        states.latest = latest if plan.bytes <= min(STAYING, IN_MEMORY) else None


@dataclass(frozen=True, eq=False)
class _Plan:
    """The examples whose states are kept, and after how many layers."""

    examples: Sequence[Example]
    """All examples: those together of which the same is kept, the shortest first."""
    lengths: Sequence[int]
    """The number of tokens of each."""
    places: Mapping[int, frozenset[Hashable]]
    """The contents of the examples whose states are kept, by the number of layers before."""
    contents: Sequence[Hashable]
    """Identity of each example, with the content of its image when the plan was made."""
    token_bytes: int
    """Size of the states at one token, in bytes."""

    @classmethod
    def of(cls, adapter: Adapter, asked: Asked) -> _Plan:
        last = len(adapter.layers)
        before = min((adapter.layer_of(site) for site in asked.sites), default=0)
        before = before if all(adapter.stage(site) == "language" for site in asked.sites) else 0
        wanted = {before: asked.edited, last: asked.base}
        if before == last:
            wanted[last] = [*asked.edited, *asked.base]
        chosen = {k: examples for k, examples in wanted.items() if k and examples}
        found = {content_of(e): e for examples in chosen.values() for e in examples}
        distinct = list(found.values())
        places = {k: frozenset(map(content_of, examples)) for k, examples in chosen.items()}
        texts = adapter.segments(distinct) if distinct else []
        prompts = prompt_tokens(adapter, distinct) if distinct else []
        lengths = [n + len(text.answer) for n, text in zip(prompts, texts, strict=True)]

        def alike(row: int) -> tuple[object, ...]:
            content = content_of(distinct[row])
            kept = [k for k in sorted(places) if content in places[k]]
            return kept, distinct[row].image is None, lengths[row]

        order = sorted(range(len(distinct)), key=alike)
        hidden = adapter.network.config.get_text_config().hidden_size
        examples = [distinct[row] for row in order]
        return cls(
            examples=examples,
            contents=[
                (content_of(example), image_key(example.image) if example.image else None)
                for example in examples
            ],
            lengths=[lengths[row] for row in order],
            places=places,
            token_bytes=hidden * adapter.network.dtype.itemsize,
        )

    @property
    def bytes(self) -> int:
        """Size of all that is kept, in bytes, at most."""
        kept = zip(self.examples, self.lengths, strict=True)
        tokens = sum(
            length * sum(content_of(example) in contents for contents in self.places.values())
            for example, length in kept
        )
        return tokens * self.token_bytes

    @property
    def groups(self) -> Iterator[Sequence[Example]]:
        """Yield the examples that go through the network together."""
        begin, longest = 0, 0
        for at, length in enumerate(self.lengths):
            longest = max(longest, length)
            if at > begin and (at - begin == TOGETHER or longest * (at - begin + 1) > TOKENS):
                yield self.examples[begin:at]
                begin, longest = at, length
        yield self.examples[begin:]


@dataclass(eq=False)
class _Room:
    """A place for states one behind the other: a file that is mapped into memory, or the memory."""

    name: str = "memory"
    mapped: Tensor | None = None
    used: int = 0

    def put(self, states: Tensor) -> Tensor:
        """Return the states as they are kept, on the CPU."""
        if self.mapped is None:
            return states.cpu()
        kept = self.mapped[self.used : self.used + states.numel()].view(states.shape)
        self.used += states.numel()
        return kept.copy_(states)


def _room(plan: _Plan, dtype: torch.dtype, folder: Path | None) -> _Room | None:
    """Return the place for all states; None if the disk has no room for them."""
    size = plan.bytes
    if size <= IN_MEMORY:
        return _Room()
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix="states-", dir=folder)
    try:
        reserve(descriptor, size)  # a disk that is full later would kill the process
        mapped = torch.from_file(name, shared=True, size=size // dtype.itemsize, dtype=dtype)
    except OSError as error:
        log.warning(
            "the hidden states of the training cases take %.1f GB, and %s has no room for them "
            "(%s), so they are computed in every step; free some space, or set TMPDIR to another "
            "disk",
            size / GIGABYTE, Path(name).parent, error.strerror,
        )  # fmt: skip
        return None
    finally:
        os.close(descriptor)
        os.unlink(name)  # what is mapped lasts, and nothing is left behind whatever happens
    return _Room(f"a file of {Path(name).parent}", mapped)


@dataclass(frozen=True, eq=False)
class _Making:
    """The forwards that make the states."""

    images: Images
    adapter: Adapter
    states: States
    room: _Room

    @torch.no_grad()
    def all_of(self, plan: _Plan, progress: Progress) -> dict[int, dict[Hashable, Tensor]]:
        """Return the states of all examples, by the number of layers before them."""
        made: dict[int, dict[Hashable, Tensor]] = {k: {} for k in plan.places}
        size = f"{plan.bytes / GIGABYTE:.2f} GB of hidden states, in {self.room.name}"
        done, total = 0, len(plan.examples)
        progress("reading training cases", done, total, size)
        for group in plan.groups:
            for k, rows in self._rows(group, plan).items():
                made[k] |= rows
            done += len(group)
            progress("reading training cases", done, total, size)
        return made

    def _rows(self, group: Sequence[Example], plan: _Plan) -> dict[int, dict[Hashable, Tensor]]:
        """Return the states of the examples of a group, by the number of layers before them."""
        contents = [content_of(example) for example in group]
        chosen = {
            k: [content for content in contents if content in kept]
            for k, kept in plan.places.items()
            if kept & set(contents)
        }
        adapter, images = self.adapter, self.images.see(group)
        inputs = adapter.inputs(group, images, padding_side="right")
        features = self.images.stage("bridge", list(images.values()))
        with noted(adapter.layers, list(chosen)) as found:
            first_layers(adapter.layers, max(chosen), lambda: adapter.logits(inputs, features))
        rows = {}
        for k, states in found.items():
            there = self.states.kept_at(inputs, k).to(states.device)
            kept = torch.tensor([content in plan.places[k] for content in contents])
            there = there & kept.to(states.device).unsqueeze(-1)
            parts = self.room.put(states[there]).split(there.sum(1)[kept].tolist())
            rows[k] = dict(zip(chosen[k], parts, strict=True))
        return rows
