from __future__ import annotations

import math
from dataclasses import fields
from typing import TypeVar

import pytest
import torch
from closeness import score_rounding
from golden_files import GoldenCase, golden_cases
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmedit.errors import DataError, EmptyAnswerError
from mmedit.metrics.locality import (
    LocalityScores,
    exact,
    kl,
    locality,
    top1,
    topk_ordered,
    topk_set,
)
from mmedit.metrics.multiclass_log_probs import (
    NOT_SCORED,
    MulticlassLogProbs,
    answer_log_prob,
    answer_nll,
    exact_match,
    multiclass_log_probs,
    require_tokens,
    token_accuracy,
)

OURS = {"shift3d", "noshift3d", "2d", "legacy_right_aligned"}
KNOWINGLY_NOT_OURS = {"binary": "sigmoid scores of a yes-or-no classifier, which mmedit has not"}

METRICS = golden_cases("metrics")
LOCALITY = golden_cases("locality")

seeded = settings(max_examples=25, deadline=None, derandomize=True, database=None)


def ids(cases: list[GoldenCase]) -> list[str]:
    return [f"{case.name}: {case.facts['description']}" for case in cases]


# Golden numbers: the published code


def pooled(rows: Tensor, n: Tensor) -> float:
    """The mean over tokens, from the means of rows of n tokens."""
    return ((rows * n).sum() / n.sum()).item()


def aligned(case: GoldenCase) -> tuple[Tensor, Tensor, bool]:
    logits, labels = case.tensors["logits"], case.tensors["labels"]
    if case.facts["mode"] == "legacy_right_aligned":
        return logits[:, :-1][:, -labels.shape[1] :], labels, False
    return logits, labels, case.facts["mode"] == "shift3d"


def has_row_without_answer(case: GoldenCase) -> bool:
    _, labels, shift = aligned(case)
    is_answer = (labels[:, 1:] if shift else labels.view(len(labels), -1)) != NOT_SCORED
    return not bool(is_answer.any(-1).all())


TEACHER_FORCED = [case for case in METRICS if case.facts["mode"] in OURS]
SCORED = [case for case in TEACHER_FORCED if not has_row_without_answer(case)]
WITHOUT_ANSWER = [case for case in TEACHER_FORCED if has_row_without_answer(case)]
BY_ROW = [case for case in SCORED if "per_row_numpy_float64" in case.facts]


def test_every_golden_mode_is_tested_or_knowingly_left_out():
    assert {case.facts["mode"] for case in METRICS} <= OURS | KNOWINGLY_NOT_OURS.keys()
    assert SCORED
    assert BY_ROW


COMPARED = {
    "reference": {"acc_token", "acc_exact_match", "nll", "log_prob", "prob", "n_tokens"},
    "per_row_numpy_float64": {
        "row_token_acc", "row_exact_match", "row_sum_log_prob", "row_n_tokens",
    },
}  # fmt: skip
LOCALITY_COMPARED = {
    "reference": {
        "kl_loc_loss",
        "top1_agreement_all_positions", "topk_token_match_k1",
        "top10_ordered_slot_agreement_all_positions", "topk_token_match_k10",
    },
    "numpy_float64": {
        "kl_masked_mean", "kl_per_row",
        "top1_all_positions", "top1_attended_positions",
        "top1_answer_only", "top1_answer_only_per_row",
        "top10_ordered_all_positions",
        "top10_set_overlap_all_positions", "top10_set_overlap_attended_positions",
        "top10_set_overlap_answer_only", "top10_set_overlap_answer_only_per_row",
    },
}  # fmt: skip


def test_every_golden_number_and_tensor_is_compared_at_the_size_that_is_told():
    for case in TEACHER_FORCED:
        shapes = {name: list(tensor.shape) for name, tensor in case.tensors.items()}
        facts = case.facts
        assert shapes == {"logits": facts["logits_shape"], "labels": facts["labels_shape"]}
        for table, names in COMPARED.items():
            assert facts.get(table, {}).keys() <= names
    for case in LANGUAGE_LOCALITY:
        shapes = {name: list(tensor.shape) for name, tensor in case.tensors.items()}
        logits = case.facts["shape"]
        assert shapes == {
            "pre_logits": logits, "post_logits": logits,
            "labels": logits[:2], "attention_mask": logits[:2],
        }  # fmt: skip
        for table, names in LOCALITY_COMPARED.items():
            assert case.facts[table].keys() <= names


