"""FT against the published code: EasyEdit's `execute_ft` and ROME's FT-L (golden kind `ft`)."""

from __future__ import annotations

import pytest
import torch
from golden_files import GoldenCase, golden_cases
from golden_vlm import PAD, as_text, examples_of, golden_vlm, site_of
from torch import Tensor

from mmedit.cases import Example
from mmedit.methods.ft import FT, FTConfig, prompt_last_nll
from mmedit.metrics.multiclass_log_probs import answer_nll
from mmedit.vlm.interface import VLM
from mmedit.vlm.network import NetworkVLM

CASES = golden_cases("ft")


def scores_padding(case: GoldenCase) -> bool:
    """Ragged targets: the reference takes the pad ids behind the shorter ones for target tokens."""
    return "target_ids" in case.tensors and bool((case.tensors["target_ids"] == PAD).any())


OURS = [case for case in CASES if not scores_padding(case)]
KNOWINGLY_DIFFERENT = [case for case in CASES if scores_padding(case)]


def ids(cases: list[GoldenCase]) -> list[str]:
    told = ("name", "objective", "optimizer", "description")
    return [" ".join(case.facts[key] for key in told) for case in cases]


def rows_of(case: GoldenCase, *, padding_is_target: bool = False) -> list[Example]:
    """The case's requests; `prompt_last` cases hold prompts and targets apart."""
    if case.facts["objective"] == "target_new":
        return examples_of(case.tensors)
    prompts = zip(case.tensors["input_ids"], case.tensors["attention_mask"].bool(), strict=True)
    return [
        Example(
            prompt=as_text(prompt[mask]),
            target=as_text(target if padding_is_target else target[target != PAD]),
        )
        for (prompt, mask), target in zip(prompts, case.tensors["target_ids"], strict=True)
    ]


def config_of(case: GoldenCase, *, steps: int | None = None) -> FTConfig:
    facts = case.facts
    assert (facts["betas"], facts["eps"]) == ([0.9, 0.999], 1e-8), "only torch's defaults are ours"
    return FTConfig(
        sites=tuple(map(site_of, facts["edited"])),
        objective=facts["objective"],
        optimizer=facts["optimizer"].lower(),
        steps=steps or facts["steps"],
        lr=facts["lr"],
        weight_decay=facts["weight_decay"],
        norm_constraint=facts["norm_constraint"],
    )


def vlm_of(case: GoldenCase) -> NetworkVLM:
    return golden_vlm(padding_side=case.facts["padding_side"])


def loss_of(case: GoldenCase, vlm: VLM, rows: list[Example]) -> Tensor:
    predictions = vlm.predict(rows)
    if case.facts["objective"] == "prompt_last":
        return prompt_last_nll(predictions).mean()
    return answer_nll(predictions.logits, predictions.target, predictions.is_answer).mean()


def is_close(found: Tensor, wanted: Tensor) -> bool:
    """The golden tolerance. Where a gradient is near zero Adam can turn rounding into a step."""
    away = found - wanted
    if away.abs().max() <= 5e-6:
        return True
    return bool(away.abs().max() <= 4e-4 and away.square().mean().sqrt() <= 1e-6)


def test_every_golden_objective_and_optimizer_is_covered():
    kinds = {(case.facts["objective"], case.facts["optimizer"]) for case in OURS}
    assert kinds == {(o, a) for o in ("target_new", "prompt_last") for a in ("Adam", "AdamW")}
    assert any(case.facts["norm_constraint"] for case in OURS)
    assert any(case.facts["weight_decay"] for case in OURS)
    assert any(len(case.tensors["input_ids"]) > 1 for case in OURS)


@pytest.mark.parametrize("case", OURS, ids=ids(OURS))
def test_weights_are_those_of_the_published_code(case: GoldenCase):
    vlm = vlm_of(case)
    edited = FT(config_of(case)).apply(vlm, rows_of(case))
    for name in case.facts["edited"]:
        wanted = case.tensors[f"final.{name}"]
        assert not is_close(
            vlm.weight(site_of(name)), wanted
        )  # the edit is larger than the tolerance
        assert is_close(edited.weight(site_of(name)), wanted), name


