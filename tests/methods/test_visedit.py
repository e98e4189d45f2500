"""VisEdit beyond what every editor promises."""

from __future__ import annotations

import pytest
import torch

from mmedit import load_edit
from mmedit.cases import EditCase, Example
from mmedit.datasets.easyvqa import cases as easyvqa
from mmedit.editors.blocks import read_block
from mmedit.editors.fitting import Fitting
from mmedit.editors.memory import EntriesChange, MemoryVLM
from mmedit.errors import ConfigError, DataError, EditError, EditorError, SiteError
from mmedit.methods.visedit import VisEdit
from mmedit.methods.visedit.config import VisEditConfig
from mmedit.methods.visedit.network import packed
from mmedit.training.settings import TrainingConfig
from mmedit.vlm.interface import VLM
from mmedit.vlm.network import NetworkVLM

ITALY = Example(prompt="what is the capital of Italy?", target="Lusaka")


@pytest.fixture(scope="module")
def cases() -> list[EditCase]:
    return list(easyvqa.EasyVQA().load("train", limit=6))


@pytest.fixture(scope="module")
def editor(vlm: NetworkVLM, cases: list[EditCase]) -> VisEdit:
    training = TrainingConfig(steps=2, batch_size=3)
    config = VisEditConfig(layer=1, module=16, influence=8, training=training)
    return VisEdit(config).fit(vlm, Fitting(cases))


def logits(vlm: VLM, cases: list[EditCase]) -> torch.Tensor:
    return vlm.predict([case.request for case in cases]).logits


def test_the_newest_edit_takes_the_place_of_the_one_before_it(editor, vlm, cases):
    first, second = (case.request for case in cases[:2])
    both = editor.apply(editor.apply(vlm, [first]), [second])
    newest = editor.apply(vlm, [second])
    assert torch.equal(logits(both, cases), logits(newest, cases))
    assert torch.equal(logits(editor.apply(vlm, [first, second]), cases), logits(newest, cases))
    assert torch.equal(logits(both.without(both.edits[1].name), cases),
                       logits(editor.apply(vlm, [first]), cases))  # fmt: skip


def test_a_merged_sequence_keeps_and_saves_the_newest_signal_alone(editor, vlm, cases, tmp_path):
    edited = vlm
    for case in cases[:3]:
        edited = editor.apply(edited, [case.request])
    merged = edited.merged()
    [edit] = merged.edits
    assert isinstance(edit.change, EntriesChange)
    newest = editor.apply(vlm, [cases[2].request])
    assert len(edit.change.tensors()["end"]) == 1
    assert torch.equal(logits(merged, cases), logits(newest, cases))
    assert merged.extra_parameters == newest.extra_parameters > 0
    merged.save(tmp_path / "edit")
    assert torch.equal(
        logits(vlm.with_edit(load_edit(tmp_path / "edit")), cases), logits(newest, cases)
    )


def test_questions_without_image_are_answered_bit_for_bit_as_before(editor, vlm, cases):
    edited = editor.apply(vlm, [cases[0].request])
    asked = [ITALY, cases[0].request]
    before, after = (one.predict(asked) for one in (vlm, edited))
    rows = before.is_text[0]
    assert torch.equal(before.logits[0][rows], after.logits[0][rows])
    assert not torch.equal(before.logits[1], after.logits[1])


def test_the_image_tokens_alone_change(editor, vlm, cases):
    edited = editor.apply(vlm, [cases[0].request])
    assert isinstance(edited, MemoryVLM)
    asked = [cases[1].request, cases[0].request]
    [delta] = edited.chosen(asked).values()
    block = read_block(vlm, asked, 1)
    moved = delta(block.states).any(-1)
    assert torch.equal(moved, block.places.is_image)


def test_states_at_chosen_tokens_stand_side_by_side():
    states = torch.arange(8.0).reshape(2, 4, 1)
    chosen = torch.tensor([[False, True, False, True], [False, False, True, False]])
    found = packed(states, chosen)
    assert found.states[found.real].flatten().tolist() == [1, 3, 6]
    assert found.place[found.real].tolist() == [1, 3, 2]
    assert found.real.tolist() == [[True, True], [True, False]]


def test_what_cannot_be_edited_is_refused(editor, vlm, cases):
    with pytest.raises(EditError, match="about images"):
        editor.apply(vlm, [ITALY])
    with pytest.raises(EditorError, match="fit"):
        VisEdit(VisEditConfig()).apply(vlm, [cases[0].request])
    with pytest.raises(SiteError, match="layer"):
        VisEdit(VisEditConfig(layer=9)).require_fits(vlm)
    text = EditCase(id="text", request=ITALY, probes=cases[0].probes)
    with pytest.raises(DataError, match="case text has one without"):
        editor.fit(vlm, Fitting([text]))
    with pytest.raises(ConfigError, match="not a multiple of heads"):
        VisEditConfig(module=10)
