"""SERAC against the published code (golden kind `serac`)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from golden_files import GoldenCase, golden_cases
from golden_vlm import golden_vlm

from mmedit.cases import Example
from mmedit.methods.serac import memory
from mmedit.methods.serac.memory import SERACVLM, Memory
from mmedit.methods.serac.similarity import Distance, classification_loss, log_similarity, mix
from mmedit.vlm.outputs import Predictions

CASES = golden_cases("serac")
SIMILARITIES = [case for case in CASES if case.name.startswith("similarity")]
SOFT = [case for case in CASES if case.facts.get("mode") == "soft"]
HARD = [case for case in CASES if case.facts.get("mode") == "hard"]
LOSSES = [case for case in CASES if case.name.startswith("classification_loss")]
BINARY = [case for case in CASES if "binary" in case.facts.get("mode", "")]
"""Knowingly not ours: mmedit has no yes-or-no classifier."""


def ids(cases: list[GoldenCase]) -> list[str]:
    return [case.name for case in cases]


def settings_of(case: GoldenCase) -> dict[str, object]:
    facts = case.facts
    return {
        "distance": cast("Distance", facts["distance"]),
        "heads": facts["heads"],
        "bound": facts["bound_embeds_tanh"],
        "scale": facts["scale"],
    }


def test_every_golden_case_is_tested_or_knowingly_left_out():
    tested = [*SIMILARITIES, *SOFT, *HARD, *LOSSES]
    assert {case.name for case in CASES} == {case.name for case in [*tested, *BINARY]}
    assert all((SIMILARITIES, SOFT, HARD, LOSSES))


@pytest.mark.parametrize("case", SIMILARITIES, ids=ids(SIMILARITIES))
def test_similarities_are_those_of_the_published_code(case: GoldenCase):
    tests, cache = case.tensors["test_embeddings"], case.tensors["cache_embeddings"]
    found = log_similarity(tests, cache, **settings_of(case))  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(found, case.tensors["log_similarity"], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.exp(), case.tensors["similarity"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", SIMILARITIES, ids=ids(SIMILARITIES))
def test_nearest_cached_edits_are_those_of_the_published_code(case: GoldenCase):
    keys = case.tensors["cache_embeddings"]
    edits = tuple(Example(prompt=str(number), target="a") for number in range(len(keys)))
    scores, nearest = Memory(edits=edits, keys=keys).nearest(
        case.tensors["test_embeddings"], settings_of(case)
    )
    torch.testing.assert_close(scores, case.tensors["scope_score"], rtol=0, atol=1e-6)
    assert torch.equal(nearest, case.tensors["scope_index"])


@pytest.mark.parametrize("case", SOFT, ids=ids(SOFT))
def test_soft_mixtures_are_those_of_the_published_code(case: GoldenCase):
    base, other = case.tensors["base_logits"], case.tensors["counterfactual_logits"]
    found = mix(base, other[:, -base.shape[1] :], case.tensors["scope_score"])
    torch.testing.assert_close(found, case.tensors["output_logits"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", HARD, ids=ids(HARD))
def test_in_use_the_published_threshold_chooses_between_the_two_models(
    case: GoldenCase, monkeypatch: pytest.MonkeyPatch
):
    base, other, score = (
        case.tensors[name] for name in ("base_logits", "counterfactual_logits", "scope_score")
    )
    rows, text, _ = base.shape
    asked = [Example(prompt=str(row), target="a") for row in range(rows)]
    everywhere = torch.ones(rows, text, dtype=torch.bool)
    predictions = Predictions(
        logits=base, target=torch.zeros(rows, text, dtype=torch.long),
        is_text=everywhere, is_answer=everywhere,
    )  # fmt: skip
    network = SimpleNamespace(
        # exp(-d²) to the one edit, which lies at 0, is the golden score
        scope=lambda examples, frozen: (-score.clamp(min=1e-30).log()).sqrt().unsqueeze(1),
        similarity={},
        counterfactual=lambda chosen, frozen, answers_only: torch.cat(
            [other[[int(e.prompt) for e in chosen]], torch.zeros(len(chosen), 1, base.shape[2])], 1
        ),
    )
    monkeypatch.setattr(memory, "make_inputs", lambda edits, examples, frozen: examples)
    inner = golden_vlm()
    monkeypatch.setattr(inner, "predict", lambda examples, answers_only: predictions)
    one_edit = Memory(edits=(asked[0],), keys=torch.zeros(1, 1))
    vlm = SERACVLM(inner, cast("Any", network), one_edit, threshold=0.5)
    assert torch.equal(vlm.predict(asked).logits, case.tensors["output_logits"])


@pytest.mark.parametrize("case", LOSSES, ids=ids(LOSSES))
def test_classification_losses_are_those_of_the_published_code(case: GoldenCase):
    found = classification_loss(case.tensors["log_similarity"], case.tensors["labels"].bool())
    torch.testing.assert_close(found, case.tensors["loss"], rtol=2e-6, atol=2e-6)
