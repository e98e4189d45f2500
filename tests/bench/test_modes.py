"""Edits made together and one after another: what is tested when, and that a run goes on."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from counted_vlm import CountedVLM
from plans import make_plan

from mmedit.bench.base_outputs import BaseOutputs
from mmedit.bench.jobs import Past
from mmedit.bench.modes import Batch, Mode, Sequential, require_sound
from mmedit.bench.plan import Plan
from mmedit.bench.protocol import Meter, NoEdit
from mmedit.bench.run import jobs, run
from mmedit.bench.sequential import ordered
from mmedit.cases import EditCase, Example, Probe
from mmedit.datasets.easyvqa import cases as easyvqa
from mmedit.deltas import Dense
from mmedit.editors.base import Editor
from mmedit.editors.config import EditorConfig
from mmedit.errors import ConfigError, RunError
from mmedit.methods.ft import FT, FTConfig
from mmedit.progress import silent
from mmedit.records.schema import ProbeRecord, Record
from mmedit.records.store import read_records
from mmedit.report.scores import by_editor
from mmedit.report.table import method_table
from mmedit.vlm.interface import VLM

SITE = "language_model.model.decoder.layers.3.fc1"
EDITS = 12


@pytest.fixture(scope="module")
def cases() -> list[EditCase]:
    return list(easyvqa.EasyVQA().load("test", limit=EDITS))


def ft() -> FT:
    return FT(FTConfig(sites=(SITE,), lr=2e-3, steps=2))


def plan(mode: Mode, editor: Editor | None = None, **changed: Any) -> Plan:
    given: dict[str, Any] = {
        "vlm_name": "embedded",
        "dataset": "easyvqa",
        "limit": EDITS,
        "editors": {"FT": editor or ft()},
        "batch_size": 5,
        "mode": mode,
    }
    return make_plan(**given | changed)


def measure(plan: Plan, folder: Path, vlm: VLM, cases: Sequence[EditCase], progress=silent):
    def no_training(report: object) -> list[EditCase]:
        raise AssertionError("nothing here learns")

    return run(plan, folder, vlm, cases, no_training, progress=progress)[0]


def comparable(records: Sequence[Record]) -> list[dict]:
    return [record.model_dump(exclude={"seconds", "peak_memory_bytes"}) for record in records]


def of(records: Sequence[Record], test: str) -> list[Record]:
    return [record for record in records if record.editor == "FT" and record.test == test]


def is_number(asked: ProbeRecord) -> bool:
    return asked.is_finite or not math.isnan(asked.post.exact_match)


def reliability(record: Record) -> float:
    return record.probes[Probe.RELIABILITY][0].post.log_prob


# Batches


def test_edits_of_a_batch_are_made_together_and_tested_on_the_vlm_that_holds_them(
    vlm, cases, tmp_path
):
    records = of(measure(plan(Batch(k=5)), tmp_path, vlm, cases), "edit")
    assert [(r.edits, r.place) for r in records] == [
        *((5, place) for place in range(1, 6)),
        *((5, place) for place in range(1, 6)),
        (2, 1),
        (2, 2),
    ]
    edited = ft().apply(vlm, [case.request for case in cases[5:10]])
    asked = edited.predict([case.request for case in cases[5:10]])
    log_probs = asked.logits.log_softmax(-1).gather(-1, asked.target.unsqueeze(-1)).squeeze(-1)
    wanted = (log_probs * asked.is_answer).sum(1).tolist()
    assert [reliability(r) for r in records[5:10]] == pytest.approx(wanted, abs=1e-3)


def test_a_batch_of_one_is_an_independent_edit(vlm, cases, tmp_path):
    alone = of(measure(plan(Batch(k=1)), tmp_path, vlm, cases), "edit")
    for record, case in zip(alone, cases, strict=True):
        assert record.case_id == case.id
        assert (record.edits, record.place, record.batch) == (1, 1, 1)


# Sequences


@pytest.fixture(scope="module")
def sequence(vlm, cases, tmp_path_factory) -> list[Record]:
    mode = Sequential(gaps=(2, 5), ability_every=4, ability_cases=3)
    return measure(plan(mode), tmp_path_factory.mktemp("sequence"), vlm, cases)


def test_every_edit_is_tested_right_after_it_was_made(sequence, cases):
    edits = of(sequence, "edit")
    assert [r.case_id for r in edits] == [case.id for case in cases]
    assert [(r.edits, r.place) for r in edits] == [(n, n) for n in range(1, EDITS + 1)]
    assert all(record.seconds > 0 for record in edits)


def test_at_checkpoints_all_edits_so_far_are_tested_again(sequence, cases):
    tested = Counter(record.edits for record in of(sequence, "checkpoint"))
    assert tested == {1: 1, 10: 10, EDITS: EDITS}
    last = [record for record in of(sequence, "checkpoint") if record.edits == EDITS]
    assert [record.place for record in last] == list(range(1, EDITS + 1))
    seconds = {record.place: record.seconds for record in of(sequence, "edit")}
    assert all(record.seconds == seconds[record.place] for record in last)


def test_an_edit_is_tested_again_after_a_gap(sequence):
    gaps = Counter(record.edits - record.place for record in of(sequence, "gap"))
    assert gaps == {2: EDITS - 2, 5: EDITS - 5}


def test_ability_is_that_of_fixed_locality_probes(sequence):
    ability = of(sequence, "ability")
    assert Counter(record.edits for record in ability) == {4: 3, 8: 3, 12: 3}
    assert all(set(r.probes) == {Probe.TEXT_LOCALITY, Probe.IMAGE_LOCALITY} for r in ability)
    asked = {(r.edits, r.case_id) for r in ability}
    assert {case for edits, case in asked if edits == 4} == {c for e, c in asked if e == 12}


def test_a_sequence_is_a_fold(sequence, vlm, cases):
    edited: VLM = vlm
    for case in cases[:10]:
        edited = ft().apply(edited, [case.request])
    at_ten = [r for r in of(sequence, "checkpoint") if r.edits == 10]
    asked = edited.predict([case.request for case in cases[:5]])
    log_probs = asked.logits.log_softmax(-1).gather(-1, asked.target.unsqueeze(-1)).squeeze(-1)
    wanted = (log_probs * asked.is_answer).sum(1).tolist()
    assert [reliability(record) for record in at_ten[:5]] == pytest.approx(wanted, abs=1e-3)


def test_a_table_is_made_of_the_last_checkpoint(sequence):
    table = method_table(sequence)
    assert table["", "n"].tolist() == [EDITS, EDITS]
    assert {record.edits for record in by_editor(sequence)["FT"]} == {EDITS}


def test_the_unedited_model_is_measured_once(sequence):
    base = [record for record in sequence if record.editor == "base"]
    assert len(base) == EDITS
    assert all(one.pre == one.post for r in base for asked in r.probes.values() for one in asked)


def test_orders_are_drawn_by_the_seed_and_the_first_is_the_cases_own(cases):
    assert ordered(cases, 0, seed=0) == list(cases)
    assert ordered(cases, 1, seed=0) == ordered(cases, 1, seed=0)
    assert ordered(cases, 1, seed=0) != list(cases)
    assert ordered(cases, 1, seed=0) != ordered(cases, 2, seed=0)
    assert ordered(cases, 1, seed=0) != ordered(cases, 1, seed=1)
    assert sorted(c.id for c in ordered(cases, 1, seed=0)) == sorted(c.id for c in cases)


def test_every_order_is_a_sequence_of_its_own(vlm, cases, tmp_path):
    mode = Sequential(orders=2, ability_every=0, checkpoints=(4,))
    records = measure(plan(mode), tmp_path, vlm, cases[:6])
    edits = of(records, "edit")
    assert [r.order for r in edits] == [0] * 6 + [1] * 6
    assert [r.case_id for r in edits[6:]] == [c.id for c in ordered(cases[:6], 1, seed=0)]
    assert method_table(records)["", "n"].tolist() == [6, 12]


TWO_ORDERS = Sequential(gaps=(2,), ability_every=4, ability_cases=2, orders=2, snapshot_every=3)


@pytest.fixture(scope="module")
def whole(vlm, cases, tmp_path_factory) -> list[Record]:
    return measure(plan(TWO_ORDERS), tmp_path_factory.mktemp("whole"), vlm, cases[:6])


@pytest.mark.parametrize("break_after", [4, 23])
def test_an_interrupted_sequence_ends_with_the_same_records(
    vlm, cases, whole, tmp_path, break_after
):
    told = 0

    def interrupt(what: str, done: int, total: int, figures: str) -> None:
        nonlocal told
        told += what == "measuring FT" and done > 0
        if told == break_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(plan(TWO_ORDERS), tmp_path, vlm, cases[:6], interrupt)
    there = len([r for r in read_records(tmp_path) if r.editor == "FT"])
    assert break_after <= there < len([r for r in whole if r.editor == "FT"])
    continued = measure(plan(TWO_ORDERS), tmp_path, vlm, cases[:6])
    assert comparable(continued) == comparable(whole)
    assert not (tmp_path / "state").exists()


def test_a_sequence_goes_on_from_its_snapshot(vlm, cases, tmp_path):
    made: list[Example] = []

    class Counting(FT):
        def apply(self, vlm: VLM, requests: Sequence[Example]) -> VLM:
            made.extend(requests)
            return super().apply(vlm, requests)

    def interrupt(what: str, done: int, total: int, figures: str) -> None:
        if what == "measuring FT" and len(made) == 6:
            raise KeyboardInterrupt

    counting = plan(Sequential(ability_every=0, snapshot_every=4), Counting(ft().config))
    with pytest.raises(KeyboardInterrupt):
        measure(counting, tmp_path, vlm, cases, interrupt)
    [file] = (tmp_path / "state").iterdir()
    assert file.name == "FT-0-4.safetensors"
    made.clear()
    measure(counting, tmp_path, vlm, cases)
    assert made == [case.request for case in cases[4:]]


@pytest.mark.parametrize("torn", [b"", b"torn"])
def test_a_torn_snapshot_is_no_harm(vlm, cases, tmp_path, torn):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "FT-0-1.safetensors").write_bytes(torn)
    mode = Sequential(ability_every=0)
    records = measure(plan(mode), tmp_path, vlm, cases[:3])
    assert len(of(records, "edit")) == 3


def test_a_snapshot_that_cannot_be_written_is_one_error_and_loses_no_record(vlm, cases, tmp_path):
    (tmp_path / "state").write_text("a file where the folder should be")
    with pytest.raises(RunError, match="the records written before are intact"):
        measure(plan(Sequential(ability_every=0, snapshot_every=2)), tmp_path, vlm, cases[:4])
    assert len(of(read_records(tmp_path), "edit")) == 2


def test_cost_per_edit_does_not_grow(vlm, cases):
    edited: VLM = vlm
    added = []
    for case in cases:
        edited = ft().apply(edited, [case.request])
        added.append(edited.extra_parameters)
    assert len(set(added)) == 1


class Breaking(Editor[EditorConfig]):
    """Its third edit makes a weight NaN."""

    method = "breaking"
    config_class = EditorConfig
    made = 0

    def apply(self, vlm: VLM, requests: Sequence[Example]) -> VLM:
        self.made += 1
        value = float("nan") if self.made == 3 else 0.0
        return vlm.with_deltas({SITE: Dense(torch.full(vlm.shape(SITE), value))})

    def apply_each(self, vlm: VLM, requests: Sequence[Example]) -> VLM:
        raise AssertionError("a sequence makes one edit at a time")


def test_nan_is_counted_and_loses_nothing(vlm, cases, tmp_path):
    from mmedit.report.sequences import abilities, not_finite, sequence_notes

    mode = Sequential(ability_every=1, ability_cases=2)
    records = measure(plan(mode, Breaking(EditorConfig())), tmp_path, vlm, cases[:6])
    found = of(read_records(tmp_path), "edit")
    assert len(found) == 6
    assert not_finite(found) == 4
    assert abilities(of(records, "ability"))[0].collapsed == 3
    last = [r for r in of(records, "checkpoint") if r.edits == 6]
    assert [any(map(is_number, r.probes[Probe.RELIABILITY])) for r in last] == [False] * 6
    assert math.isnan(float(method_table(records).loc["FT", ("Rel", "EM")]))
    note = "FT: NaN or infinite output right after 4 of 6 edits, collapsed from edit 3 on."
    assert sequence_notes(records)[0] == note


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        (Sequential(gaps=(12,)), "gaps=12 needs at least 13 edits and there are 12"),
        (Sequential(checkpoints=(13,)), "checkpoints=13 needs at least 13 edits and there are 12"),
        (Batch(k=100), "batch.k=100 needs at least 100 edits and there are 12"),
    ],
)
def test_more_edits_than_there_are_is_an_error_before_anything_runs(mode, message, cases):
    with pytest.raises(ConfigError, match=message):
        require_sound(mode, len(cases))


def test_a_table_of_long_sequences_can_be_run_in_small(cases):
    require_sound(Sequential(gaps=(10, 100), checkpoints=(1, 1000)), len(cases))


@pytest.mark.parametrize(
    ("edits", "stops"),
    [
        (1, {1}),
        (7, {1, 7}),
        (100, {1, 10, 50, 100}),
        (1000, {1, 10, 50, 100, 200, 500, 1000}),
        (2093, {1, 10, 50, 100, 200, 500, 1000, 2000, 2093}),
    ],
)
def test_usual_checkpoints(edits, stops):
    assert Sequential().stops(edits) == stops


def test_the_run_of_another_mode_is_refused(vlm, cases, tmp_path):
    measure(plan(Batch(k=2)), tmp_path, vlm, cases[:2])
    with pytest.raises(RunError, match=r"holds a run with mode.k=2, and this command has mode.k=1"):
        measure(plan(Batch(k=1)), tmp_path, vlm, cases[:2])


def test_base_outputs_serve_all_tests_of_a_sequence(vlm, cases):
    """Each batch goes through the base model once, however often it is tested."""
    counted = CountedVLM(vlm)
    base = BaseOutputs(counted)
    for name in ("x", "y"):
        meter = Meter(base, name=name, batch_size=4)
        for job in jobs(Sequential(gaps=(1,)), meter, ft(), cases[:4], Past({})):
            job.run()  # pyright: ignore[reportAttributeAccessIssue]
    probes = sum(len(e) for case in cases[:4] for e in case.probes.values())
    assert counted.asked == 2 * probes  # after each edit, and at the checkpoint of all


def test_no_edit_is_no_sequence(vlm, cases):
    meter = Meter(BaseOutputs(vlm), name="base", batch_size=4)
    made = list(jobs(Sequential(), meter, NoEdit(), cases, Past({})))
    assert [len(job.keys) for job in made] == [4, 4, 4]  # pyright: ignore