@pytest.mark.parametrize("case", SCORED, ids=ids(SCORED))
def test_pooled_scores_are_those_of_the_published_code(case: GoldenCase):
    logits, labels, shift = aligned(case)
    scores = multiclass_log_probs(logits, labels, shift=shift)
    wanted = case.facts["reference"]
    assert scores.acc.item() == pytest.approx(wanted["acc_token"], abs=1e-6)
    assert scores.exact_match_acc.item() == pytest.approx(wanted["acc_exact_match"], abs=1e-6)
    error = score_rounding(logits)
    assert scores.nll.item() == pytest.approx(wanted["nll"], abs=error)
    assert pooled(scores.log_prob / scores.n_tokens, scores.n_tokens) == pytest.approx(
        wanted["log_prob"], abs=error
    )
    assert scores.prob.item() == pytest.approx(wanted["prob"], abs=error)
    assert scores.n_tokens.sum().item() == wanted["n_tokens"]


@pytest.mark.parametrize("case", BY_ROW, ids=ids(BY_ROW))
def test_scores_of_each_sequence_are_those_of_their_definition_in_float64(case: GoldenCase):
    logits, labels, shift = aligned(case)
    scores = multiclass_log_probs(logits, labels, shift=shift)
    wanted = case.facts["per_row_numpy_float64"]
    assert scores.token_accuracy.tolist() == pytest.approx(wanted["row_token_acc"], abs=1e-6)
    assert scores.exact_match.tolist() == wanted["row_exact_match"]
    assert scores.n_tokens.tolist() == wanted["row_n_tokens"]
    # The tolerance is one of the mean per token, so that long answers are held to the same one.
    found = (scores.log_prob / scores.n_tokens).tolist()
    means = zip(wanted["row_sum_log_prob"], wanted["row_n_tokens"], strict=True)
    expected = [total / n for total, n in means]
    assert found == pytest.approx(expected, abs=score_rounding(logits))


@pytest.mark.parametrize("case", WITHOUT_ANSWER, ids=ids(WITHOUT_ANSWER))
def test_where_the_published_code_scores_a_row_without_answer_mmedit_refuses(case: GoldenCase):
    logits, labels, shift = aligned(case)
    with pytest.raises(EmptyAnswerError):
        multiclass_log_probs(logits, labels, shift=shift)


LANGUAGE_LOCALITY = [case for case in LOCALITY if len(case.facts["shape"]) == 3]


def before_and_after(case: GoldenCase) -> tuple[Tensor, Tensor, Tensor]:
    tensors = case.tensors
    return tensors["pre_logits"], tensors["post_logits"], tensors["attention_mask"].bool()


def test_every_golden_locality_case_is_tested_or_one_sigmoid_score_per_row():
    assert LANGUAGE_LOCALITY
    assert all(case.facts["shape"][1:] == [1] for case in LOCALITY if case not in LANGUAGE_LOCALITY)


@pytest.mark.parametrize("case", LANGUAGE_LOCALITY, ids=ids(LANGUAGE_LOCALITY))
def test_locality_over_all_positions_is_that_of_the_published_code(case: GoldenCase):
    base, edited, attended = before_and_after(case)
    everywhere = torch.ones_like(attended)  # the published code counts padding too
    wanted = case.facts["reference"]
    first = top1(base, edited, everywhere).mean().item()
    assert first == pytest.approx(wanted["top1_agreement_all_positions"], abs=2e-6)
    assert first == pytest.approx(wanted["topk_token_match_k1"], abs=2e-6)
    ranks = topk_ordered(base, edited, everywhere).mean().item()
    assert ranks == pytest.approx(wanted["top10_ordered_slot_agreement_all_positions"], abs=2e-6)
    assert ranks == pytest.approx(wanted["topk_token_match_k10"], abs=2e-6)
    divergence = pooled(kl(base, edited, attended), attended.sum(-1))
    assert divergence == pytest.approx(wanted["kl_loc_loss"], abs=score_rounding(edited))
    defined, overlap = case.facts["numpy_float64"], topk_set(base, edited, everywhere).mean().item()
    assert first == pytest.approx(defined["top1_all_positions"], abs=2e-6)
    assert ranks == pytest.approx(defined["top10_ordered_all_positions"], abs=2e-6)
    assert overlap == pytest.approx(defined["top10_set_overlap_all_positions"], abs=2e-6)


