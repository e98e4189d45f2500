"""T-Patcher: when the search for an edit ends, and the faults of the published port."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmedit.cases import EditCase, Example, Probe
from mmedit.datasets.easyvqa import cases as easyvqa
from mmedit.editors.fitting import Fitting
from mmedit.errors import ConfigError, DataError, EditorError
from mmedit.methods.tpatcher import TPatcher, TPatcherConfig
from mmedit.methods.tpatcher.patch import Patch, Queries, find_patch, queries_of
from mmedit.methods.tpatcher.port import nll_at_the_end
from mmedit.neurons import Neurons
from mmedit.settings import validate_set
from mmedit.vlm.network import NetworkVLM
from mmedit.vlm.outputs import Predictions

FITTED_AT_ONCE = 1e9
"""A stop_loss that the NLL of every answer is below."""


@pytest.fixture(scope="module")
def train_cases() -> list[EditCase]:
    return list(easyvqa.EasyVQA().load("train", limit=20))


@pytest.fixture(scope="module")
def requests_() -> list[Example]:
    return [case.request for case in easyvqa.EasyVQA().load("test", limit=3)]


@pytest.fixture(scope="module")
def faulty(vlm: NetworkVLM, train_cases: list[EditCase]) -> TPatcher:
    return TPatcher(small(paper_faults=True)).fit(vlm, Fitting(train_cases))


def small(**settings) -> TPatcherConfig:
    weights = {"a_weight": 1e-4, "m_weight": 1e-4, "weight_decay": 0.0}
    return TPatcherConfig(steps=5, **weights, **settings)


def searched(
    vlm: NetworkVLM, requests: list[Example], memory: Tensor, **settings
) -> tuple[Neurons, Neurons]:
    """The neurons of separate edits at the start, and those that are found."""
    config = TPatcherConfig(stop_loss=FITTED_AT_ONCE, neurons=1, **settings)
    block = config.block_of(vlm)
    queries = queries_of(vlm, requests, block.reads, neurons=1)
    start = Patch.start(queries, vlm.shape(block.site)[0]).neurons(vlm, block, separate=True)
    found = find_patch(vlm, requests, block, queries, memory, config, separate=True)
    return start, found


def own_queries(vlm: NetworkVLM, requests: list[Example]) -> Queries:
    return queries_of(vlm, requests, TPatcherConfig().block_of(vlm).reads, neurons=1)


def test_a_patch_of_small_nll_that_is_active_on_the_memory_goes_on(vlm, requests_):
    first, second = own_queries(vlm, requests_[:2]).x[:, 0]
    along = (first @ second) / second.square().sum()
    memory = (first - (along + 0.01) * second)[None]  # activates the first neuron alone
    start, found = searched(vlm, requests_[:2], memory, steps=3)
    active = start.activation(memory.expand(2, 1, -1)).flatten().tolist()
    assert active[0] > 0 > active[1]
    assert not torch.equal(found.key[0], start.key[0])
    assert found.value[0].any()
    for name in ("key", "bias", "value"):
        assert torch.equal(getattr(found, name)[1], getattr(start, name)[1])


def test_the_search_ends_where_the_memory_is_left_alone(vlm, requests_):
    query = own_queries(vlm, requests_[:1]).x[0]
    memory = query.flip(0, 1) + 0.5 * query
    start, found = searched(vlm, requests_[:1], memory, steps=200, lr=1e-2)
    again = searched(vlm, requests_[:1], memory, steps=400, lr=1e-2)[1]
    assert start.activation(memory[None]).max() > 0
    assert found.activation(memory[None]).max() <= 0
    assert torch.equal(again.key, found.key)  # so it ended before its last step


def test_with_paper_faults_an_edit_is_one_neuron(faulty, vlm, requests_):
    edited = faulty.apply_each(vlm, requests_)
    block = faulty.config.block_of(vlm)
    [(site, neurons)] = edited.deltas.items()
    assert site == block.site
    assert neurons.key.shape[:2] == (len(requests_), 1)
    assert neurons.value.any()


def test_with_paper_faults_separate_edits_are_those_of_apply(faulty, vlm, requests_):
    together = faulty.apply_each(vlm, requests_).predict(requests_)
    for row, request in enumerate(requests_):
        alone = faulty.apply(vlm, [request]).predict([request])
        torch.testing.assert_close(
            together.logits[row][together.is_answer[row]],
            alone.logits[alone.is_answer],
            rtol=1e-4,
            atol=2e-4,
        )


def test_with_paper_faults_a_saved_editor_makes_the_same_edit(faulty, vlm, requests_, tmp_path):
    faulty.save(tmp_path / "editor")
    loaded = TPatcher.load(tmp_path / "editor")
    first = faulty.apply(vlm, requests_[:1]).predict(requests_).logits
    assert torch.equal(loaded.apply(vlm, requests_[:1]).predict(requests_).logits, first)


@pytest.mark.parametrize("notes", [{}, {"texts": []}, {"texts": [["", "a"]]}, {"texts": 3}])
def test_notes_without_texts_are_refused(faulty, notes):
    with pytest.raises(EditorError, match="paper_faults"):
        faulty.load_state({}, notes, faulty.origin)


def test_with_paper_faults_fitting_needs_questions_without_image(vlm, train_cases):
    bare = [EditCase(id=case.id, request=case.request) for case in train_cases[:2]]
    assert Probe.TEXT_LOCALITY in train_cases[0].probes
    with pytest.raises(DataError, match="text locality"):
        TPatcher(small(paper_faults=True)).fit(vlm, Fitting(bare))


def test_settings_that_paper_faults_turns_off_are_refused():
    with pytest.raises(ConfigError, match="neurons has no effect with paper_faults"):
        validate_set(TPatcherConfig, {}, {"paper_faults": True, "neurons": 2}, "here")


def test_the_answer_is_scored_on_the_last_logits_of_each_text():
    """Three texts of unequal length, the first of which has no prediction of its first token."""
    logits = torch.randn(3, 4, 7, generator=torch.Generator().manual_seed(0))
    is_text = torch.tensor([[0, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]).bool()
    own = torch.zeros(3, 4, dtype=torch.long)
    predictions = Predictions(logits=logits, target=own, is_text=is_text, is_answer=is_text)
    target = torch.tensor([[1, 2], [3, 0], [4, 5]])
    is_answer = torch.tensor([[1, 1], [1, 0], [1, 1]]).bool()
    found = nll_at_the_end(predictions, target, is_answer)
    log_probs = logits.log_softmax(-1)
    first = -(log_probs[0, 2, 1] + log_probs[0, 3, 2]) / 2
    shorter = -log_probs[2, 0, 5]  # room for the answer's last token alone
    expected = torch.stack([first, -log_probs[1, 1, 3], shorter])
    torch.testing.assert_close(found, expected)
