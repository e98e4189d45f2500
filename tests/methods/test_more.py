"""M-ORE and ScopeEdit beyond what every editor promises."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mmedit.cases import EditCase, Example, Probe
from mmedit.datasets.easyvqa import cases as easyvqa
from mmedit.deltas import LowRank
from mmedit.editors.fitting import Fitting
from mmedit.edits.loading import load_edit
from mmedit.errors import DataError, EditorError, SiteError
from mmedit.methods.more import MORE, MOREConfig
from mmedit.methods.more.prepared import Prepared
from mmedit.methods.more.readings import readings
from mmedit.methods.more.steps import group_of, orthonormal, projector_of
from mmedit.metrics.multiclass_log_probs import answer_nll
from mmedit.vlm.edit import DeltaChange, Edit
from mmedit.vlm.interface import VLM
from mmedit.vlm.network import NetworkVLM

LAYERS = "language_model.model.decoder.layers"
SITES = tuple(f"{LAYERS}.{layer}.{name}" for layer in (2, 3) for name in ("fc1", "fc2"))
BRIDGE = "qformer.encoder.layer.1.output_query.dense"
SMALL: dict[str, Any] = {"rank": 16, "alpha": 32, "lr": 0.05, "damping": 10.0, "steps": 2}
ITALY = Example(prompt="what is the capital of Italy?", target="Santo Domingo")


def more(**settings: Any) -> MORE:
    return MORE(MOREConfig.model_validate({"sites": SITES, **SMALL, **settings}))


@pytest.fixture(scope="module")
def train() -> list[EditCase]:
    return list(easyvqa.EasyVQA().load("train", limit=12))


@pytest.fixture(scope="module")
def requests_(train: list[EditCase]) -> list[Example]:
    return [train[0].request, ITALY, train[5].request]


def deltas_of(edit: Edit) -> dict[str, LowRank]:
    deltas = edit.change.deltas or {}
    return {site: delta for site, delta in deltas.items() if isinstance(delta, LowRank)}


def kept(edit: Edit, part: str, site: str) -> Tensor:
    assert isinstance(edit.change, DeltaChange)
    (rows,) = [r for name, r in edit.change.kept.items() if name.endswith(f".{part}.{site}")]
    return rows


def test_the_gradient_of_b_is_that_of_each_rows_loss(vlm, requests_):
    basis = orthonormal(16, vlm.shape(SITES[0])[1], 0)
    read = readings(vlm, requests_, {SITES[0]: basis}, keys="predicting", scale=2.0)
    b = torch.zeros(len(requests_), vlm.shape(SITES[0])[0], 16, requires_grad=True)
    delta = LowRank(2.0 * b.mT, basis.expand(len(requests_), -1, -1))
    said = vlm.with_deltas({SITES[0]: delta}).predict(requests_)
    nll = answer_nll(said.logits, said.target, said.is_answer)
    (gradient,) = torch.autograd.grad(nll.sum(), [b])
    torch.testing.assert_close(read[SITES[0]].gradient, gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("keys", "late"), [("predicting", 0), ("published", 1)])
def test_a_key_is_read_where_the_answer_is_predicted(vlm, requests_, keys, late):
    basis = orthonormal(16, vlm.shape(SITES[0])[1], 0)
    read = readings(vlm, requests_, {SITES[0]: basis}, keys=keys, scale=1.0)[SITES[0]]
    x, places = vlm.observe(requests_, SITES[:1]).x[SITES[0]], vlm.places(requests_)
    for row, first in enumerate(places.last_prompt.tolist()):
        number = int(places.is_answer[row].sum())
        mean = x[row, first + late : first + late + number].mean(0)
        torch.testing.assert_close(read.code[row], basis @ mean, rtol=1e-4, atol=1e-5)


def test_what_an_edit_keeps_says_its_p(vlm, requests_):
    editor = more(steps=3)
    written = editor._written(vlm, requests_[:1], editor._begun(vlm, edits=1))
    edit = editor.edit(vlm, requests_[:1])
    for site in SITES:
        keys = kept(edit, "private", site)
        assert keys.shape == (3, 16)
        projector = written[site].private.projector[0]
        torch.testing.assert_close(projector_of(keys, 10.0), projector, rtol=1e-4, atol=1e-5)


def test_edits_of_a_sequence_add_up_in_one_b(vlm, requests_):
    editor, edited = more(), vlm
    for request in requests_:
        edited = editor.apply(edited, [request])
    assert isinstance(edited, NetworkVLM)
    for site in SITES:
        total = edited.deltas[site]
        assert isinstance(total, LowRank)
        each = [deltas_of(edit)[site] for edit in edited.edits]
        torch.testing.assert_close(total.u, sum(delta.u for delta in each))
        assert total.u.shape[0] == 16


def test_requests_of_one_apply_are_written_one_after_the_other(vlm, requests_):
    editor = more()
    together, one = editor.edit(vlm, requests_[:2]), editor.apply(vlm, requests_[:1])
    second = editor.edit(one, requests_[1:2])
    for site in SITES:
        total = deltas_of(one.edits[0])[site].u + deltas_of(second)[site].u
        torch.testing.assert_close(deltas_of(together)[site].u, total, rtol=1e-3, atol=1e-5)
        rows = torch.cat([kept(edit, "private", site) for edit in (one.edits[0], second)])
        torch.testing.assert_close(kept(together, "private", site), rows, rtol=1e-3, atol=1e-5)


def test_a_direction_that_was_used_is_damped_for_the_next_edit(vlm, requests_):
    editor = more(damping=0.1)
    first = editor.apply(vlm, requests_[:1])
    forgetful = vlm.with_deltas(first.edits[0].deltas)
    for site in SITES:
        (key, *_) = kept(first.edits[0], "private", site)

        def moved(held: VLM, site: str = site, key: Tensor = key) -> float:
            change = deltas_of(editor.apply(held, requests_[2:]).edits[-1])[site]
            return float((key @ change.u).norm())

        assert moved(first) < 0.7 * moved(forgetful)


def test_the_state_of_a_sequence_is_saved_merged_and_taken_out_with_its_edits(
    vlm, requests_, tmp_path
):
    editor = more()
    first = editor.apply(vlm, requests_[:1])
    twice = editor.apply(first, requests_[1:2])
    twice.save(tmp_path / "two")
    loaded = vlm.with_edit(load_edit(tmp_path / "two"))
    assert_next_edit_is_equal(editor, loaded, twice, requests_[2])
    assert_next_edit_is_equal(editor, twice.merged(), twice, requests_[2], tolerance=1e-5)
    assert_next_edit_is_equal(editor, twice.without(twice.edits[1].name), first, requests_[2])


def assert_next_edit_is_equal(
    editor: MORE, one: Any, other: Any, request: Example, tolerance: float = 0.0
) -> None:
    found, expected = (deltas_of(editor.edit(held, [request])) for held in (one, other))
    for site in SITES:
        torch.testing.assert_close(found[site].u, expected[site].u, rtol=tolerance, atol=tolerance)


def test_separate_edits_after_a_sequence_equal_the_loop(vlm, requests_):
    editor = more()
    held = editor.apply(vlm, requests_[:1])
    together = editor.apply_each(held, requests_).predict(requests_)
    for row, request in enumerate(requests_):
        alone = editor.apply(held, [request]).predict([request])
        found = together.logits[row][together.is_answer[row]]
        torch.testing.assert_close(found, alone.logits[alone.is_answer], rtol=1e-4, atol=2e-4)


def test_a_step_writes_the_layers_with_the_largest_gradients(vlm, requests_):
    sites = (*SITES, BRIDGE)
    editor = more(sites=sites, top_k=1, steps=1)
    edit = editor.edit(vlm, requests_[:1])
    bases = {site: orthonormal(16, vlm.shape(site)[1], 0) for site in sites}
    read = readings(vlm, requests_[:1], bases, keys="predicting", scale=2.0)
    squares: dict[str, float] = {}
    for site in sites:
        norm = read[site].gradient.square().sum().item()
        squares[group_of(site)] = squares.get(group_of(site), 0.0) + norm
    assert len(squares) == 3
    best = max(squares, key=lambda group: squares[group])
    for site in sites:
        written = group_of(site) == best
        assert bool(deltas_of(edit)[site].u.any()) == written
        assert len(kept(edit, "private", site)) == int(written)


def test_the_key_of_the_bridge_is_its_mean_over_all_tokens(vlm, requests_):
    basis = orthonormal(16, vlm.shape(BRIDGE)[1], 0)
    images = [requests_[0], requests_[2]]
    read = readings(vlm, images, {BRIDGE: basis}, keys="predicting", scale=1.0)[BRIDGE]
    x = vlm.capture(images, [BRIDGE]).x[BRIDGE]
    torch.testing.assert_close(read.code, x.mean(1) @ basis.mT, rtol=1e-4, atol=1e-5)
    assert not read.image_code.any()


def test_locality_questions_of_training_cases_are_damped_before_the_first_edit(vlm, train):
    fitted = more(locality_keys=10, damping=0.1).fit(vlm, Fitting(train))
    request = train[11].request
    edits = [editor.edit(vlm, [request]) for editor in (fitted, more(damping=0.1))]
    for site in SITES:
        keys = fitted.learnt.keys[site]
        assert keys.shape == (10, 16)
        with_keys, without = ((keys @ deltas_of(edit)[site].u).norm() for edit in edits)
        assert with_keys < 0.5 * without


def test_locality_keys_need_cases_with_locality_questions(vlm, train):
    bare = [EditCase(id=case.id, request=case.request) for case in train]
    with pytest.raises(DataError, match="0 locality questions"):
        more(locality_keys=10).fit(vlm, Fitting(bare))
    with pytest.raises(DataError, match="none were given"):
        more(locality_keys=10).fit(vlm, Fitting([]))


def test_text_questions_give_the_bridge_no_locality_key(vlm, train):
    fitted = more(sites=(SITES[0], BRIDGE), locality_keys=12).fit(vlm, Fitting(train))
    questions = [
        question
        for case in train
        for probe in (Probe.TEXT_LOCALITY, Probe.IMAGE_LOCALITY)
        for question in case.probes[probe]
    ][:12]
    images = sum(question.image is not None for question in questions)
    assert 0 < images < 12
    counts = {site: len(keys) for site, keys in fitted.learnt.keys.items()}
    assert counts == {SITES[0]: 12, BRIDGE: images}


def test_a_basis_from_data_is_orthonormal_and_holds_more_of_the_inputs(vlm, train, tmp_path):
    fitted = more(basis="data").fit(vlm, Fitting(train))
    asked = [case.request for case in train]
    x = vlm.observe(asked, SITES[:1]).x[SITES[0]][vlm.places(asked).is_real]
    basis = fitted.learnt.bases[SITES[0]]
    torch.testing.assert_close(basis @ basis.mT, torch.eye(16), rtol=0, atol=1e-5)
    drawn = orthonormal(16, x.shape[-1], 0)
    assert (x @ basis.mT).norm() > 2 * (x @ drawn.mT).norm()
    fitted.save(tmp_path)
    assert torch.equal(MORE.load(tmp_path).learnt.bases[SITES[0]], basis)


def test_a_random_basis_is_orthonormal_and_follows_from_its_seed():
    first, again, other = (orthonormal(8, 20, seed) for seed in (1, 1, 2))
    orthonormal.cache_clear()
    assert torch.equal(first, again)
    assert torch.equal(orthonormal(8, 20, 1), first)
    assert not torch.allclose(first, other)
    torch.testing.assert_close(first @ first.mT, torch.eye(8), rtol=0, atol=1e-6)


def test_more_rows_than_inputs_are_refused_before_anything_is_measured(vlm):
    with pytest.raises(SiteError, match="expected at most 192 rows"):
        more(rank=193).require_fits(vlm)


def test_scopeedit_writes_shared_rows_only_for_a_request_with_an_image(vlm, requests_):
    editor = more(shared_rank=8, shared_lr=0.1)
    for request in requests_[:2]:
        edit = editor.edit(vlm, [request])
        shares = request.image is not None
        for site, delta in deltas_of(edit).items():
            assert delta.u.shape[0] == 24
            assert delta.u[:16].any()
            assert bool(delta.u[16:].any()) == shares
            assert len(kept(edit, "shared", site)) == 2 * shares


def test_scopeedit_writes_shared_rows_in_the_language_model_alone(vlm, requests_):
    editor = more(sites=(*SITES, BRIDGE), shared_rank=8)
    edit = editor.edit(vlm, requests_[:1])
    assert deltas_of(edit)[SITES[0]].u[16:].any()
    assert deltas_of(edit)[BRIDGE].u[:16].any()
    assert not deltas_of(edit)[BRIDGE].u[16:].any()


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"keys/elsewhere": torch.zeros(3, 16)}, "one of its sites"),
        ({f"keys/{SITES[0]}": torch.zeros(3, 15)}, "expected 16 on axis 1"),
        ({f"keys/{SITES[0]}": torch.zeros(3, 16).double()}, "expected a float32 matrix"),
        ({}, "bases for 0 of its 4 sites"),
    ],
)
def test_tensors_that_do_not_fit_the_settings_are_refused(tensors, said):
    config = more(basis="data").config
    with pytest.raises(EditorError, match=said):
        Prepared.of_tensors(tensors, SITES, config)