@pytest.mark.parametrize("case", LANGUAGE_LOCALITY, ids=ids(LANGUAGE_LOCALITY))
def test_locality_over_attended_positions_is_its_definition_in_float64(case: GoldenCase):
    base, edited, attended = before_and_after(case)
    wanted = case.facts["numpy_float64"]
    divergence = kl(base, edited, attended)
    error = score_rounding(edited)
    assert divergence.tolist() == pytest.approx(wanted["kl_per_row"], abs=error)
    assert pooled(divergence, attended.sum(-1)) == pytest.approx(
        wanted["kl_masked_mean"], abs=error
    )
    first = pooled(top1(base, edited, attended), attended.sum(-1))
    assert first == pytest.approx(wanted["top1_attended_positions"], abs=2e-6)
    overlap = pooled(topk_set(base, edited, attended), attended.sum(-1))
    assert overlap == pytest.approx(wanted["top10_set_overlap_attended_positions"], abs=2e-6)


@pytest.mark.parametrize("case", LANGUAGE_LOCALITY, ids=ids(LANGUAGE_LOCALITY))
def test_locality_over_answer_positions_is_its_definition_in_float64(case: GoldenCase):
    base, edited, _ = before_and_after(case)
    is_answer = case.tensors["labels"][:, 1:] != NOT_SCORED
    is_text = torch.ones_like(is_answer)
    scores = locality(base[:, :-1], edited[:, :-1], is_text=is_text, is_answer=is_answer)
    wanted = case.facts["numpy_float64"]
    first, overlap = scores.top1_answer, scores.top10_set_answer
    assert first.tolist() == pytest.approx(wanted["top1_answer_only_per_row"], abs=2e-6)
    assert overlap.tolist() == pytest.approx(
        wanted["top10_set_overlap_answer_only_per_row"], abs=2e-6
    )
    assert pooled(first, is_answer.sum(-1)) == pytest.approx(wanted["top1_answer_only"], abs=2e-6)
    assert pooled(overlap, is_answer.sum(-1)) == pytest.approx(
        wanted["top10_set_overlap_answer_only"], abs=2e-6
    )


# Properties: what holds for any batch


class Batch:
    """Random logits before and after an edit that moves half of them; every row has an answer."""

    def __init__(self, seed: int, batch: int, text: int, vocab: int) -> None:
        random = torch.Generator().manual_seed(seed)
        shape = (batch, text, vocab)
        # Distinct, and exact in half precision: no score then depends on how ties are broken.
        self.base = torch.rand(shape, generator=random).argsort(-1).float() / 4
        noise = torch.rand(shape, generator=random).argsort(-1).float() / 4
        unmoved = torch.rand((batch, text, 1), generator=random) < 0.5
        self.edited = torch.where(unmoved, self.base, noise)
        best_or_worst = torch.rand((batch, text), generator=random) < 0.7
        tokens = torch.where(best_or_worst, self.base.argmax(-1), self.base.argmin(-1))
        is_answer = torch.rand((batch, text), generator=random) < 0.5
        is_answer[torch.arange(batch), torch.randint(1, text, (batch,), generator=random)] = True
        self.labels = tokens.where(is_answer, NOT_SCORED)
        self.is_text = is_answer | (torch.rand((batch, text), generator=random) < 0.5)

    @property
    def is_answer(self) -> Tensor:
        return self.labels != NOT_SCORED

    def scores(self, *, shift: bool = False) -> MulticlassLogProbs:
        return multiclass_log_probs(self.base, self.labels, shift=shift)

    def locality(self) -> LocalityScores:
        return locality(self.base, self.edited, is_text=self.is_text, is_answer=self.is_answer)


