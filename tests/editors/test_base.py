"""An editor is a value: what it is made of, what it says of itself, and which VLM it fits."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmedit.cases import EditCase
from mmedit.datasets.easyvqa import cases as easyvqa
from mmedit.editors.fitting import Fitting
from mmedit.errors import EditorError, SiteError
from mmedit.methods import EDITORS
from mmedit.methods.ft import FT, FTConfig
from mmedit.methods.ike import IKE, IKEConfig
from mmedit.methods.mend import MEND, MENDConfig
from mmedit.training.settings import TrainingConfig
from mmedit.vlm.network import NetworkVLM

SITE = "language_model.model.decoder.layers.3.fc1"
TRAINING = TrainingConfig(steps=1, batch_size=2)


@pytest.fixture(scope="module")
def cases() -> list[EditCase]:
    return list(easyvqa.EasyVQA().load("train", limit=4))


@pytest.fixture(scope="module")
def unfitted() -> MEND:
    return MEND(MENDConfig(sites=(SITE,), rank=2, training=TRAINING), label="MEND (small)")


@pytest.fixture(scope="module")
def fitted(unfitted: MEND, vlm: NetworkVLM, cases: list[EditCase]) -> MEND:
    return unfitted.fit(vlm, Fitting(cases, seed=3))


def test_fitting_gives_a_new_editor_and_leaves_the_old_one_unfitted(
    unfitted: MEND, fitted: MEND, vlm: NetworkVLM, cases: list[EditCase]
):
    assert fitted.is_fitted
    assert not unfitted.is_fitted
    assert not unfitted.state()
    assert fitted.config == unfitted.config
    with pytest.raises(EditorError, match="MEND has not been fitted"):
        unfitted.apply(vlm, [cases[0].request])


def test_two_editors_fitted_from_one_do_not_know_each_other(
    unfitted: MEND, fitted: MEND, vlm: NetworkVLM, cases: list[EditCase]
):
    before = {name: tensor.clone() for name, tensor in fitted.state().items()}
    other = unfitted.fit(vlm, Fitting(cases[:2]))
    assert all((fitted.state()[name] == tensor).all() for name, tensor in before.items())
    assert any((other.state()[name] != tensor).any() for name, tensor in before.items())
    assert other.origin != fitted.origin


def test_an_editor_that_has_nothing_to_learn_is_its_own_fitted_one(tiny_vlm: NetworkVLM):
    editor = FT(FTConfig())
    assert editor.fit(tiny_vlm, Fitting([])) is editor


def test_a_label_is_kept_by_fitting_and_given_when_loading(fitted: MEND, tmp_path: Path):
    assert fitted.label == "MEND (small)"
    assert MEND(MENDConfig()).label == "MEND"
    fitted.save(tmp_path)
    assert MEND.load(tmp_path).label == "MEND"
    assert MEND.load(tmp_path, label="mine").label == "mine"
    assert MEND.load(str(tmp_path)).origin == fitted.origin


def test_an_editor_shows_its_label_its_settings_and_what_it_was_fitted_on(
    unfitted: MEND, fitted: MEND
):
    settings = f"training.steps=1, sites=('{SITE}',), rank=2"
    assert repr(unfitted) == f"<MEND 'MEND (small)': {settings}, not fitted>"
    assert repr(fitted) == f"<MEND 'MEND (small)': {settings}, fitted on 4 cases (seed 3)>"
    assert repr(FT(FTConfig())) == "<FT 'FT'>"
    assert repr(FT(FTConfig(lr=0.5), label="FT-M")) == "<FT 'FT-M': lr=0.5>"
    assert repr(IKE(IKEConfig(k=0))) == "<IKE 'IKE': k=0>"


def test_every_method_names_its_paper_and_whether_it_learns():
    assert all(" 20" in method.paper for method in EDITORS.values())
    assert {name for name, method in EDITORS.items() if method.learns} == {
        "ke",
        "mend",
        "serac",
        "liveedit",
        "visedit",
    }


@pytest.mark.parametrize("name", EDITORS)
def test_every_setting_has_a_text_that_explains_it(name: str):
    models = (EDITORS[name].config_class, TrainingConfig)
    fields = [(key, field) for model in models for key, field in model.model_fields.items()]
    assert [key for key, field in fields if not field.description] == []


def test_sites_that_a_vlm_does_not_have_are_refused_before_any_edit(
    vlm: NetworkVLM, fitted: MEND, unfitted: MEND
):
    for editor in (fitted, unfitted, FT(FTConfig()), IKE(IKEConfig())):
        editor.require_fits(vlm)
    with pytest.raises(SiteError, match="nowhere"):
        FT(FTConfig(sites=("nowhere",))).require_fits(vlm)
    with pytest.raises(SiteError, match="nowhere"):
        MEND(MENDConfig(sites=("nowhere",))).require_fits(vlm)


def test_an_editor_fitted_on_another_vlm_is_refused_before_any_edit(
    fitted: MEND, tiny_vlm: NetworkVLM
):
    with pytest.raises(EditorError, match="fitted on a blip-2 of another config"):
        fitted.require_fits(tiny_vlm)
