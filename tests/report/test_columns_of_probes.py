"""Columns of several probes, and columns that count some questions: specificity, KGI and KPI."""

from __future__ import annotations

import pytest
from made_records import asked, kept, not_finite, record

from mmedit.cases import Probe
from mmedit.records.schema import ProbeRecord, Record
from mmedit.report.columns import measure_of
from mmedit.report.papers import load_published
from mmedit.report.published import compare_with_published
from mmedit.report.render import render
from mmedit.report.runs import Origin
from mmedit.report.table import method_table

GENERAL, LOCAL = Probe.FINE_GENERALITY, Probe.FINE_LOCALITY
KGI, KPI = Probe.GENERALIZATION_IMAGE_NEAR, Probe.PRESERVATION_IMAGE_NEAR


def fine(case: str, *, exact: float, agreement: float, editor: str = "ft") -> Record:
    """An edit that is asked in scope and out of it."""
    in_scope = asked(exact, exact, image=f"{case}.png", prompt="in scope?")
    out_of_scope = kept(agreement, 0.0, image=f"{case}.png", prompt="out of scope?")
    return record(case, {GENERAL: (in_scope,), LOCAL: (out_of_scope,)}, editor=editor)


def answered(before: float, after: float, name: str) -> ProbeRecord:
    """A question that the base model answered right (1) or wrong (0)."""
    found = asked(after, after, image=f"{name}.png")
    return found.model_copy(update={"pre": found.pre.model_copy(update={"exact_match": before})})


def test_specificity_is_half_the_sum_of_both_halves_which_stand_beside_it():
    row = method_table([fine("1", exact=1.0, agreement=0.5), fine("2", exact=0.0, agreement=1.0)])
    assert row.loc["ft", ("FG-Gen", "EM")].mean == 50
    assert row.loc["ft", ("FG-Loc", "tok")].mean == 75
    assert row.loc["ft", ("Spec", "top-1+EM")].mean == pytest.approx((75 + 50) / 2)


def test_an_edit_that_lacks_one_half_has_no_specificity():
    half = record("2", {GENERAL: (asked(1.0, 1.0),)})
    table = method_table([fine("1", exact=1.0, agreement=1.0), half])
    assert table.loc["ft", ("Spec", "top-1+EM")].n == 1
    assert not any(heading == "Spec" for heading, _ in method_table([half]).columns)


def test_an_edit_with_broken_output_is_left_out_of_specificity_and_counted():
    whole, broken = fine("1", exact=1.0, agreement=1.0), fine("2", exact=1.0, agreement=1.0)
    [local] = broken.probes[LOCAL]
    probes = {**broken.probes, LOCAL: (not_finite(local),)}
    table = method_table([whole, broken.model_copy(update={"probes": probes})])
    cell = table.loc["ft", ("Spec", "top-1+EM")]
    assert (cell.mean, cell.n, cell.failed) == (100, 1, 1)


def test_methods_are_compared_in_specificity_as_in_other_columns():
    records = [
        fine(str(n), exact=float(good), agreement=1.0, editor=editor)
        for editor, good in (("ft", True), ("mend", False))
        for n in range(8)
    ]
    table = method_table(records)
    assert table.loc["mend", ("Spec", "top-1+EM")].p_to_best < 0.05
    assert "Spec: specificity" in render(table, "md")


@pytest.mark.parametrize("format", ["md", "latex", "csv", "html", "json"])
def test_every_format_shows_specificity(format: str):
    table = method_table([fine("1", exact=1.0, agreement=0.5)])
    assert "top-1+EM" in render(table, format)


def test_kgi_is_of_questions_that_were_wrong_and_kpi_of_those_that_were_right():
    questions = (answered(0, 1, "a"), answered(0, 0, "b"), answered(1, 0, "c"), answered(1, 1, "d"))
    row = method_table([record("1", {KGI: questions, KPI: (*questions, answered(1, 1, "e"))})])
    assert row.loc["ft", (KGI.heading, "EM")].mean == pytest.approx(100 / 2)
    assert row.loc["ft", (KPI.heading, "EM")].mean == pytest.approx(100 * 2 / 3)


def test_an_edit_without_a_question_that_counts_is_not_in_n():
    records = [
        record("1", {KGI: (answered(0, 1, "a"), answered(1, 0, "b"))}),
        record("2", {KGI: (answered(1, 1, "c"),)}),
    ]
    cell = method_table(records).loc["ft", (KGI.heading, "EM")]
    assert (cell.mean, cell.n, cell.failed) == (100, 1, 0)


def test_if_no_question_counts_there_is_no_column():
    table = method_table([record("1", {probe: (answered(1, 1, "a"),) for probe in (KGI, KPI)})])
    assert KGI.heading not in {heading for heading, _ in table.columns}
    assert table.loc["ft", (KPI.heading, "EM")].mean == 100


def test_the_footnote_says_which_questions_count():
    questions = (answered(0, 1, "a"), answered(1, 1, "b"))
    text = render(method_table([record("1", {KGI: questions, KPI: questions})]), "md")
    assert f"({KGI.heading}: of questions that the base model answered wrong)" in text
    assert f"({KPI.heading}: of questions that the base model answered right)" in text


def test_a_share_of_some_questions_is_of_another_metric_class():
    wrong, right = (measure_of(probe.heading, "EM") for probe in (KGI, KPI))
    assert wrong is not None
    assert right is not None
    assert (wrong.metric, right.metric) == ("exact_match/base_wrong", "exact_match/base_right")


def test_published_specificity_stands_beside_ours_without_a_difference():
    table = method_table([fine("1", exact=1.0, agreement=0.5, editor="MEND")])
    origins = {"MEND": Origin("blip2-opt", "fgvedit")}
    found = compare_with_published(table, load_published("fgvedit"), origins)
    assert [(r.heading, r.value, r.difference) for r in found.rows] == [("Spec", 65.9, None)]
