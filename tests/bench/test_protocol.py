"""Measuring edits: what is asked of which model, and how often."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from counted_vlm import CountedVLM

from mmedit.bench.base_outputs import BaseOutputs
from mmedit.bench.protocol import Meter, NoEdit, evaluate
from mmedit.cache import TensorCache
from mmedit.cases import EditCase, Example, Probe
from mmedit.datasets.easyvqa import cases as easyvqa
from mmedit.errors import ConfigError, EditorError
from mmedit.images import image_key
from mmedit.methods.ft import FT, FTConfig
from mmedit.methods.ike import IKE, IKEConfig
from mmedit.metrics.multiclass_log_probs import exact_match
from mmedit.records.schema import Record
from mmedit.vlm.network import NetworkVLM


@pytest.fixture(scope="module")
def cases() -> list[EditCase]:
    return list(easyvqa.EasyVQA().load("test", limit=7))


def ft() -> FT:
    sites = ("language_model.model.decoder.layers.3.fc1",)
    return FT(FTConfig(sites=sites, lr=2e-3, steps=5))


@contextmanager
def rows_through(module: torch.nn.Module) -> Iterator[list[int]]:
    """Notes the batch size of every call of a module."""
    calls: list[int] = []

    def note(_: object, inputs: tuple, keywords: dict, output: object) -> None:
        first = inputs[0] if inputs else keywords["inputs_embeds"]
        calls.append(len(first))

    hook = module.register_forward_hook(note, with_kwargs=True)
    try:
        yield calls
    finally:
        hook.remove()


def run(vlm: NetworkVLM, editor, cases: list[EditCase], **settings: Any) -> list[Record]:
    return list(evaluate(vlm, editor, cases, **{"batch_size": 4, **settings}))


def with_base(base: BaseOutputs, editor, cases: list[EditCase], **settings: Any) -> list[Record]:
    meter = Meter(base, **{"name": "x", "batch_size": 4, **settings})
    return list(meter.evaluate(editor, cases))


def test_one_record_per_case_in_order_with_every_probe(vlm, cases):
    records = run(vlm, ft(), cases)
    assert [record.case_id for record in records] == [case.id for case in cases]
    for record, case in zip(records, cases, strict=True):
        assert tuple(record.probes) == tuple(case.probes)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_records_do_not_depend_on_the_batch_size(vlm, cases, batch_size):
    for one, other in zip(
        run(vlm, ft(), cases, batch_size=batch_size),
        run(vlm, ft(), cases, batch_size=len(cases)),
        strict=True,
    ):
        for probe in one.probes:
            first, second = one.probes[probe][0], other.probes[probe][0]
            assert first.post.exact_match == second.post.exact_match
            assert first.post.log_prob == pytest.approx(second.post.log_prob, abs=2e-3)
            if first.locality and second.locality:
                assert first.locality.exact_answer == second.locality.exact_answer
                assert first.locality.kl == pytest.approx(second.locality.kl, abs=1e-4)


def test_pre_is_the_unedited_model_even_after_other_edits(vlm, cases):
    base = BaseOutputs(vlm)
    with_base(base, ft(), cases)
    records = with_base(base, ft(), cases)
    asked = vlm.predict([case.request for case in cases])
    matches = exact_match(asked.logits, asked.target, asked.is_answer)
    measured = [record.probes[Probe.RELIABILITY][0].pre.exact_match for record in records]
    assert measured == matches.double().tolist()


def test_the_base_row_is_measured_and_unchanged(vlm, cases):
    for record in run(vlm, NoEdit(), cases):
        for probe, asked in record.probes.items():
            assert asked[0].pre == asked[0].post
            if probe.is_locality:
                assert asked[0].locality is not None
                assert asked[0].locality.exact_answer == 1
                assert asked[0].locality.kl == pytest.approx(0, abs=1e-6)


def test_base_outputs_are_computed_once_and_shared_by_editors(vlm, cases):
    counted = CountedVLM(vlm)
    base = BaseOutputs(counted)
    examples = sum(len(asked) for case in cases for asked in case.probes.values())
    for editor in (ft(), FT(ft().config.model_copy(update={"steps": 1}))):
        with_base(base, editor, cases, max_new_tokens=4)
        assert counted.asked == 2 * examples  # predicted once, and generated once


def test_the_vision_tower_sees_each_distinct_image_once_in_a_whole_run(vlm, cases):
    fresh = NetworkVLM(vlm.adapter, features=TensorCache())
    base = BaseOutputs(fresh)
    for editor in (NoEdit(), ft(), IKE(IKEConfig(k=0))):
        with_base(base, editor, cases, max_new_tokens=3)
    examples = [e for case in cases for asked in case.probes.values() for e in asked]
    distinct = {image_key(example.image) for example in examples if example.image is not None}
    assert fresh.features.misses == len(distinct)


def test_an_evaluation_costs_one_edited_forward_per_probe_and_full_batch(vlm, cases):
    base = BaseOutputs(vlm)
    with_base(base, NoEdit(), cases)
    with rows_through(vlm.adapter.network.language_model) as calls:
        with_base(base, NoEdit(), cases)
    assert calls == [4] * 5 + [4] * 3 + [3]  # three cases have twelve examples with an image


def test_the_examples_of_a_single_case_are_asked_in_two_forwards(vlm, cases):
    base = BaseOutputs(vlm)
    meter = Meter(base, name="x", batch_size=32)
    meter.separate_edits(NoEdit(), cases[:1])
    with rows_through(vlm.adapter.network.language_model) as calls:
        meter.separate_edits(NoEdit(), cases[:1])
    assert calls == [4, 1]


def test_of_base_outputs_little_is_kept(vlm, cases):
    """Logits of locality's answers alone: a large vocabulary would fill the memory else."""
    base = BaseOutputs(vlm)
    records = with_base(base, NoEdit(), cases)
    local = [r.probes[probe][0] for r in records for probe in r.probes if probe.is_locality]
    answers = sum(one.post.n_tokens for one in local)
    vocabulary = vlm.frozen.vocabulary
    assert 0 < base.bytes_used < 4 * vocabulary * answers + 1024 * 5 * len(cases)


