"""FGVEdit's specificity: our metrics and our column give the published code's numbers."""

from __future__ import annotations

import pytest
import torch
from golden_files import GoldenCase, golden_cases

from mmedit.cases import Probe
from mmedit.metrics.locality import top1, topk_ordered
from mmedit.metrics.multiclass_log_probs import MulticlassLogProbs, multiclass_log_probs
from mmedit.records.schema import Locality, ProbeRecord, Record, Scores
from mmedit.report.table import method_table

CASES = [case for case in golden_cases("probes") if case.name.startswith("fgv")]


def answers(case: GoldenCase) -> MulticlassLogProbs:
    return multiclass_log_probs(
        case.tensors["fg_gen"], case.tensors["fg_gen_labels"].long(), shift=True
    )


def agreements(case: GoldenCase) -> tuple[torch.Tensor, torch.Tensor]:
    """The top-1 agreement on the answer, and the ordered top-10 everywhere, of every row."""
    before, after = case.tensors["fg_loc_before"], case.tensors["fg_loc_after"]
    labels = case.tensors["fg_loc_labels"]
    predicts = torch.zeros_like(labels, dtype=torch.bool)
    predicts[:, :-1] = labels[:, 1:] != -100
    return top1(before, after, predicts), topk_ordered(before, after, torch.ones_like(predicts))


def records(case: GoldenCase) -> list[Record]:
    """Records with the scores of each row, as a run writes them."""
    scored, (same, ranks) = answers(case), agreements(case)
    found = []
    for row in range(len(same)):
        scores = Scores(
            token_accuracy=float(scored.token_accuracy[row]),
            exact_match=float(scored.exact_match[row]),
            log_prob=float(scored.log_prob[row]),
            n_tokens=int(scored.n_tokens[row]),
        )
        local = Locality(
            top1_answer=float(same[row]), exact_answer=0.0, top1_all=0.0,
            top10_ordered_all=float(ranks[row]), top10_set_answer=0.0, kl=0.0,
        )  # fmt: skip
        asked = {
            probe: (
                ProbeRecord(prompt=probe, target="t", image=f"{row}", pre=scores, post=scores,
                            locality=moved),
            )
            for probe, moved in ((Probe.FINE_GENERALITY, None), (Probe.FINE_LOCALITY, local))
        }  # fmt: skip
        found.append(
            Record(case_id=f"{row}", editor="x", seconds=1.0, batch=1, peak_memory_bytes=0, seed=0,
                   probes=asked)
        )  # fmt: skip
    return found


def test_there_are_cases():
    assert CASES


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_both_halves_of_specificity_are_those_of_the_published_code(case: GoldenCase):
    scored, (same, ranks) = answers(case), agreements(case)
    facts = {
        "fg_loc_top10_ordered_all": ranks.mean(),
        "fg_loc_top1_answer": same.mean(),
        "fg_gen_token_accuracy": scored.acc,
        "fg_gen_exact_match": scored.exact_match_acc,
        "specificity_published_token": (ranks.mean() + scored.acc) / 2,
    }
    for name, value in facts.items():
        assert float(value) == pytest.approx(case.facts[name], abs=1e-6), name


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_columns_of_a_table_are_those_of_the_published_code(case: GoldenCase):
    made = records(case)
    ours = method_table(made).loc["x", ("Spec", "top-1+EM")]
    assert ours.mean == pytest.approx(100 * case.facts["specificity_top1_answer_exact"], abs=1e-4)
    ranks = method_table(made, columns="locality").loc["x"]
    published = 100 * case.facts["specificity_published_exact"]
    assert ranks["Spec", "ranks+EM"].mean == pytest.approx(published, abs=1e-4)
    means = answers(case).token_accuracy.mean() + agreements(case)[1].mean()
    assert ranks["Spec", "ranks+tok"].mean == pytest.approx(50 * float(means), abs=1e-4)
