"""Scores of the probes of De-VQA against golden numbers, per pair and per family."""

from __future__ import annotations

import pytest
import torch
from golden_files import GoldenCase, golden_cases, golden_files, read_golden_json
from made_records import asked, record

from mmedit.cases import Probe
from mmedit.metrics.generation import exact, leak, unchanged
from mmedit.metrics.locality import locality
from mmedit.records.schema import Generation, Locality
from mmedit.report.table import method_table

TOLERANCE = 1e-6
CASES = [case for case in golden_cases("probes") if case.name.startswith("devqa")]
PROBES = {
    "RI": Probe.RANDOM_IMAGE,
    "NI": Probe.NO_IMAGE,
    "CI": Probe.CONSISTENT_IMAGE,
    "text": Probe.TEXT_LOCALITY,
    "image": Probe.IMAGE_LOCALITY,
}


def families() -> dict[str, list[str]]:
    (path,) = golden_files("probes/cases.json")
    return read_golden_json(path)["families"]


def moved(case: GoldenCase, number: int, pair: str) -> Locality:
    before, after = (
        case.tensors[f"record_{number}.{pair}.{name}_logits"][None] for name in ("base", "edited")
    )
    answer = case.tensors[f"record_{number}.{pair}.predicts_answer"][None]
    scores = locality(before, after, is_text=torch.ones_like(answer), is_answer=answer)
    return Locality(**{name: float(getattr(scores, name)) for name in Locality.model_fields})


def test_there_are_golden_records_of_every_family():
    assert CASES
    assert set(families()) == set(PROBES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_pair_has_the_golden_scores(case):
    for number, found in enumerate(case.facts["records"]):
        for pair, golden in found["pairs"].items():
            base, edited = golden["base_answer"], golden["edited_answer"]
            top1 = moved(case, number, pair).top1_answer
            assert top1 == pytest.approx(golden["top1_answer"], abs=TOLERANCE)
            assert unchanged(base, edited) == golden["unchanged"]
            assert exact(edited, [found["target"]]) == golden["answer_is_target"]
            assert leak(base, edited, found["target"]) == golden["leak"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_tables_columns_are_the_golden_means_of_the_families(case):
    records = []
    for number, found in enumerate(case.facts["records"]):
        probes = {}
        for family, pairs in families().items():
            examples = []
            for pair in pairs:
                golden = found["pairs"][pair]
                said = golden["base_answer"], golden["edited_answer"]
                scores = Generation(
                    contains=0.0,
                    exact=0.0,
                    rouge_l=0.0,
                    unchanged=unchanged(*said),
                    leak=leak(*said, found["target"]),
                )
                examples.append(
                    asked(
                        0.0, 0.0, locality=moved(case, number, pair), prompt=f"{pair} {number}",
                        generation_pre=scores, generation_post=scores,
                    )
                )  # fmt: skip
            probes[PROBES[family]] = examples
        records.append(record(str(number), {p: tuple(e) for p, e in probes.items()}))
    teacher_forced = method_table(records).iloc[0]
    generated = method_table(records, columns="generation").iloc[0]
    for family, golden in case.facts["per_family"].items():
        heading = PROBES[family].heading
        found = {
            "top1_answer": teacher_forced[heading, "tok"],
            "unchanged": generated[heading, "same"],
            "leak": generated[heading, "leak"],
        }
        for name, cell in found.items():
            assert cell.mean == pytest.approx(100 * golden[name], abs=1e-4)
            assert cell.n == len(records)
