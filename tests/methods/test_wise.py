"""WISE: side memories, and the decision which of them answers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mmedit.cases import EditCase, Probe
from mmedit.datasets.easyvqa import cases as easyvqa
from mmedit.editors.chosen import NOTHING, Chosen
from mmedit.editors.entries import Entries
from mmedit.editors.fitting import Fitting
from mmedit.editors.memory import MemoryVLM
from mmedit.errors import DataError, EditError, EditorError, SiteError
from mmedit.methods.wise import WISE, WISEConfig, irrelevant_prompts
from mmedit.methods.wise.distance import read
from mmedit.methods.wise.memories import Rules, added_up, taken_in, taken_in_each
from mmedit.vlm.network import NetworkVLM

RULES = Rules(save_freq=2, merge_freq=4, density=0.5, retrieve=True)


@pytest.fixture(scope="module")
def train_cases() -> list[EditCase]:
    return list(easyvqa.EasyVQA().load("train", limit=20))


@pytest.fixture(scope="module")
def cases() -> list[EditCase]:
    return list(easyvqa.EasyVQA().load("test", limit=5))


@pytest.fixture(scope="module")
def editor(vlm: NetworkVLM, train_cases: list[EditCase]) -> WISE:
    return WISE(small()).fit(vlm, Fitting(train_cases))


def small(**settings) -> WISEConfig:
    return WISEConfig(**{"layer": 2, "steps": 6, "save_freq": 2, "merge_freq": 4, **settings})


def opened(vlm) -> MemoryVLM:
    assert isinstance(vlm, MemoryVLM)
    return vlm


def stored(number: int, *, seed: int = 0) -> dict[str, Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    return {
        "change": torch.randn(number, 4, 6, generator=drawn),
        "activation": torch.rand(number, generator=drawn),
        "edits": torch.ones(number, dtype=torch.long),
    }


def same(found: Entries, expected: Entries) -> None:
    assert found.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        assert torch.equal(found[name], tensor), name


def rows(of: dict[str, Tensor], start: int, end: int) -> dict[str, Tensor]:
    return {name: tensor[start:end] for name, tensor in of.items()}


def test_each_row_gets_its_own_matrix_and_nothing_for_none():
    changes, x = torch.randn(3, 4, 6), torch.randn(4, 2, 6)
    delta = Chosen(changes, torch.tensor([2, NOTHING, 0, 2]))
    expected = torch.stack(
        [x[0] @ changes[2].T, 0 * x[1, :, :4], x[2] @ changes[0].T, x[3] @ changes[2].T]
    )
    torch.testing.assert_close(delta(x), expected)
    torch.testing.assert_close(delta.select([3, 1])(x[[3, 1]]), expected[[3, 1]])
    with pytest.raises(SiteError, match="chosen for each question"):
        delta.weight()


def test_edits_go_on_from_the_open_memory_until_it_is_full():
    edits = stored(3)
    found = taken_in(Entries(tensors={}), edits, RULES)
    assert found["edits"].tolist() == [2, 1]
    torch.testing.assert_close(found["change"][0], edits["change"][0] + edits["change"][1])
    assert torch.equal(found["change"][1], edits["change"][2])
    assert found["activation"][0] == edits["activation"][:2].min()


@pytest.mark.parametrize(("retrieve", "memories"), [(True, [4, 4]), (False, [8])])
def test_full_memories_are_merged_and_stay_apart_if_they_are_to_be_retrieved(retrieve, memories):
    rules = RULES._replace(retrieve=retrieve)
    found = taken_in(Entries(tensors={}), stored(8), rules)
    assert found["edits"].tolist() == memories
    assert found["merged"].all()


@pytest.mark.parametrize("before", range(8))
def test_separate_edits_are_as_each_alone_also_where_memories_are_merged(before: int):
    past = (
        taken_in(Entries(tensors={}), stored(before, seed=1), RULES)
        if before
        else Entries(tensors={})
    )
    edits = stored(3)
    each = taken_in_each(past, edits, RULES)
    for row in range(3):
        alone = taken_in(past, rows(edits, row, row + 1), RULES)
        seen = each.seen_by(3)[row]
        same(Entries(tensors={n: t[seen] for n, t in each.tensors.items()}), alone)


def test_added_up_edits_give_the_same_memories():
    edits = stored(7)
    together = rows(edits, 0, 1)
    for edit in range(1, 7):
        together = added_up(together, rows(edits, edit, edit + 1), RULES)
    assert together["edits"].tolist() == [2, 2, 2, 1]
    same(
        taken_in(Entries(tensors={}), together, RULES), taken_in(Entries(tensors={}), edits, RULES)
    )


def test_a_merged_sequence_holds_few_matrices_and_answers_the_same(editor, vlm, cases):
    one_by_one = long = vlm
    for case in cases:
        one_by_one = editor.apply(one_by_one, [case.request])
        long = editor.apply(long, [case.request]).merged()
    assert len(one_by_one.edits) == 5
    (edit,) = long.edits
    assert len(edit.requests) == 5
    assert len(edit.change.tensors()["change"]) == 3
    same(opened(long).entries, opened(one_by_one).entries)
    same(opened(vlm.with_edit(edit)).entries, opened(long).entries)


def test_an_edit_taken_out_leaves_the_memories_of_the_others(editor, vlm, cases):
    two = editor.apply(editor.apply(vlm, [cases[0].request]), [cases[1].request])
    left = opened(two.without(two.edits[0].name))
    same(left.entries, opened(vlm.with_edit(two.edits[1])).entries)


def test_only_a_share_of_the_entries_changes(vlm, train_cases, cases):
    editor = WISE(small(mask_ratio=0.1)).fit(vlm, Fitting(train_cases))
    change = opened(editor.apply(vlm, [cases[0].request])).entries["change"]
    assert 0 < (change != 0).float().mean() < 0.12


def test_requests_of_one_edit_share_a_memory(editor, vlm, cases):
    edited = opened(editor.apply(vlm, [case.request for case in cases[:2]]))
    assert edited.entries["edits"].tolist() == [2]
    assert (edited.editor.choose(vlm, edited.entries, [c.request for c in cases[:2]])) != {}


def test_distances_are_read_at_the_text_of_the_prompt_alone(vlm, cases):
    request = cases[0].request
    site = small().site_in(vlm)
    longer = replace(request, target="quite another answer")
    for found in (read(vlm, [request], site), read(vlm, [longer, cases[1].request], site)):
        tokens = int(found.counts[0, 0].sum())
        assert tokens == int(vlm.places([request]).is_prompt.sum())
    torch.testing.assert_close(
        read(vlm, [request], site).x[0, 0],
        read(vlm, [longer, cases[1].request], site).x[0, 0, :tokens],
        rtol=0,
        atol=1e-4,
    )
    whole = read(vlm, [request], site, all_tokens=True).counts.sum()
    assert whole > tokens


def test_irrelevant_prompts_are_those_of_the_training_cases(editor, vlm, train_cases, cases):
    asked = irrelevant_prompts(train_cases)
    assert len(asked) == len(train_cases) * 2
    bare = [EditCase(id=case.id, request=case.request) for case in train_cases]
    assert irrelevant_prompts(bare) == [case.request for case in train_cases]
    change = [
        editor.edit(vlm, [case.request]).change.tensors()["change"]
        for case in (cases[0], without_locality(cases[0]))
    ]
    assert torch.equal(*change)
    with pytest.raises(DataError, match="training cases"):
        WISE(small()).fit(vlm, Fitting([]))


def without_locality(case: EditCase) -> EditCase:
    probes = {p: e for p, e in case.probes.items() if not p.is_locality}
    return EditCase(id=case.id, request=case.request, probes=probes)


def test_unrelated_questions_are_answered_as_before(vlm, train_cases, cases):
    editor = WISE(small(steps=15, irrelevant=32)).fit(vlm, Fitting(train_cases))
    edited = opened(editor.apply(vlm, [cases[0].request]))
    asked = [case.probes[Probe.TEXT_LOCALITY][0] for case in cases]
    (delta,) = edited.chosen([cases[0].request, *asked]).values()
    assert isinstance(delta, Chosen)
    assert delta.of_row.tolist() == [0] + [NOTHING] * len(asked)
    before, after = (one.predict(asked).logits for one in (vlm, edited))
    assert torch.equal(before, after)


def test_the_published_faults_change_another_layer_before_any_training(vlm, train_cases, cases):
    request, fitted = cases[0].request, Fitting(train_cases)
    right, faulty = (
        WISE(small(paper_faults=faults)).fit(vlm, fitted).side(
            vlm, Entries(tensors={}), [request], apart=False
        )
        for faults in (False, True)
    )  # fmt: skip
    nothing = torch.zeros(1, *vlm.shape(right.site))
    assert right.activation(nothing).item() == 0
    assert faulty.activation(nothing).item() > 0
    bias = vlm.adapter.network.get_submodule(right.site).bias
    torch.testing.assert_close(faulty.dropped_bias, bias, rtol=0, atol=1e-5)
    assert not torch.allclose(right.losses(nothing).nll, faulty.losses(nothing).nll)


def test_separate_edits_are_followed_by_none(editor, vlm, cases):
    each = editor.apply_each(vlm, [case.request for case in cases[:2]])
    with pytest.raises(EditError, match="one after the other"):
        editor.apply(each, [cases[2].request])


def test_settings_that_do_not_go_together_are_refused(vlm):
    with pytest.raises(ValueError, match="merge_freq that is not smaller"):
        WISEConfig(save_freq=10, merge_freq=5)
    with pytest.raises(SiteError, match=r"layer is 9.*0 to 3"):
        WISEConfig(layer=9).site_in(vlm)
    site = "language_model.model.decoder.layers.1.fc1"
    assert WISEConfig(site=site).site_in(vlm) == site


def test_an_editor_of_other_tensors_is_refused(editor):
    tensors = editor.state()
    with pytest.raises(EditorError, match="expected x, y"):
        editor.load_state({"x": tensors["x"]}, {}, editor.origin)
    with pytest.raises(EditorError, match="not those of irrelevant prompts"):
        editor.load_state({**tensors, "counts": tensors["counts"].float()}, {}, editor.origin)


def test_the_activation_function_is_that_of_the_language_model(vlm):
    x = torch.linspace(-2, 2, 9)
    assert torch.equal(vlm.activation(x), x.relu())