@pytest.mark.parametrize("case", OURS, ids=ids(OURS))
def test_loss_before_every_step_is_that_of_the_published_code(case: GoldenCase):
    vlm, rows = vlm_of(case), rows_of(case)
    after = [
        FT(config_of(case, steps=done)).apply(vlm, rows) for done in range(1, case.facts["steps"])
    ]
    losses = [loss_of(case, now, rows).item() for now in (vlm, *after)]
    assert losses == pytest.approx(case.facts["loss_per_step"], abs=1e-5)
    assert losses == pytest.approx(case.tensors["loss_per_step"].tolist(), abs=1e-5)


@pytest.mark.parametrize("case", OURS, ids=ids(OURS))
def test_no_weight_moves_further_than_the_norm_constraint(case: GoldenCase):
    limit = (
        case.facts["norm_constraint"] or case.facts["lr"]
    )  # a limit that binds, where the case has none
    config = config_of(case).model_copy(update={"norm_constraint": limit})
    vlm = vlm_of(case)
    edited = FT(config).apply(vlm, rows_of(case))
    moved = [(edited.weight(site) - vlm.weight(site)).abs().max().item() for site in config.sites]
    assert max(moved) == pytest.approx(limit, rel=1e-3)


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_separate_edits_in_one_batch_are_those_done_one_by_one(case: GoldenCase, optimizer: str):
    """With weight decay, which weighs against the gradient: a row's must not shrink in a batch."""
    changed = {"optimizer": optimizer, "weight_decay": 0.01}
    vlm, rows, editor = vlm_of(case), rows_of(case), FT(config_of(case).model_copy(update=changed))
    together = editor.apply_each(vlm, rows)
    for number, row in enumerate(rows):
        alone = editor.apply(vlm, [row])
        for site in editor.config.sites:
            assert is_close(together.weight(site)[number], alone.weight(site))


WITH_ADAM = [case for case in OURS if case.facts["optimizer"] == "Adam"]


@pytest.mark.parametrize("case", WITH_ADAM, ids=ids(WITH_ADAM))
def test_request_given_twice_is_learnt_as_once(case: GoldenCase):
    """The loss is a mean over rows, which shows where weight decay weighs against the gradient."""
    vlm, rows, editor = vlm_of(case), rows_of(case), FT(config_of(case))
    once, twice = editor.apply(vlm, rows), editor.apply(vlm, rows * 2)
    for site in editor.config.sites:
        assert is_close(twice.weight(site), once.weight(site))


@pytest.mark.parametrize("case", KNOWINGLY_DIFFERENT, ids=ids(KNOWINGLY_DIFFERENT))
def test_padding_behind_a_short_target_is_not_learnt_as_the_published_code_does(case: GoldenCase):
    """It would teach the model to answer with pad ids, and depend on the neighbours' targets."""
    vlm, editor = vlm_of(case), FT(config_of(case))
    as_published, honest = rows_of(case, padding_is_target=True), rows_of(case)
    published = case.facts["loss_per_step"][0]

    assert loss_of(case, vlm, as_published).item() == pytest.approx(published, abs=1e-5)
    assert abs(loss_of(case, vlm, honest).item() - published) > 1e-3
    by_row = [loss_of(case, vlm, [row]) for row in honest]
    torch.testing.assert_close(loss_of(case, vlm, honest), torch.stack(by_row).mean())

    learnt = {
        way: editor.apply(vlm, rows) for way, rows in (("pad", as_published), ("own", honest))
    }
    for name in case.facts["edited"]:
        wanted = case.tensors[f"final.{name}"]
        assert is_close(
            learnt["pad"].weight(site_of(name)), wanted
        )  # the pad ids are the only difference
        assert not is_close(learnt["own"].weight(site_of(name)), wanted)
