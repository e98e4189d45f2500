"""What KE does by itself; how it compares with the published code is in test_ke_golden.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mmedit.cases import EditCase, Example
from mmedit.datasets.easyvqa import cases as easyvqa
from mmedit.deltas import LowRank
from mmedit.editors.fitting import Fitting
from mmedit.errors import DataError
from mmedit.methods.ke import (
    KE,
    KEConfig,
    KELearner,
    KENetwork,
    embed_conditions,
    generate_preds,
    root_mean_square,
)
from mmedit.training.settings import TrainingConfig
from mmedit.vlm.network import NetworkVLM
from mmedit.vlm.outputs import Captured

LAST = tuple(f"language_model.model.decoder.layers.3.{name}" for name in ("fc1", "fc2"))


def config(**changes: object) -> KEConfig:
    training = TrainingConfig(steps=2, batch_size=4)
    settings = {"sites": LAST, "lstm_hidden": 8, "condition": 16, "hidden": 8, "training": training}
    return KEConfig.model_validate(settings | changes)


@pytest.fixture(scope="module")
def cases() -> list[EditCase]:
    return list(easyvqa.EasyVQA().load("train", limit=8))


def learner_of(vlm: NetworkVLM, cases: list[EditCase], **changes: object) -> KELearner:
    editor = KE(config(**changes))
    return editor.learner(vlm, editor.build(editor.facts(vlm)), cases)


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return made


def test_no_tensor_of_the_weights_size_is_made_forwards_or_backwards():
    out, in_, tokens = 6000, 5000, 7
    network = KENetwork({"site": (out, in_)}, 12, config())
    captured = Captured(
        x={"site": torch.randn(2, tokens, in_)},
        delta={"site": torch.randn(2, tokens, out)},
        nll=torch.zeros(2),
    )
    with Largest() as largest:
        delta = network(captured, torch.randn(2, 5, 12), [5, 4])["site"]
        (delta(torch.randn(2, 3, in_)).square().sum() + root_mean_square(delta)).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert largest.numbers < out * in_ / 100


def test_norm_of_an_edit_is_that_of_its_matrix():
    generator = torch.Generator().manual_seed(0)
    delta = LowRank(
        u=torch.randn(3, 4, 6, generator=generator), v=torch.randn(3, 4, 5, generator=generator)
    )
    wanted = delta.weight().square().mean((-2, -1)).sqrt().mean()
    torch.testing.assert_close(root_mean_square(delta), wanted)


def test_condition_is_the_answer_before_the_new_answer_and_the_prompt(vlm: NetworkVLM, cases):
    request = cases[0].request
    (said,) = generate_preds(vlm, [request], config())
    assert said
    assert said == vlm.generate([request], max_new_tokens=12)[0]
    embedded, lengths = embed_conditions(vlm, [request], [said], config())
    (ids,) = vlm.frozen.tokenize([f"{said} >> {request.target} || {request.prompt}"])
    assert lengths == [min(len(ids), 32)]
    assert torch.equal(embedded[0], vlm.frozen.embed(torch.tensor(ids[:32])))


def test_rows_of_unequal_length_have_the_conditions_of_each_alone(vlm: NetworkVLM, cases):
    requests = [case.request for case in cases[:4]]
    said = generate_preds(vlm, requests, config())
    network = KENetwork({"site": (4, 4)}, vlm.frozen.hidden, config())
    embedded, lengths = embed_conditions(vlm, requests, said, config())
    assert len(set(lengths)) > 1
    together = network.conditioner(embedded, lengths)
    for row, request in enumerate(requests):
        alone = network.conditioner(
            *embed_conditions(vlm, [request], said[row : row + 1], config())
        )
        torch.testing.assert_close(together[row : row + 1], alone)


def test_multiplier_grows_while_the_constraint_is_exceeded_and_never_falls_below_nothing(
    vlm: NetworkVLM, cases
):
    for margin, grows in ((0.0, True), (1e3, False)):
        learner = learner_of(vlm, cases, margin=margin, multiplier=0.01)
        optimizer = learner.optimizer()
        for _ in range(2):
            optimizer.zero_grad()
            loss, _ = learner(cases[:4])
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                learner.after_step()
        assert (learner.multiplier > 0.01) == grows
        assert learner.multiplier >= 0


def test_margin_shrinks_to_its_end_while_edits_succeed(vlm: NetworkVLM, cases):
    learner = learner_of(vlm, cases, margin=1e-3, margin_decay=0.5, margin_min=2e-4)
    good = {"inner/acc": 0.95, "edit/acc": 0.95, "image_rephrase/acc": 0.95, "loc/acc": 0.1}
    with torch.no_grad():
        learner.after_check(good | {"edit/acc": 0.5})
        assert learner.margin.item() == pytest.approx(1e-3)
        for wanted in (5e-4, 2.5e-4, 2e-4, 2e-4):
            learner.after_check(good)
            assert learner.margin.item() == pytest.approx(wanted)


@pytest.mark.parametrize("constraint", ["kl", "l2"])
def test_loss_is_the_edits_nll_and_the_weighed_excess_of_the_constraint(
    vlm: NetworkVLM, cases, constraint: str
):
    learner = learner_of(vlm, cases, constraint=constraint, multiplier=3.0, margin=0.01)
    loss, figures = learner(cases[:4])
    edit = sum(figures[f"loss/{name}"] for name in ("inner", "edit", "image_rephrase"))
    wanted = edit + 3 * (figures["loss/constraint"] - 0.01)
    torch.testing.assert_close(loss.detach(), wanted)
    if constraint == "kl":
        kl = (figures["loss/loc"] + figures["loss/image_loc"]) / 2
        torch.testing.assert_close(figures["loss/constraint"], kl)


def test_the_vlms_own_answers_are_asked_once_per_case(vlm: NetworkVLM, cases, monkeypatch):
    asked: list[int] = []
    generate = NetworkVLM.generate

    def counted(self: NetworkVLM, examples: list[Example], **settings: int) -> list[str]:
        asked.append(len(examples))
        return generate(self, examples, **settings)

    monkeypatch.setattr(NetworkVLM, "generate", counted)
    learner = learner_of(vlm, cases)
    for batch in (cases[:4], cases[2:6], cases[:6]):
        learner(batch)
    assert asked == [4, 2]


def test_cases_without_locality_cannot_train_the_constraint(vlm: NetworkVLM, cases):
    bare = [EditCase(id=case.id, request=case.request) for case in cases]
    with pytest.raises(DataError, match="text_locality, image_locality"):
        KE(config()).fit(vlm, Fitting(bare))
    KE(config(constraint="l2")).fit(vlm, Fitting(bare))


def test_loaded_editor_needs_no_vlm_to_be_built(vlm: NetworkVLM, cases, tmp_path: Path):
    editor = KE(config())
    editor = editor.fit(vlm, Fitting(cases))
    editor.save(tmp_path)
    loaded = KE.load(tmp_path)
    assert loaded.config == editor.config
    requests = [case.request for case in cases[:3]]
    for site in LAST:
        wanted = editor.apply_each(vlm, requests).weight(site)
        assert torch.equal(loaded.apply_each(vlm, requests).weight(site), wanted)