batches = st.builds(
    Batch,
    seed=st.integers(0, 2**31),
    batch=st.integers(1, 5),
    text=st.integers(2, 9),
    vocab=st.integers(2, 40),
)


Scores = TypeVar("Scores", MulticlassLogProbs, LocalityScores)


LARGEST = torch.tensor([40 / 4] * 40)
"""Logits as large, and as many, as the largest of a `Batch`."""


def assert_same(found: Scores, wanted: Scores, rows: Tensor | slice = slice(None)) -> None:
    for field in fields(wanted):
        torch.testing.assert_close(
            getattr(found, field.name),
            getattr(wanted, field.name)[rows],
            rtol=score_rounding(LARGEST),
            atol=score_rounding(LARGEST),
            msg=lambda text, name=field.name: f"{name}: {text}",
        )


@seeded
@given(batches, st.booleans())
def test_a_sequence_scores_the_same_alone_as_in_a_batch(batch: Batch, shift: bool):
    scores, moved = batch.scores(shift=shift), batch.locality()
    for row in range(len(batch.labels)):
        one = slice(row, row + 1)
        alone = multiclass_log_probs(batch.base[one], batch.labels[one], shift=shift)
        assert_same(alone, scores, one)
        masks = {"is_text": batch.is_text[one], "is_answer": batch.is_answer[one]}
        assert_same(locality(batch.base[one], batch.edited[one], **masks), moved, one)


@pytest.mark.parametrize("side", ["left", "right"])
@seeded
@given(batch=batches, padding=st.integers(1, 6), shift=st.booleans())
def test_padding_changes_no_score(side: str, batch: Batch, padding: int, shift: bool):
    assume(side == "right" or not shift)  # a first token that nothing predicts would get something
    pad = torch.nn.functional.pad
    around = (padding, 0) if side == "left" else (0, padding)
    base = pad(batch.base, (0, 0, *around), value=7.0)
    edited = pad(batch.edited, (0, 0, *around), value=-3.0)
    labels = pad(batch.labels, around, value=NOT_SCORED)
    masks = {
        "is_text": pad(batch.is_text, around, value=False),
        "is_answer": labels != NOT_SCORED,
    }
    assert_same(multiclass_log_probs(base, labels, shift=shift), batch.scores(shift=shift))
    assert_same(locality(base, edited, **masks), batch.locality())


@seeded
@given(batches, st.randoms(use_true_random=False))
def test_scores_follow_their_sequences_when_rows_change_places(batch: Batch, random):
    order = torch.tensor(random.sample(range(len(batch.labels)), len(batch.labels)))
    assert_same(multiclass_log_probs(batch.base[order], batch.labels[order]), batch.scores(), order)
    masks = {"is_text": batch.is_text[order], "is_answer": batch.is_answer[order]}
    assert_same(locality(batch.base[order], batch.edited[order], **masks), batch.locality(), order)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@seeded
@given(batch=batches)
def test_half_precision_logits_are_scored_in_float32(dtype: torch.dtype, batch: Batch):
    base, edited = batch.base.to(dtype), batch.edited.to(dtype)
    scores = multiclass_log_probs(base, batch.labels)
    moved = locality(base, edited, is_text=batch.is_text, is_answer=batch.is_answer)
    assert_same(scores, batch.scores())
    assert_same(moved, batch.locality())
    assert scores.log_prob.dtype == scores.nll.dtype == moved.kl.dtype == torch.float32


@seeded
@given(batches)
def test_each_score_is_also_a_function_of_its_own(batch: Batch):
    scores, target, mask = batch.scores(), batch.labels, batch.is_answer
    same = torch.testing.assert_close
    same(token_accuracy(batch.base, target, mask), scores.token_accuracy)
    same(exact_match(batch.base, target, mask), scores.exact_match)
    same(answer_log_prob(batch.base, target, mask), scores.log_prob)
    same(answer_nll(batch.base, target, mask), -scores.log_prob / scores.n_tokens)
    moved, pair = batch.locality(), (batch.base, batch.edited)
    same(top1(*pair, mask), moved.top1_answer)
    same(exact(*pair, mask), moved.exact_answer)
    same(top1(*pair, batch.is_text), moved.top1_all)
    same(topk_ordered(*pair, batch.is_text), moved.top10_ordered_all)
    same(topk_set(*pair, mask), moved.top10_set_answer)
    same(kl(*pair, mask), moved.kl)


