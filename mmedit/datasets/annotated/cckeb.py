"""CCKEB of MemEIC (Seong et al., "MemEIC: A Step Toward Continual and Compositional Knowledge
Editing", NeurIPS 2025): two linked edits, and a question that needs both.

A record is one of VLKEB's, the visual edit, with a `textual_edit`: the same keys about a fact of
what the image now shows, without an image. Both are requests of one case, made together. The
entry "comp" of `port_new` asks about the image what only both edits answer (compositional
reliability, the paper's CompRel).

- The textual edit's own question is text reliability. Rephrases and text locality of both edits
  are two questions of one probe each, which count with their mean.
- The answer of the compositional question is the textual edit's, as in the published code; the
  Answer that stands beside the question in the file is not read.
- The published code makes the visual edit first and the textual one after it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from pydantic import BeforeValidator

from mmedit.cases import EditCase, Example, Probe
from mmedit.datasets.annotated.annotations import Annotation, Hop, Keys
from mmedit.datasets.annotated.cases import PROBES, Source, usual_case
from mmedit.errors import DataError

REQUIRED = (*PROBES, "port_new")
COMPOSED = "comp"
"""The `port_type` of the question that needs both edits."""


def _joined(value: Any) -> Any:
    """Return a list of texts, as some answers are written, as one text."""
    is_list = isinstance(value, list) and all(isinstance(text, str) for text in value)
    return " ".join(value) if is_list else value


Joined = Annotated[str, BeforeValidator(_joined)]


class TextualEdit(Keys):
    """The edit of a fact in text."""

    src: str
    alt: Joined
    pred: Joined | None = None
    rephrase: str
    loc: str
    loc_ans: str


class CCKEBRecord(Annotation):
    """A record of CCKEB."""

    textual_edit: TextualEdit

    @property
    def empty(self) -> list[str]:
        return [key for key in super().empty if not key.endswith("pred")]


def cckeb_case(source: Source, row: int, record: Annotation) -> EditCase:
    """Return the case of a record. Raises DataError if no question needs both edits."""
    assert isinstance(record, CCKEBRecord)
    composed = [hop for hop in record.port_new if hop.port_type == COMPOSED]
    if not composed:
        found = ", ".join(sorted({str(hop.port_type) for hop in record.port_new})) or "nothing"
        raise DataError(
            f"{source.file}, row {row}: port_new holds {found}; expected an entry with port_type "
            f"{COMPOSED!r}, the question that needs both edits"
        )
    others = tuple(hop for hop in record.port_new if hop.port_type != COMPOSED)
    usual = usual_case(source, row, record.model_copy(update={"port_new": others}))
    fact = record.textual_edit
    textual = _asked(fact.src, fact.alt)
    probes = {
        **usual.probes,
        Probe.TEXT_RELIABILITY: (textual,),
        Probe.TEXT_GENERALITY: (
            *usual.probes[Probe.TEXT_GENERALITY],
            _asked(fact.rephrase, fact.alt),
        ),
        Probe.TEXT_LOCALITY: (*usual.probes[Probe.TEXT_LOCALITY], _asked(fact.loc, fact.loc_ans)),
        Probe.COMPOSITIONAL_RELIABILITY: tuple(
            replace(usual.request, prompt=_question(source, hop), target=textual.target, subject="")
            for hop in composed
        ),
    }
    return replace(usual, probes=probes, also=(textual,))


def _asked(question: str, answer: str) -> Example:
    return Example(prompt=question, target=answer.strip())


def _question(source: Source, hop: Hop) -> str:
    asked = hop.question_and_answer
    assert asked is not None  # `read_annotations` has checked it
    return source.template.replace("{}", asked[0])