def test_cases_may_lack_a_probe_or_ask_several_examples(vlm, cases):
    first, second = cases[:2]
    two = first.probes[Probe.TEXT_LOCALITY] + second.probes[Probe.TEXT_LOCALITY]
    several = EditCase(id="a", request=first.request, probes={Probe.TEXT_LOCALITY: two})
    bare = EditCase(id="b", request=second.request)
    records = run(vlm, ft(), [several, bare])
    assert [len(record.probes.get(Probe.TEXT_LOCALITY, ())) for record in records] == [2, 0]
    assert set(records[1].probes) == {Probe.RELIABILITY}


def test_context_does_not_add_a_position_to_locality_over_all_text(vlm, cases):
    [record] = run(vlm, IKE(IKEConfig(k=0)), cases[:1])
    moved = record.probes[Probe.TEXT_LOCALITY][0].locality
    asked = vlm.predict(list(cases[0].probes[Probe.TEXT_LOCALITY]))
    assert moved is not None
    positions = int(asked.is_text.sum())
    assert moved.top1_all * positions == pytest.approx(round(moved.top1_all * positions), abs=1e-4)


def test_free_answers_are_there_only_when_asked_for(vlm, cases):
    [silent] = run(vlm, NoEdit(), cases[:1])
    [generated] = run(vlm, NoEdit(), cases[:1], max_new_tokens=5)
    assert silent.probes[Probe.RELIABILITY][0].generated_post is None
    assert generated.probes[Probe.RELIABILITY][0].generated_post


@pytest.mark.parametrize("task", ["vqa", "caption"])
def test_the_unedited_model_knows_the_truth_and_not_the_targets(vlm, task):
    cases = easyvqa.EasyVQA(task=task).load("test", limit=100)

    def right(examples: list[Example]) -> float:
        asked = vlm.predict(examples)
        return exact_match(asked.logits, asked.target, asked.is_answer).float().mean().item()

    assert right([case.request for case in cases]) < 0.02
    for probe in (Probe.TEXT_LOCALITY, Probe.IMAGE_LOCALITY):
        assert right([case.probes[probe][0] for case in cases]) > 0.97


def test_more_outputs_than_the_memory_holds_are_computed_again(vlm, cases):
    small = BaseOutputs(vlm, memory_bytes=1)
    assert with_base(small, NoEdit(), cases[:4])
    assert small.bytes_used == 0
    enough = BaseOutputs(vlm)
    for one, other in zip(
        with_base(small, ft(), cases), with_base(enough, ft(), cases), strict=True
    ):
        assert one.probes == other.probes


def test_a_name_is_the_editors_label_by_default(vlm, cases):
    [base], [edited] = run(vlm, NoEdit(), cases[:1]), run(vlm, ft(), cases[:1])
    assert (base.editor, edited.editor) == ("base", "FT")


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_size_below_one_is_refused(vlm, cases, batch_size):
    with pytest.raises(ConfigError, match=f"batch_size is {batch_size}; expected a whole"):
        evaluate(vlm, NoEdit(), cases, batch_size=batch_size)


def test_an_object_of_your_own_that_edits_each_needs_a_name_and_nothing_else(vlm, cases):
    class Nothing:
        def apply_each(self, vlm, requests):
            return vlm

    own: Any = Nothing()
    name: Any = "ft"
    records = list(evaluate(vlm, own, cases[:2], name="nothing"))
    assert [record.editor for record in records] == ["nothing", "nothing"]
    with pytest.raises(EditorError, match=r"has no label for its records; give one: .*name="):
        evaluate(vlm, own, cases[:2])
    with pytest.raises(EditorError, match="was given where an editor is expected"):
        evaluate(vlm, name, cases[:2])