@seeded
@given(batches)
def test_exact_match_is_1_only_where_every_token_is_right(batch: Batch):
    scores, moved = batch.scores(), batch.locality()
    wrong = (batch.base.argmax(-1) != batch.labels) & batch.is_answer
    assert scores.exact_match.tolist() == (~wrong.any(-1)).float().tolist()
    assert torch.equal(scores.exact_match == 1, scores.token_accuracy == 1)
    assert torch.equal(moved.exact_answer == 1, moved.top1_answer == 1)


@seeded
@given(batches)
def test_an_edit_that_changes_nothing_is_perfectly_local(batch: Batch):
    masks = {"is_text": batch.is_text, "is_answer": batch.is_answer}
    moved = locality(batch.base, batch.base.clone(), **masks)
    for field in fields(moved):
        wanted = 0.0 if field.name == "kl" else 1.0
        assert getattr(moved, field.name).tolist() == [wanted] * len(batch.labels)


@seeded
@given(batches)
def test_two_dimensional_logits_are_one_position_per_row(batch: Batch):
    logits, labels = batch.base[:, 0], batch.base[:, 0].argmin(-1)
    for shift in (False, True):
        flat = multiclass_log_probs(logits, labels, shift=shift)
        assert_same(flat, multiclass_log_probs(logits[:, None], labels[:, None]))


@seeded
@given(batches)
def test_logits_outside_the_answer_are_never_read(batch: Batch):
    logits = batch.base.masked_fill(~batch.is_answer[..., None], math.nan).requires_grad_()
    assert_same(multiclass_log_probs(logits.detach(), batch.labels), batch.scores())
    answer_nll(logits, batch.labels, batch.is_answer).sum().backward()
    assert logits.grad is not None
    assert logits.grad[~batch.is_answer].eq(0).all()
    assert logits.grad[batch.is_answer].isfinite().all()


# Gradients and infinities


def test_gradient_of_the_answer_nll_is_prediction_minus_target_over_the_answer_length():
    batch = Batch(seed=1, batch=3, text=6, vocab=11)
    logits = batch.base.double().requires_grad_()
    (gradient,) = torch.autograd.grad(
        answer_nll(logits, batch.labels, batch.is_answer).sum(), logits
    )
    one_hot = torch.nn.functional.one_hot(batch.labels.clamp_min(0), 11)
    lengths = batch.is_answer.sum(-1)[:, None, None]
    wanted = (logits.softmax(-1) - one_hot) * batch.is_answer[..., None] / lengths
    torch.testing.assert_close(gradient, wanted)


def test_gradient_of_kl_is_edited_minus_base_over_the_number_of_positions():
    batch = Batch(seed=2, batch=3, text=6, vocab=11)
    base, edited = batch.base.double(), batch.edited.double().requires_grad_()
    (gradient,) = torch.autograd.grad(kl(base, edited, batch.is_text).sum(), edited)
    lengths = batch.is_text.sum(-1)[:, None, None]
    wanted = (edited.softmax(-1) - base.softmax(-1)) * batch.is_text[..., None] / lengths
    torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize("edited_logit", [-math.inf, 0.0, 80.0])
def test_a_token_that_the_base_rules_out_adds_nothing_to_kl(edited_logit: float):
    base = torch.tensor([[[1.0, 2.0, -math.inf]]])
    edited = torch.tensor([[[2.0, 2.0, edited_logit]]], requires_grad=True)
    divergence = kl(base, edited, torch.tensor([[True]]))
    p, log_q = base.double().softmax(-1)[0, 0, :2], edited.double().log_softmax(-1)[0, 0, :2]
    assert divergence.item() == pytest.approx((p * (p.log() - log_q)).sum().item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(divergence.sum(), edited)
    assert gradient.isfinite().all()


def test_a_token_that_only_the_edit_rules_out_makes_kl_infinite():
    base, edited = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[1.0, -math.inf]]])
    assert kl(base, edited, torch.tensor([[True]])).item() == math.inf


