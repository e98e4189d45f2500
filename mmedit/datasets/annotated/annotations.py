"""Annotation files in MMEdit's keys, read strictly: a fault is named with file, row and key.

One JSON list of records. `src`, `alt`, `image`: the request; `rephrase`; `image_rephrase`; `loc`,
`loc_ans`: text locality; `m_loc`, `m_loc_q`, `m_loc_a`: image locality; `port_new`: portability.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mmedit.errors import DataError

MAX_BYTES = 1 << 30
"""Of an annotation file: a larger one is none."""
TOGETHER = (("loc", "loc_ans"), ("m_loc", "m_loc_q", "m_loc_a"))
"""Keys of which a record has all or none."""


class _Strict(BaseModel):
    # further keys are kept out, not refused: releases carry some of their own
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, populate_by_name=True)


class QuestionAnswer(_Strict):
    """VLKEB's multi-hop portability."""

    question: str = Field(alias="Question")
    answer: str = Field(alias="Answer")


class Hop(_Strict):
    """One portability question, in either of VLKEB's forms."""

    port_type: str | None = None
    asked: QuestionAnswer | None = Field(default=None, alias="Q&A")
    port_q: str | None = None
    port_a: str | None = None

    @property
    def question_and_answer(self) -> tuple[str, str] | None:
        """None where the entry holds neither form."""
        if self.asked is not None:
            return self.asked.question, self.asked.answer
        if self.port_q is not None and self.port_a is not None:
            return self.port_q, self.port_a
        return None


class Annotation(_Strict):
    """One record. `answers` is mmedit's own key: further answers that free generation may give."""

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

    @property
    def images(self) -> dict[str, str | None]:
        """The images that it names, by key."""
        return {
            "image": self.image,
            "image_rephrase": self.image_rephrase,
            "m_loc": self.m_loc,
        }

    @property
    def empty(self) -> list[str]:
        """The keys that are there and hold nothing."""
        return [key for key, value in self if isinstance(value, str) and not value.strip()]


Form = TypeVar("Form", bound=Annotation)


def read_annotations(
    file: Path, *, required: Sequence[str] = (), form: type[Form] = Annotation
) -> list[Form]:
    """All records of a file; `required` are keys that each must have beside src, alt and image.

    Raises DataError: the file is missing, too large, no JSON list, or a record lacks a key.
    """
    annotations = []
    for row, record in enumerate(_read_list(file)):
        try:
            annotation = form.model_validate(record)
        except ValidationError as error:
            fault = error.errors()[0]
            key = ".".join(str(part) for part in fault["loc"]) or "the record"
            raise DataError(
                f"{file}, row {row}: {key}: {fault['msg']} (found {_short(fault.get('input'))})"
            ) from None
        _check(annotation, file, row, required)
        annotations.append(annotation)
    return annotations


def _read_list(file: Path) -> list[Any]:
    try:
        size = file.stat().st_size
        if size > MAX_BYTES:
            raise DataError(f"{file} has {size:,} bytes; at most {MAX_BYTES:,} are read")
        records = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(records, list) or not records:
        raise DataError(
            f"{file} holds {_short(records)}; a JSON list of records was wanted, at least one"
        )
    return records


def _check(annotation: Annotation, file: Path, row: int, required: Sequence[str]) -> None:
    there = {key for key, value in annotation if value is not None}
    for key in required:
        if key not in there:
            raise DataError(f"{file}, row {row}: {key} is missing")
    for keys in TOGETHER:
        found = [key for key in keys if key in there]
        if found and len(found) < len(keys):
            lacking = [key for key in keys if key not in there]
            raise DataError(
                f"{file}, row {row}: {', '.join(lacking)} is missing beside {', '.join(found)}"
            )
    for number, hop in enumerate(annotation.port_new):
        if hop.question_and_answer is None:
            raise DataError(
                f"{file}, row {row}: port_new.{number} must hold port_q and port_a, or Q&A"
            )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
