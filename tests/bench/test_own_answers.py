"""Probes that force the base model's own answer, and leaks of the edit's target into them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from counted_vlm import CountedVLM

from mmedit.bench.base_outputs import BaseOutputs
from mmedit.bench.protocol import Meter, NoEdit, evaluate
from mmedit.bench.scoring import measure
from mmedit.cases import OWN_ANSWER, EditCase, Example, Probe
from mmedit.config import load_cases
from mmedit.methods.ft import FT, FTConfig
from mmedit.report.table import method_table

DEVQA = (Probe.RANDOM_IMAGE, Probe.NO_IMAGE, Probe.CONSISTENT_IMAGE, Probe.QUESTION_ALONE)


@pytest.fixture(scope="module")
def cases() -> list[EditCase]:
    return list(load_cases("easyvqa", "test", limit=4, probes="devqa"))


def ft() -> FT:
    sites = ("language_model.model.decoder.layers.3.fc2",)
    return FT(FTConfig(sites=sites, lr=2e-3, steps=10))


@pytest.fixture(scope="module")
def records(vlm, cases):
    editors = {"base": NoEdit(), "ft": ft()}
    return [
        record
        for name, editor in editors.items()
        for record in evaluate(vlm, editor, cases, name=name, batch_size=4, max_new_tokens=6)
    ]


def test_the_base_models_own_answer_is_forced_and_the_target_stays_in_the_record(records, cases):
    by_id = {case.id: case for case in cases}
    for record in records:
        for probe, asked in record.probes.items():
            for one, example in zip(asked, by_id[record.case_id].probes[probe], strict=True):
                assert one.target == example.target
                assert one.forced == (one.generated_pre if probe in OWN_ANSWER else None)


def test_the_base_model_gives_its_own_forced_answer_back(records):
    own = [one for r in records for p in DEVQA for one in r.probes[p]]
    assert own
    assert all(one.pre.exact_match == 1 for one in own)


def test_without_generations_the_same_answers_are_forced(vlm, cases, records):
    """The embedded VLM answers in fewer tokens than either length."""
    silent = list(evaluate(vlm, NoEdit(), cases, name="base", batch_size=4))
    for one, other in zip(silent, records[: len(cases)], strict=True):
        for probe in DEVQA:
            assert [a.forced for a in one.probes[probe]] == [a.forced for a in other.probes[probe]]
            assert all(a.generated_pre is None for a in one.probes[probe])


def test_own_answers_cost_one_generation_of_the_base_model_for_all_editors(vlm, cases):
    counted = CountedVLM(vlm)
    base = BaseOutputs(counted)
    for editor in (ft(), ft()):
        list(Meter(base, name="x", batch_size=4).evaluate(editor, cases))
    asked = sum(len(e) for case in cases for e in case.probes.values())
    own = sum(len(case.probes[p]) for case in cases for p in DEVQA)
    twice = 2 * len(cases)  # the question alone is asked in no image too: as the same batch
    assert counted.asked == asked + own - twice


def test_an_empty_own_answer_leaves_the_target_to_be_forced(vlm, cases, monkeypatch):
    base = BaseOutputs(vlm)
    example = cases[0].probes[Probe.NO_IMAGE][0]
    [said] = base.answer([example], max_new_tokens=4)
    empty = replace(said, text="")
    monkeypatch.setattr(base, "answer", lambda examples, max_new_tokens: [empty])
    [record] = measure(base, vlm, [(Probe.NO_IMAGE, example)])
    assert record.forced == example.target


def test_an_answer_leaks_if_it_has_the_edits_target_and_the_base_models_has_not(records, cases):
    targets = {case.id: case.request.target for case in cases}
    leaks = {}
    for record in records:
        target = targets[record.case_id]
        for probe, asked in record.probes.items():
            for one in asked:
                if probe.is_locality:
                    new = one.generated_post == target and one.generated_pre != target
                    assert one.generation_post.leak == new
                    leaks.setdefault(record.editor, []).append(new)
                else:
                    assert one.generation_post.leak is None
    assert not any(leaks["base"])
    assert any(leaks["ft"])


def test_tables_have_a_column_of_leaks_where_generations_were_made(records):
    table = method_table(records, columns="generation")
    for probe in (*DEVQA, Probe.TEXT_LOCALITY):
        cell = table.loc["ft"][probe.heading, "leak"]
        assert cell.n == 4
        assert 0 <= cell.low <= cell.mean <= cell.high <= 100
        assert table.loc["base"][probe.heading, "leak"].mean == 0
    assert ("Rel", "leak") not in table.columns


def test_the_question_about_the_old_entity_leaks_the_answer_that_it_must_not_have(vlm, cases):
    request = cases[0].request
    edited = ft().apply(vlm, [request])
    about = Example(prompt=request.prompt, target=request.target)
    [record] = measure(
        BaseOutputs(vlm), edited, [(Probe.OLD_ENTITY, about)], max_new_tokens=6, targets=["other"]
    )
    assert record.generated_post == request.target != record.generated_pre
    assert record.generation_post is not None
    assert record.generation_post.leak == 1


def test_an_old_answer_that_stays_counts_against_a_method(vlm, cases):
    """`better` is lower: of two methods the one that forgets the old answer wins the column."""
    request = cases[0].request
    [old] = vlm.generate([request], max_new_tokens=6)
    case = EditCase(
        id="1", request=request, probes={Probe.OLD_BINDING: (replace(request, target=old),)}
    )
    records = [
        record
        for name, editor in {"base": NoEdit(), "kept": NoEdit(), "ft": ft()}.items()
        for record in evaluate(vlm, editor, [case], name=name, max_new_tokens=6)
    ]
    for columns, name in (("default", "EM"), ("generation", "exact")):
        table = method_table(records, columns=columns)
        column = table[Probe.OLD_BINDING.heading, name]
        assert [column[row].mean for row in ("base", "kept", "ft")] == [100, 100, 0]
        best = {row for row, cell in column.items() if cell.p_to_best is None}
        assert best == {"base", "ft"}  # the base model does not compete


def test_what_else_a_case_asks_changes_neither_its_edit_nor_its_other_scores(vlm, cases):
    plain = load_cases("easyvqa", "test", limit=4)
    first = list(evaluate(vlm, ft(), plain, batch_size=4))
    second = list(evaluate(vlm, ft(), cases, batch_size=4))
    for one, other in zip(first, second, strict=True):
        for probe, asked in one.probes.items():
            for a, b in zip(asked, other.probes[probe], strict=True):
                assert torch.isclose(torch.tensor(a.post.log_prob), torch.tensor(b.post.log_prob))
                assert a.post.exact_match == b.post.exact_match
                assert (a.locality is None) == (b.locality is None)
                if a.locality and b.locality:
                    assert a.locality.top1_answer == b.locality.top1_answer