# Ranks


def test_a_newcomer_at_rank_1_moves_every_rank_but_one_token_of_the_set():
    base = torch.arange(20.0, 0.0, -1.0)[None, None]
    edited = base.clone()
    edited[..., 15] = 30.0
    mask = torch.tensor([[True]])
    assert topk_ordered(base, edited, mask).item() == 0
    assert topk_set(base, edited, mask).item() == pytest.approx(0.9)
    assert topk_set(base, edited, mask, k=4).item() == pytest.approx(0.75)


def test_a_vocabulary_smaller_than_k_is_compared_whole():
    base, edited = torch.tensor([[[3.0, 2.0, 1.0, 0.0]]]), torch.tensor([[[3.0, 1.0, 2.0, 0.0]]])
    mask = torch.tensor([[True]])
    assert topk_ordered(base, edited, mask, k=10).item() == 0.5
    assert topk_set(base, edited, mask, k=10).item() == 1


# What is refused


def test_rows_without_answer_are_named():
    labels = torch.tensor([[-100, 1], [-100, -100], [2, -100]])
    logits = torch.zeros(3, 2, 4)
    with pytest.raises(EmptyAnswerError, match="no token to score in rows 1 of 3; give them an"):
        multiclass_log_probs(logits, labels)
    with pytest.raises(EmptyAnswerError, match="rows 1, 2 of 3"):
        multiclass_log_probs(logits, labels, shift=True)


@pytest.mark.parametrize("score", [token_accuracy, exact_match, answer_log_prob, answer_nll])
def test_teacher_forced_scores_refuse_rows_without_token(score):
    with pytest.raises(EmptyAnswerError, match="rows 0 of 1"):
        score(torch.zeros(1, 2, 3), torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, 2).bool())


@pytest.mark.parametrize("score", [top1, exact, topk_ordered, topk_set, kl])
def test_locality_scores_refuse_rows_without_position(score):
    mask = torch.tensor([[True, False], [False, False]])
    with pytest.raises(EmptyAnswerError, match="rows 1 of 2"):
        score(torch.zeros(2, 2, 3), torch.zeros(2, 2, 3), mask)


def test_locality_refuses_rows_without_text_or_without_answer():
    logits, some, none = torch.zeros(1, 2, 3), torch.ones(1, 2).bool(), torch.zeros(1, 2).bool()
    for is_text, is_answer in ((none, some), (some, none)):
        with pytest.raises(EmptyAnswerError):
            locality(logits, logits, is_text=is_text, is_answer=is_answer)


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        ([2, 3, 5], [2, 4]),
        ([2, 3, 5], [3, 2]),
        ([2, 3, 5], [2]),
        ([2, 5], [2, 1]),
        ([2, 5], [5]),
        ([5], []),
        ([2, 3, 4, 5], [2, 3, 4]),
        ([0, 3, 5], [0, 3]),
    ],
)
def test_shapes_that_do_not_go_together_are_said_beside_the_wanted_ones(logits, labels):
    with pytest.raises(DataError) as error:
        multiclass_log_probs(torch.zeros(logits), torch.zeros(labels, dtype=torch.long))
    assert str(error.value) == (
        f"logits {logits} do not go with labels {labels}; expected logits [batch, text, vocab]"
        " with labels [batch, text], or [batch, vocab] with [batch]"
    )


@pytest.mark.parametrize("label", [4, -1])
def test_a_label_outside_the_vocabulary_is_named(label: int):
    with pytest.raises(DataError, match=f"label {label} is outside a vocabulary of 4 tokens; exp"):
        multiclass_log_probs(torch.zeros(1, 2, 4), torch.tensor([[0, label]]))


def test_a_mask_of_integers_is_refused():
    # DataError, or TypeError where the tests enforce annotations.
    with pytest.raises((DataError, TypeError), match=r"bool|Bool"):
        require_tokens(torch.ones(1, 2, dtype=torch.long))
