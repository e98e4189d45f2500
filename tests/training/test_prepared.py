"""Training from the base model's hidden states, which are made before the first step."""

from __future__ import annotations

import errno
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmedit.cases import EditCase, Probe
from mmedit.datasets.easyvqa import cases as easyvqa
from mmedit.editors.fitting import Fitting
from mmedit.editors.learned import LearnedEditor
from mmedit.methods.ke import KE, KEConfig
from mmedit.methods.mend import MEND, MENDConfig
from mmedit.methods.serac import SERAC, SERACConfig
from mmedit.training.learner import Learner
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


@pytest.fixture(autouse=True)
def _begins_without_states(vlm: NetworkVLM) -> None:
    vlm.frozen.states.latest = None


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


@pytest.mark.parametrize("name", EDITORS)
def test_a_step_gives_the_same_loss_and_gradients_from_kept_states(
    name: str, vlm: NetworkVLM, cases: list[EditCase]
):
    editor = EDITORS[name]()
    torch.manual_seed(0)
    learner = editor.learner(vlm, editor.build(editor.facts(vlm)), cases)
    learner.eval()  # so that no statistics move between the two
    expected, wanted = loss_and_gradients(learner, cases)
    with vlm.frozen.prepared(editor.asked(vlm, cases)):
        found, gradients = loss_and_gradients(learner, cases)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert gradients.keys() == wanted.keys()
    for parameter, gradient in gradients.items():
        largest = float(wanted[parameter].abs().max())
        torch.testing.assert_close(gradient, wanted[parameter], rtol=1e-3, atol=1e-4 * largest)


def loss_and_gradients(learner: Learner, cases: list[EditCase]) -> tuple[Tensor, dict[str, Tensor]]:
    learner.zero_grad()
    loss, _ = learner(cases)
    loss.backward()
    there = {name: p.grad for name, p in learner.named_parameters() if p.grad is not None}
    return loss.detach(), {name: gradient.clone() for name, gradient in there.items()}


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


def test_a_training_on_the_same_examples_takes_over_the_states(
    vlm: NetworkVLM, cases: list[EditCase], monkeypatch: pytest.MonkeyPatch
):
    def first_layers_run(cases: list[EditCase]) -> int:
        with counted_layers(vlm) as runs, vlm.frozen.prepared(mend().asked(vlm, cases)):
            return runs[0]

    alone = learnt(mend(), vlm, cases)
    taken_over = learnt(mend(), vlm, cases)
    assert all(torch.equal(taken_over[name], alone[name]) for name in alone)
    assert not first_layers_run(cases)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert first_layers_run(cases)
    assert first_layers_run(cases[:5])
    monkeypatch.setattr(prepared, "STAYING", 1)
    assert first_layers_run(cases)
    assert first_layers_run(cases)


def test_no_step_uses_them_after_the_training(vlm: NetworkVLM, cases: list[EditCase]):
    mend().fit(vlm, Fitting(cases))
    assert vlm.frozen.states.by_example is None
    with pytest.raises(RuntimeError), vlm.frozen.prepared(Asked()):
        raise RuntimeError
    assert vlm.frozen.states.by_example is None


def test_states_made_in_another_precision_are_not_used(vlm: NetworkVLM, cases: list[EditCase]):
    asked = mend().asked(vlm, cases)
    with vlm.frozen.prepared(asked):
        assert vlm.frozen.states.by_example is not None
        assert vlm.frozen.states.by_example.packed(asked.edited, 3, "torch.bfloat16") is None
    with torch.autocast("cpu", dtype=torch.bfloat16), vlm.frozen.prepared(asked):
        assert vlm.frozen.states.by_example is not None
        assert vlm.frozen.states.by_example.packed(asked.edited, 3, "torch.bfloat16") is not None


