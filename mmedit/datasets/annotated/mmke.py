"""MMKE-Bench (Du et al., ICLR 2025): free-form knowledge of entities, of what is seen to happen
(visual), and of users.

Beside MMEdit's keys, a record has questions about what the edit says. They are asked without an
image (`rel`: text reliability), about the edit's image (`m_rel`: image reliability), and about
another image of the same thing (image generality; the paper does not ask the edit's own prompt
there). Portability is about the edit's image; for visual and user knowledge, about `one_hop_img`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pydantic import AliasChoices, Field

from mmedit.cases import EditCase, Example, Probe
from mmedit.datasets.annotated.annotations import Annotation
from mmedit.datasets.annotated.cases import Source, usual_case
from mmedit.errors import DataError

KNOWLEDGE = {"entity": "entity_level", "visual": "visual_knowledge", "user": "user_specific"}
"""The value of `knowledge_type` in the files of each type."""


def _either(first: str, second: str) -> str | None:
    """Return a field for a key that the released files spell in two ways."""
    return Field(default=None, validation_alias=AliasChoices(first, second))


class MMKERecord(Annotation):
    """A record of any of the three types."""

    knowledge_type: str
    one_hop_img: str | None = None
    image_rephrase_question: str | None = None
    rel: str | None = None
    rel_ans: str | None = None
    m_rel: str | None = None
    m_rel_ans: str | None = None
    rel_1: str | None = None
    rel_ans_1: str | None = _either("rel_ans_1", "rel_1_ans")
    rel_2: str | None = None
    rel_ans_2: str | None = _either("rel_ans_2", "rel_2_ans")
    m_rel_1: str | None = None
    m_rel_ans_1: str | None = _either("m_rel_ans_1", "m_rel_1_ans")
    m_rel_2: str | None = None
    m_rel_ans_2: str | None = _either("m_rel_ans_2", "m_rel_2_ans")

    @property
    def empty(self) -> list[str]:
        return [key for key in super().empty if key != "pred"]  # often empty

    @property
    def images(self) -> dict[str, str | None]:
        return {**super().images, "one_hop_img": self.one_hop_img}

    def pairs(self, keys: Iterator[tuple[str, str]], where: str) -> list[tuple[str, str]]:
        """Return questions and answers by their keys. Raises DataError if one is missing."""
        found = []
        for asked, answered in keys:
            question, answer = getattr(self, asked), getattr(self, answered)
            for key, value in ((asked, question), (answered, answer)):
                if value is None:
                    raise DataError(
                        f"{where}: {key} is missing; a record of {self.knowledge_type} must have it"
                    )
            found.append((question, answer.strip()))
        return found


def mmke_case(source: Source, row: int, record: Annotation) -> EditCase:
    """Return the case of a record. Raises DataError if a key of its type is missing."""
    assert isinstance(record, MMKERecord)
    where = f"{source.file}, row {row}"
    _require_type(source, record, where)
    usual = usual_case(source, row, record)
    visual = record.knowledge_type == KNOWLEDGE["visual"]
    seen = record.pairs(_keys("m_rel", "m_rel_ans", visual), where)
    elsewhere = seen
    if visual:
        elsewhere = record.pairs(iter([("image_rephrase_question", "m_rel_ans")]), where)

    def asked(pairs: list[tuple[str, str]], about: Path | None) -> tuple[Example, ...]:
        template = source.template if about is not None else "{}"
        return tuple(
            Example(prompt=template.replace("{}", question), target=answer, image=about)
            for question, answer in pairs
        )

    probes = {
        **usual.probes,
        Probe.TEXT_RELIABILITY: asked(record.pairs(_keys("rel", "rel_ans", visual), where), None),
        Probe.IMAGE_RELIABILITY: asked(seen, source.image(row, record, "image")),
        Probe.IMAGE_GENERALITY: asked(elsewhere, source.image(row, record, "image_rephrase")),
    }
    if Probe.PORTABILITY in usual.probes and record.knowledge_type != KNOWLEDGE["entity"]:
        if record.one_hop_img is None:
            raise DataError(
                f"{where}: one_hop_img is missing; a record of {record.knowledge_type} must have it"
            )
        hop = source.image(row, record, "one_hop_img")
        probes[Probe.PORTABILITY] = tuple(
            replace(example, image=hop) for example in usual.probes[Probe.PORTABILITY]
        )
    return replace(usual, probes=probes)


def _keys(question: str, answer: str, visual: bool) -> Iterator[tuple[str, str]]:
    if visual:
        yield question, answer
    else:
        for number in (1, 2):
            yield f"{question}_{number}", f"{answer}_{number}"


def _require_type(source: Source, record: MMKERecord, where: str) -> None:
    knowledge = source.name.split("-")[1]
    if record.knowledge_type != KNOWLEDGE[knowledge]:
        raise DataError(
            f"{where}: knowledge_type is {record.knowledge_type!r}; dataset.knowledge={knowledge} "
            f"expects {KNOWLEDGE[knowledge]!r}"
        )
