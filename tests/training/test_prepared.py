"""Training from the base model's hidden states, which are made before the first step."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmedit.cases import EditCase
from mmedit.datasets.easyvqa import cases as easyvqa
from mmedit.editors.fitting import Fitting
from mmedit.editors.learned import LearnedEditor
from mmedit.methods.ke import KE, KEConfig
from mmedit.methods.mend import MEND, MENDConfig
from mmedit.methods.serac import SERAC, SERACConfig
from mmedit.training.settings import TrainingConfig
from mmedit.vlm import prepared
from mmedit.vlm.network import NetworkVLM
from mmedit.vlm.prepared import Asked

LAST = tuple(f"language_model.model.decoder.layers.3.{name}" for name in ("fc1", "fc2"))
TRAINING = TrainingConfig(steps=3, batch_size=3)


def mend(**changes: object) -> MEND:
    settings = {"sites": LAST, "rank": 8, "training": TRAINING, "lr": 1e-4}
    return MEND(MENDConfig.model_validate(settings | changes))


def ke() -> KE:
    settings = {"sites": LAST, "lstm_hidden": 8, "condition": 16, "hidden": 8}
    return KE(KEConfig.model_validate({**settings, "training": TRAINING}))


def serac() -> SERAC:
    settings = {"scope_width": 16, "counterfactual_width": 16, "counterfactual_layers": 1}
    return SERAC(SERACConfig.model_validate({**settings, "training": TRAINING}))


EDITORS = {"mend": mend, "ke": ke, "serac": serac}


@pytest.fixture(scope="module")
def cases() -> list[EditCase]:
    return list(easyvqa.EasyVQA().load("train", limit=6))


@contextmanager
def counted_layers(vlm: NetworkVLM) -> Iterator[Counter[int]]:
    """Count how often each decoder layer really runs: a skipped one reads no weight."""
    runs: Counter[int] = Counter()
    hooks = [
        layer.get_submodule("fc1").register_forward_hook(lambda *_, k=k: runs.update([k]))
        for k, layer in enumerate(vlm.adapter.layers)
    ]
    try:
        yield runs
    finally:
        for hook in hooks:
            hook.remove()


def learnt(
    editor: LearnedEditor, vlm: NetworkVLM, cases: list[EditCase], **given
) -> dict[str, Tensor]:
    return editor.fit(vlm, Fitting(cases, **given)).state()


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("name", EDITORS)
def test_an_editor_learns_the_same_with_and_without_kept_states(
    name: str, vlm: NetworkVLM, cases: list[EditCase], monkeypatch: pytest.MonkeyPatch
):
    editor = EDITORS[name]()
    found = learnt(editor, vlm, cases)
    monkeypatch.setattr(type(editor), "asked", lambda *_: Asked())
    assert_close(found, learnt(editor, vlm, cases))


def test_steps_run_the_edited_layers_alone(vlm: NetworkVLM, cases: list[EditCase]):
    editor = mend()
    learner = editor.learner(vlm, editor.build(editor.facts(vlm)), cases)
    with vlm.frozen.prepared(editor.asked(vlm, cases)):
        with counted_layers(vlm) as runs:
            learner(cases[:3])
        # the capture, and the probes with an image and without one
        assert runs == {3: 3}
        learner(cases[:3])[0].backward()


def test_serac_trains_without_a_forward_of_the_vlm(vlm: NetworkVLM, cases: list[EditCase]):
    editor = serac()
    learner = editor.learner(vlm, editor.build(editor.facts(vlm)), cases)
    with (
        vlm.frozen.prepared(editor.asked(vlm, cases)),
        counted_layers(vlm) as runs,
    ):
        learner(cases[:3])
    assert not runs


def test_nothing_is_kept_after_the_training(vlm: NetworkVLM, cases: list[EditCase]):
    mend().fit(vlm, Fitting(cases))
    assert vlm.frozen.states.by_example is None
    with pytest.raises(RuntimeError), vlm.frozen.prepared(Asked()):
        raise RuntimeError
    assert vlm.frozen.states.by_example is None


def test_the_size_is_told_before_the_first_step(vlm: NetworkVLM, cases: list[EditCase]):
    told: list[tuple[str, int, int, str]] = []
    learnt(mend(), vlm, cases, progress=lambda *report: told.append(report))
    task, done, total, figures = told[0]
    assert (task, done, figures) == ("reading cases", 0, "0.00 GB of hidden states, in memory")
    assert ("reading cases", total, total, figures) in told
    assert told[-1][0] == "training"


def test_states_that_do_not_fit_the_memory_are_in_a_file_while_training_lasts(
    vlm: NetworkVLM,
    cases: list[EditCase],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    expected = learnt(mend(), vlm, cases)
    monkeypatch.setattr(prepared, "IN_MEMORY", 1)
    asked = mend().asked(vlm, cases)
    with vlm.frozen.prepared(asked, folder=tmp_path):
        [file] = tmp_path.glob("states-*/states")
        assert file.stat().st_size > 100_000
    assert not list(tmp_path.iterdir())
    found = learnt(mend(), vlm, cases, folder=tmp_path / "run")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not list(tmp_path.glob("run/states-*"))


def test_without_room_on_the_disk_every_step_computes_what_it_needs(
    vlm: NetworkVLM,
    cases: list[EditCase],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    expected = learnt(mend(), vlm, cases)
    monkeypatch.setattr(prepared, "IN_MEMORY", 1)
    monkeypatch.setattr(prepared, "GIGABYTE", 2**60)
    with caplog.at_level(logging.WARNING):
        found = learnt(mend(), vlm, cases, folder=tmp_path)
    assert "so they are computed in every step; free some space" in caplog.text
    assert_close(found, expected)


def test_only_cases_that_a_short_training_uses_are_read(vlm: NetworkVLM, cases: list[EditCase]):
    told: list[tuple[str, int, int, str]] = []
    short = mend(training=TrainingConfig(steps=1, batch_size=2))
    learnt(short, vlm, cases, progress=lambda *report: told.append(report))
    everything = mend(training=TrainingConfig(steps=50, batch_size=2)).asked(vlm, cases)
    examples = {e.prompt + e.target + str(e.image) for e in everything.edited}
    assert 0 < told[0][2] < len(examples)


def test_an_edit_of_the_first_layer_trains_with_whole_forwards(
    vlm: NetworkVLM, cases: list[EditCase]
):
    editor = mend(sites=("language_model.model.decoder.layers.0.fc2",))
    learner = editor.learner(vlm, editor.build(editor.facts(vlm)), cases)
    with (
        vlm.frozen.prepared(editor.asked(vlm, cases)),
        counted_layers(vlm) as runs,
    ):
        learner(cases[:2])
    assert set(runs) == {0, 1, 2, 3}