def test_a_mixed_precision_training_runs_the_edited_layers_alone(
    vlm: NetworkVLM, cases: list[EditCase]
):
    half = mend(training=TrainingConfig(steps=2, batch_size=3, mixed_precision="bf16"))
    told: list[str] = []
    with counted_layers(vlm) as runs:
        learnt(half, vlm, cases, progress=lambda task, *_: told.append(task))
    assert "reading training cases" in told
    assert runs[3] >= runs[0] + 2 * 3  # two steps: a capture, and probes with and without an image


def test_long_examples_go_through_the_network_in_small_groups(
    vlm: NetworkVLM, cases: list[EditCase], monkeypatch: pytest.MonkeyPatch
):
    asked = mend().asked(vlm, cases)

    def tokens_at_once() -> int:
        seen: list[int] = []
        layer = vlm.adapter.layers[0]
        hook = layer.register_forward_pre_hook(
            lambda _, inputs: seen.append(inputs[0].shape[0] * inputs[0].shape[1])
        )
        with vlm.frozen.prepared(asked):
            hook.remove()
        return max(seen)

    many = tokens_at_once()
    vlm.frozen.states.latest = None
    monkeypatch.setattr(prepared, "TOKENS", 64)
    assert tokens_at_once() <= 64 < many


def test_text_only_rows_are_found_again_with_padding_on_the_left(
    vlm: NetworkVLM, cases: list[EditCase]
):
    left = NetworkVLM(vlm.adapter, padding_side="left")
    texts = [case.probes[Probe.TEXT_LOCALITY][0] for case in cases]
    expected = left.predict(texts)
    with left.frozen.prepared(Asked(base=texts)), counted_layers(left) as runs:
        found = left.predict(texts)
    assert not runs
    torch.testing.assert_close(
        found.logits[found.is_text], expected.logits[expected.is_text], rtol=1e-4, atol=1e-4
    )


def test_the_size_is_told_before_the_first_step(vlm: NetworkVLM, cases: list[EditCase]):
    told: list[tuple[str, int, int, str]] = []
    learnt(mend(), vlm, cases, progress=lambda *report: told.append(report))
    task, done, total, figures = told[0]
    assert (task, done, figures) == (
        "reading training cases",
        0,
        "0.00 GB of hidden states, in memory",
    )
    assert ("reading training cases", total, total, figures) in told
    assert told[-1][0] == "training"


def test_states_that_do_not_fit_the_memory_are_in_a_file_while_training_lasts(
    vlm: NetworkVLM,
    cases: list[EditCase],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    expected = learnt(mend(), vlm, cases)
    vlm.frozen.states.latest = None
    monkeypatch.setattr(prepared, "IN_MEMORY", 1)
    asked = mend().asked(vlm, cases)
    with vlm.frozen.prepared(asked, folder=tmp_path):
        kept = vlm.frozen.states.by_example
        assert kept is not None
        assert kept.packed(asked.edited, 3, "") is not None
        assert mapped_files() in (1, None)
        assert not list(tmp_path.iterdir())  # a killed process leaves nothing behind
    del kept
    assert mapped_files() in (0, None)
    found = learnt(mend(), vlm, cases, folder=tmp_path / "run")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not list(tmp_path.glob("run/states-*"))


def mapped_files() -> int | None:
    """Return how many files of states this process has in its memory; None if it cannot be told."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return None
    lines = maps.read_text().splitlines()
    return len({line.split()[4] for line in lines if "/states-" in line})


def test_without_room_on_the_disk_every_step_computes_what_it_needs(
    vlm: NetworkVLM,
    cases: list[EditCase],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    monkeypatch.setattr(prepared, "IN_MEMORY", 1)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(prepared, "reserve", full)
    with caplog.at_level(logging.WARNING), counted_layers(vlm) as runs:
        found = learnt(mend(), vlm, cases, folder=tmp_path)
    assert "no room for them (No space left on device), so they are computed" in caplog.text
    assert not list(tmp_path.glob("states-*"))
    assert runs[0] >= 3 * 2  # every step has forwards from the first layer on
    assert all(tensor.isfinite().all() for tensor in found.values())


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
