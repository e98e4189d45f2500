"""FGVEdit (Zeng et al., "Visual-Oriented Fine-Grained Knowledge Editing for Multimodal Large
Language Models", ICCV 2025): images of several things, one of which is edited.

Beside E-VQA's keys a record has two questions about the edit's own image: `fg_gen_q` about what is
edited (fine generality, scored against `fg_gen_a`), and `fg_loc_q` about something else that the
image shows (fine locality). It has neither a rephrased image nor a locality image. The table's
column Spec is half the sum of both (`mmedit.report.measures`).
"""

from __future__ import annotations

from dataclasses import replace

from mmedit.cases import EditCase, Example, Probe
from mmedit.datasets.annotated.annotations import Annotation
from mmedit.datasets.annotated.cases import Source, usual_case

REQUIRED = ("rephrase", "loc", "loc_ans")
"""Keys that each record has, beside src, alt, image and the four of the questions."""


class FGVEditRecord(Annotation):
    """A record of FGVEdit."""

    fg_gen_q: str
    fg_gen_a: str
    fg_loc_q: str
    fg_loc_a: str


def fgvedit_case(source: Source, row: int, record: Annotation) -> EditCase:
    """Return the case of a record."""
    assert isinstance(record, FGVEditRecord)
    usual = usual_case(source, row, record)

    def about(question: str, answer: str) -> tuple[Example, ...]:
        prompt = source.template.replace("{}", question)
        return (Example(prompt=prompt, target=answer.strip(), image=usual.request.image),)

    fine = {
        Probe.FINE_GENERALITY: about(record.fg_gen_q, record.fg_gen_a),
        Probe.FINE_LOCALITY: about(record.fg_loc_q, record.fg_loc_a),
    }
    return replace(usual, probes={**usual.probes, **fine})
