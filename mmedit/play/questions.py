"""The questions that an edit is tested with, from what was written on the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from mmedit.cases import EditCase, Example, Probe
from mmedit.errors import DataError, ImageError
from mmedit.images import image_key, open_image

CASES, SHOWN = 10, 8
"""Number of cases of the dataset that are read, and of their pictures on the page."""
UNRELATED_CASES = 2
"""Number of cases whose unrelated questions an edit is tested with."""
LONGEST_TEXT = 4000
"""Most characters of a text on the page."""


@dataclass(frozen=True, kw_only=True)
class Fields:
    """The texts and the picture on the page."""

    prompt: str
    image: Path | None = None
    target: str = ""
    rephrase: str = ""
    """The question in other words; may be empty."""


@dataclass(frozen=True)
class Picture:
    """One picture of the dataset, and the case that asks about it."""

    image: Image.Image
    case: EditCase

    @property
    def fields(self) -> Fields:
        """The fields that are filled in when the picture is picked."""
        request = self.case.request
        other = self.case.probes.get(Probe.TEXT_GENERALITY, ())
        return Fields(
            prompt=request.prompt,
            target=request.target,
            rephrase=other[0].prompt if other else "",
        )


class Pictures:
    """The pictures of the dataset that the page offers; each is known by its pixels."""

    def __init__(self, cases: Sequence[EditCase]) -> None:
        self.cases = tuple(cases)
        self._pictures = [
            Picture(open_image(case.request.image), case)
            for case in self.cases
            if case.request.image is not None
        ][:SHOWN]
        self._by_pixels = {image_key(one.image): one for one in reversed(self._pictures)}

    def first(self) -> Picture | None:
        """Return the first picture; None if the dataset has none."""
        return self._pictures[0] if self._pictures else None

    def __iter__(self) -> Iterator[Picture]:
        return iter(self._pictures)

    def __getitem__(self, index: int) -> Picture:
        return self._pictures[index]

    def about(self, example: Example) -> Picture | None:
        """Return the picture of the dataset that an example is about, or None."""
        if example.image is None:
            return None
        return self._by_pixels.get(image_key(open_image(example.image)))

    def unrelated(self, first: EditCase | None) -> dict[Probe, tuple[Example, ...]]:
        """Return unrelated questions, those of the case `first` before those of others."""
        others = [case for case in self.cases if first is None or case.id != first.id]
        asking = [*([first] if first else []), *others][:UNRELATED_CASES]
        return {
            probe: tuple(e for case in asking for e in case.probes.get(probe, ()))
            for probe in (Probe.TEXT_LOCALITY, Probe.IMAGE_LOCALITY)
        }


def question_of(fields: Fields, what: str = "question") -> Example:
    """Return the question as an example. Raises DataError, ImageError."""
    _require(fields.prompt, what)
    image = None if fields.image is None else opened(fields.image)
    return Example(prompt=fields.prompt.strip(), target=fields.target.strip() or "-", image=image)


def opened(path: Path) -> Image.Image:
    """Open a picture that was dropped on the page. Raises ImageError, which names the file alone:
    its folder means nothing to the person who dropped it.
    """
    try:
        return open_image(path)
    except ImageError as error:
        raise ImageError(str(error).replace(str(path), path.name)) from error


def case_of(fields: Fields, pictures: Pictures) -> EditCase:
    """Return the edit that is asked for, and its probes. Raises DataError, ImageError."""
    _require(fields.target, "new answer")
    request = question_of(fields)
    return probed(request, pictures, rephrase=_rephrase(fields, pictures.about(request)))


def probed(request: Example, pictures: Pictures, *, rephrase: str = "") -> EditCase:
    """Return a request with its probes.

    A picture of the dataset brings another rendering of it and its own unrelated questions. If the
    question is the one of the dataset too, its rephrase is asked unless another one is given. For
    any other picture the unrelated questions are those of the dataset's first pictures.
    """
    picked = pictures.about(request)
    case = picked.case if picked else None
    probes = dict(pictures.unrelated(case))
    if picked and request.prompt == picked.fields.prompt:
        rephrase = rephrase or picked.fields.rephrase
    if rephrase:
        probes[Probe.TEXT_GENERALITY] = (replace(request, prompt=rephrase),)
    if case is not None:
        probes[Probe.IMAGE_GENERALITY] = tuple(
            replace(request, image=example.image)
            for example in case.probes.get(Probe.IMAGE_GENERALITY, ())
        )
    return EditCase(id=case.id if case else "own", request=request, probes=probes)


def _rephrase(fields: Fields, picked: Picture | None) -> str:
    """Return the question in other words, unless it is the rephrase of another question."""
    written = fields.rephrase
    if not isinstance(written, str) or not written.strip():
        return ""
    _require(written, "question in other words")
    filled = picked.fields if picked else None
    is_stale = (
        filled is not None and written == filled.rephrase and fields.prompt.strip() != filled.prompt
    )
    return "" if is_stale else written.strip()


def _require(text: object, what: str) -> None:
    """Raise DataError unless a field holds a text that is neither empty nor far too long."""
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"The {what} is empty. Write it first.")
    if len(text) > LONGEST_TEXT:
        raise DataError(
            f"The {what} has {len(text):,} characters; expected at most {LONGEST_TEXT:,}."
        )
