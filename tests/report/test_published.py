"""Published values: every file is whole, and only numbers of one metric class are subtracted."""

import pytest
from made_records import LOC, REL, asked, kept, record

from mmedit.errors import DataError, UnknownNameError
from mmedit.report.papers import Published, load_published, published_names
from mmedit.report.published import compare_with_published
from mmedit.report.render import render
from mmedit.report.runs import Origin
from mmedit.report.table import method_table


@pytest.fixture(scope="module")
def table():
    probes = {REL: (asked(0.9, 0.5),), LOC: (kept(0.8, 0.6),)}
    return method_table(
        [record("1", probes, editor=e) for e in ("base", "MEND (runs/x)", "ike", "FT-M")]
    )


def origins(table, vlm="blip2-opt", dataset="evqa"):
    return {str(editor): Origin(vlm, dataset) for editor in table.index}


@pytest.mark.parametrize("name", published_names())
def test_every_file_is_whole_and_holds_percentages(name):
    published = load_published(name)
    assert published.source
    values = [
        value
        for by_dataset in published.values.values()
        for by_method in by_dataset.values()
        for row in by_method.values()
        for value in row
    ]
    assert all(value is None or 0 <= value <= 100 for value in values)


def test_the_values_are_those_of_the_papers():
    mend = load_published("mmedit").values["BLIP-2 OPT"]["E-VQA"]["MEND"]
    assert mend == (99.40, 98.80, 99.40, 99.94, 96.65)
    live = load_published("liveedit").values["LLaVA-1.5"]["VLKEB"]["FT-L"]
    assert live == (94.29, 87.00, 92.22, 91.16, 91.37)
    unike = load_published("unike").values["MiniGPT-4"]["E-IC"]["UniKE"]
    assert unike == (96.8, 95.7, 92.4, 98.9, 87.3)


def test_a_difference_is_given_only_within_one_metric_class(table):
    found = compare_with_published(table, load_published("mmedit"), origins(table))
    cells = {(r.editor, r.heading, r.measure.name): (r.value, r.difference) for r in found.rows}
    assert cells["MEND (runs/x)", "Rel", "EM"] == (99.40, pytest.approx(50 - 99.40))
    assert cells["MEND (runs/x)", "Rel", "tok"] == (99.40, None)
    assert cells["MEND (runs/x)", "I-Loc", "EM"] == (96.65, None)
    assert cells["ike", "Rel", "EM"][0] == 99.95
    assert cells["base", "Rel", "EM"] == (0.0, pytest.approx(50.0))


def test_locality_variants_have_the_class_of_the_paper_that_measured_so(table):
    live = compare_with_published(table, load_published("liveedit"), origins(table))
    cells = {(r.editor, r.heading, r.measure.name): r.difference for r in live.rows}
    assert cells["MEND (runs/x)", "I-Loc", "tok"] == pytest.approx(80 - 75.81)
    mixed = compare_with_published(table, load_published("unike"), origins(table))
    assert all(row.difference is None for row in mixed.rows)


def test_what_is_not_published_is_said(table):
    found = compare_with_published(table, load_published("mmedit"), origins(table))
    assert found.notes[-1] == "Not published there: FT-M."
    where = origins(table) | {"ike": Origin("embedded", "evqa")}
    found = compare_with_published(table, load_published("mmedit"), where)
    assert found.notes[-1] == "Not published there: ike (VLM embedded), FT-M."


def test_what_differs_from_how_the_paper_asked_its_model_is_named(table):
    paper = {"image_size": "364x364", "text": "{image}{prompt} {answer}", "bos": False}
    notes = [
        compare_with_published(
            table,
            load_published("mmedit"),
            {str(e): Origin("blip2-opt", "evqa", protocol=protocol) for e in table.index},
        ).notes[2]
        for protocol in (paper, paper | {"image_size": "224x224", "bos": True}, None)
    ]
    named = "blip2-opt beside the paper's BLIP-2 OPT: "
    assert notes == [
        f"{named}no known difference.",
        f"{named}image size 224x224 here, 364x364 there; BOS token yes here, no there.",
        f"{named}image size not recorded in the run, 364x364 there; text around a question not "
        "recorded in the run, {image}{prompt} {answer} there; BOS token not recorded in the run, "
        "no there.",
    ]
    live = compare_with_published(table, load_published("liveedit"), origins(table))
    assert "not known in the paper" in live.notes[1]


def test_a_protocol_of_an_unknown_model_is_refused():
    whole = load_published("mmedit").model_dump()
    whole["protocol"]["BLIP"] = {}
    with pytest.raises(ValueError, match="protocol: BLIP not among models"):
        Published.model_validate(whole)


def test_a_run_of_another_model_needs_the_papers_name_for_it(table):
    elsewhere = origins(table, "embedded", "easyvqa")
    with pytest.raises(DataError, match=r"BLIP-2 OPT, MiniGPT-4 \(--published-model\)"):
        compare_with_published(table, load_published("mmedit"), elsewhere)
    found = compare_with_published(
        table, load_published("mmedit"), elsewhere, model="blip-2 opt", dataset="E-IC"
    )
    assert next(r.value for r in found.rows if r.editor == "ike") == 96.70
    with pytest.raises(UnknownNameError, match="Did you mean 'E-VQA'"):
        compare_with_published(
            table, load_published("mmedit"), elsewhere, model="MiniGPT-4", dataset="E-VQ"
        )


def test_a_file_that_lacks_a_value_is_refused():
    whole = load_published("unike").model_dump()
    whole["values"]["BLIP-2 OPT"]["E-VQA"]["MEND"] = (99.4,)
    with pytest.raises(ValueError, match="MEND: 1 values for 5 metrics; write null"):
        Published.model_validate(whole)


@pytest.mark.parametrize(
    ("format", "difference"),
    [("md", "−49.4"), ("html", "−49.4"), ("latex", "$-$49.4"), ("csv", "-49.4"), ("json", "-49.4")],
)
def test_every_format_shows_value_class_and_difference(table, format, difference):
    found = compare_with_published(table, load_published("mmedit"), origins(table))
    text = render(table, format, found)
    for shown in ("99.4", "exact", "not comparable", difference):
        assert shown in text
