"""Annotation files in MMEdit's keys, read strictly: an error names the file, the row and the key.

A file is one JSON list of records. `src`, `alt` and `image` are the request; `rephrase` and
`image_rephrase` ask it again; `loc` and `loc_ans` are text locality; `m_loc`, `m_loc_q` and
`m_loc_a` are image locality; `port_new` is portability.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mmedit.datasets.base import read_text
from mmedit.errors import DataError, shortened
from mmedit.storage import broken_text

TOGETHER = (("loc", "loc_ans"), ("m_loc", "m_loc_q", "m_loc_a"))
"""Groups of keys: a record has all keys of a group, or none."""


class Keys(BaseModel):
    """Keys of a record, or of a part of it."""

    # other keys are ignored, not refused: the released files have some of their own
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, populate_by_name=True)


class QuestionAnswer(Keys):
    """One question of VLKEB's multi-hop portability."""

    question: str = Field(alias="Question")
    answer: str = Field(alias="Answer")


class Hop(Keys):
    """One portability question, in either of VLKEB's forms."""

    port_type: str | None = None
    asked: QuestionAnswer | None = Field(default=None, alias="Q&A")
    port_q: str | None = None
    port_a: str | None = None
    port_edit_q: str | None = None
    """The same question without the image, about the new entity by its name."""

    @property
    def question_and_answer(self) -> tuple[str, str] | None:
        """The question and its answer; None if the entry has neither form."""
        if self.asked is not None:
            return self.asked.question, self.asked.answer
        if self.port_q is not None and self.port_a is not None:
            return self.port_q, self.port_a
        return None


class Annotation(Keys):
    """One record. Two keys are of mmedit alone: `answers`, more answers that count as right, and
    `subject`, what the question is about, as it stands in `src`.
    """

    src: str
    alt: str
    image: str
    pred: str | None = None
    rephrase: str | None = None
    image_rephrase: str | None = None
    loc: str | None = None
    loc_ans: str | None = None
    m_loc: str | None = None
    m_loc_q: str | None = None
    m_loc_a: str | None = None
    port_new: tuple[Hop, ...] = Field(default=(), strict=False)
    answers: tuple[str, ...] = Field(default=(), strict=False)
    subject: str | None = None

    def subject_in(self, text: str) -> str:
        """Return the subject if it stands in a text, in capitals or not; "" otherwise."""
        subject = self.subject or ""
        return subject if subject.lower() in text.lower() else ""

    @classmethod
    def written(cls, field: str) -> str:
        """Return the key that the files have for a field."""
        found = cls.model_fields.get(field)
        return (found and found.alias) or field

    @property
    def unused(self) -> str:
        """Reason why no case is made of the record, whose keys are sound; "" mostly."""
        return ""

    @property
    def images(self) -> dict[str, str | None]:
        """The names of its images, by field."""
        return {
            "image": self.image,
            "image_rephrase": self.image_rephrase,
            "m_loc": self.m_loc,
        }

    @property
    def empty(self) -> list[str]:
        """The keys whose text is empty; "port_new.0.port_a" of a nested one."""
        written = self.model_dump(by_alias=True)
        return [
            key
            for key, value in texts(written)
            if not value.strip() and not key.endswith(".port_type")
        ]


Form = TypeVar("Form", bound=Annotation)


def read_annotations(
    file: Path,
    *,
    required: Sequence[str] = (),
    form: type[Form] = Annotation,
    advice: str = "",
) -> list[Form]:
    """Return all records of a file; each must have `required` keys beside src, alt and image.

    `advice` says what to do if there is no file.
    Raises DataError: the file is missing, too large or not a JSON list, or a record lacks a key or
    holds something that is not text.
    """
    annotations = []
    for row, record in enumerate(_read_list(file, advice)):
        try:
            annotation = form.model_validate(record)
        except ValidationError as error:
            fault = error.errors()[0]
            key = ".".join(str(part) for part in fault["loc"]) or "the record"
            found = shortened(fault.get("input"))
            raise DataError(f"{file}, row {row}: {key}: {fault['msg']} (found {found})") from None
        _check(annotation, file, row, required)
        annotations.append(annotation)
    return annotations


def texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text in a dumped record with its key; the key of a nested one is "a.0.b"."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from texts(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for place, inner in enumerate(value):
            yield from texts(inner, f"{key}.{place}")


def _read_list(file: Path, advice: str) -> list[Any]:
    written = read_text(file, advice)
    try:
        records = json.loads(written)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(records, list) or not records:
        raise DataError(
            f"{file} holds {shortened(records)}; expected a JSON list of records, at least one"
        )
    return records


def _check(annotation: Annotation, file: Path, row: int, required: Sequence[str]) -> None:
    there = {key for key, value in annotation if value is not None}
    for key in required:
        if key not in there:
            raise DataError(f"{file}, row {row}: {annotation.written(key)} is missing")
    for keys in TOGETHER:
        found = [annotation.written(key) for key in keys if key in there]
        if found and len(found) < len(keys):
            lacking = [annotation.written(key) for key in keys if key not in there]
            raise DataError(
                f"{file}, row {row}: {', '.join(lacking)} is missing beside {', '.join(found)}"
            )
    for number, hop in enumerate(annotation.port_new):
        if hop.question_and_answer is None:
            raise DataError(
                f"{file}, row {row}: port_new.{number} must hold port_q and port_a, or Q&A"
            )
    if annotation.subject and not annotation.subject_in(annotation.src):
        raise DataError(
            f"{file}, row {row}: subject: {shortened(annotation.subject)} does not stand in src, "
            f"{shortened(annotation.src)}; copy it from there, or leave the key out"
        )
    for key, text in texts(annotation.model_dump(by_alias=True)):
        if fault := broken_text(text):
            raise DataError(
                f"{file}, row {row}: {key}: {shortened(text)} {fault}; write the whole character"
            )
