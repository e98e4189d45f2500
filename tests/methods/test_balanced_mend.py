"""MEND trained on the probes of De-VQA besides: a configuration, not a method of its own."""

from __future__ import annotations

import pytest
import torch

from mmedit.cases import EditCase, Probe
from mmedit.config import load_cases, load_editor
from mmedit.editors.fitting import Fitting
from mmedit.editors.objective import divergence, outcome
from mmedit.errors import DataError
from mmedit.methods.ft import FT, FTConfig
from mmedit.training.settings import TrainingConfig

BALANCED = {
    Probe.RANDOM_IMAGE: 0.1,
    Probe.CONSISTENT_IMAGE: 1.0,
    Probe.NO_IMAGE: 1.0,
}
LAST = ("language_model.model.decoder.layers.3.fc2",)


@pytest.fixture(scope="module")
def cases() -> list[EditCase]:
    return list(load_cases("easyvqa", "train", limit=4, probes="devqa"))


def test_its_weights_are_de_vqas_and_all_others_are_mends(vlm):
    plain, balanced = (load_editor(name, vlm) for name in ("mend", "mend-balanced"))
    assert balanced.method == plain.method == "mend"
    assert balanced.config.probe_weights == {**plain.config.probe_weights, **BALANCED}
    same = {"ri_loc": 0.0, "ci_loc": 0.0, "ni_loc": 0.0}
    assert balanced.config.model_copy(update=same) == plain.config


def test_each_new_term_is_the_kl_on_the_first_pair_of_its_probe(vlm, cases):
    edited = FT(FTConfig(sites=LAST, lr=2e-3, steps=5)).apply_each(vlm, [c.request for c in cases])
    found = outcome(vlm, edited, cases, list(BALANCED))
    for probe in BALANCED:
        examples = [case.probes[probe][0] for case in cases]
        moved = divergence(vlm.predict(examples), edited.predict(examples)).mean()
        assert moved > 0
        torch.testing.assert_close(found.terms[probe], moved, rtol=1e-4, atol=1e-6)
    assert found.total(BALANCED) == sum(w * found.terms[p] for p, w in BALANCED.items())


def test_the_first_pairs_are_those_that_de_vqa_trains_on(cases):
    for case in cases:
        random, consistent, unseen = (case.probes[probe][0] for probe in BALANCED)
        assert random.prompt == unseen.prompt == case.request.prompt
        assert random.image == case.probes[Probe.IMAGE_LOCALITY][0].image
        assert unseen.image is None
        assert consistent.prompt != case.request.prompt
        assert consistent.image not in (case.request.image, random.image)


def test_training_cases_without_these_probes_are_refused_with_the_setting_that_adds_them(vlm):
    editor = load_editor("mend-balanced", vlm, sites=LAST, rank=8)
    with pytest.raises(DataError, match=r"--set dataset\.probes=devqa"):
        editor.fit(vlm, Fitting(list(load_cases("easyvqa", "train", limit=4))))


def test_mend_learns_the_same_with_and_without_probes_that_it_is_not_trained_on(vlm, cases):
    training = TrainingConfig(steps=2, batch_size=2)
    editor = load_editor("mend", vlm, sites=LAST, rank=8, training=training.model_dump())
    plain = list(load_cases("easyvqa", "train", limit=4))
    first, second = (editor.fit(vlm, Fitting(these)).state() for these in (plain, cases))
    assert all(torch.equal(first[name], second[name]) for name in first)
