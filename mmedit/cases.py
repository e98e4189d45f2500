"""What an edit is: a request, and the probes that measure it. No tensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Literal, overload

from PIL import Image

from mmedit.errors import DataError, EmptyAnswerError, ImageError
from mmedit.images import image_key


@dataclass(frozen=True, kw_only=True)
class Example:
    """A prompt about an image (or about none) and its answer.

    `prompt` reaches the language model verbatim, after the image and inside the model family's own
    conversation markers. `context` stands between image and prompt: it conditions the answer but
    belongs to no metric (in-context editing puts its demonstrations there). `target` is the answer
    without leading space. `answers` are further ones that free generation may give as well.
    """

    prompt: str
    target: str
    image: Path | Image.Image | None = None
    context: str = ""
    answers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.image, str):
            object.__setattr__(self, "image", Path(self.image))
        if isinstance(self.image, list | tuple):
            raise ImageError(
                f"{len(self.image)} images were given; an example has one image or none. Join them "
                "to one picture, or make an example of each."
            )
        if not self.target.strip():
            raise EmptyAnswerError(
                f"the target of {self.prompt!r} is empty; give the answer that the model shall "
                "learn or be scored on"
            )
        if isinstance(self.answers, str):
            raise DataError(
                f"the accepted answers of {self.prompt!r} are the text {self.answers!r}; a tuple "
                f"of texts was wanted: ({self.answers!r},)"
            )
        if not all(answer.strip() for answer in self.answers):
            raise EmptyAnswerError(
                f"an accepted answer of {self.prompt!r} is empty, which would make silence right; "
                "leave it out"
            )

    @property
    def accepted(self) -> tuple[str, ...]:
        """Every answer that is right when it is generated freely, the target first."""
        return tuple(dict.fromkeys((self.target, *self.answers)))


class Probe(StrEnum):
    """What a probe measures. The value is its name in records, `heading` its name above the columns
    of a table. Text and image reliability ask about the content of the edit, without and with its
    image (MMKE-Bench).

    >>> Probe.TEXT_GENERALITY.value, Probe.TEXT_GENERALITY.heading, Probe.TEXT_GENERALITY.title
    ('text_generality', 'T-Gen', 'Text generality')
    """

    heading: str

    RELIABILITY = "reliability", "Rel"
    TEXT_RELIABILITY = "text_reliability", "T-Rel"
    IMAGE_RELIABILITY = "image_reliability", "I-Rel"
    TEXT_GENERALITY = "text_generality", "T-Gen"
    IMAGE_GENERALITY = "image_generality", "I-Gen"
    TEXT_LOCALITY = "text_locality", "T-Loc"
    IMAGE_LOCALITY = "image_locality", "I-Loc"
    PORTABILITY = "portability", "Port"

    def __new__(cls, value: str, heading: str) -> Probe:
        """Make a member; `Probe("reliability")` finds it by its value alone."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.heading = heading
        return member

    @property
    def title(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]  # of str
        """The name in words, for people: "Text generality"."""
        return self.value.replace("_", " ").capitalize()

    @property
    def is_locality(self) -> bool:
        """Whether the edit must leave the answer as it was; all other probes ask for the target."""
        return self in (Probe.TEXT_LOCALITY, Probe.IMAGE_LOCALITY)


@dataclass(frozen=True, kw_only=True)
class EditCase:
    """One edit of a benchmark. `probes` need not hold the request itself: reliability is the
    request.
    """

    id: str
    request: Example
    probes: Mapping[Probe, tuple[Example, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        probes = {Probe.RELIABILITY: (self.request,), **self.probes}
        ordered = {probe: tuple(probes[probe]) for probe in Probe if probes.get(probe)}
        object.__setattr__(self, "probes", MappingProxyType(ordered))


@dataclass(frozen=True)
class Cases(Sequence[EditCase]):
    """Edit cases as a dataset gives them, and how many of its records were left out, by reason."""

    cases: tuple[EditCase, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.cases)

    @overload
    def __getitem__(self, index: int) -> EditCase: ...

    @overload
    def __getitem__(self, index: slice) -> Cases: ...

    def __getitem__(self, index: int | slice) -> EditCase | Cases:
        if isinstance(index, slice):
            return Cases(self.cases[index], self.left_out)
        return self.cases[index]


def image_name(example: Example) -> str | None:
    """What records call an image: the last three parts of its path, the same on every machine, or
    the content hash of an image made in memory.
    """
    if example.image is None:
        return None
    if isinstance(example.image, Path):
        return "/".join(example.image.parts[-3:])
    return image_key(example.image)


Split = Literal["train", "test"]


def dataset_hash(cases: Iterable[EditCase]) -> str:
    """A hash of everything that cases say, in their order; of images, their names (a file's last
    three parts), or their size where they were made in memory.
    """
    digest = hashlib.blake2b(digest_size=16)
    for case in cases:
        texts = [case.id]
        for probe, examples in case.probes.items():
            for example in examples:
                texts += [probe, example.prompt, example.target, _image_name(example)]
        digest.update(json.dumps(texts).encode() + b"\n")
    return digest.hexdigest()


def _image_name(example: Example) -> str:
    if isinstance(example.image, Path):
        return "/".join(example.image.parts[-3:])
    return "" if example.image is None else f"in memory, {example.image.size}"
