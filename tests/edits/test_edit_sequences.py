"""Edits made one after another, and a sequence that was stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import SEEN, TEXT_ONLY

from mmedit.cases import Example
from mmedit.config import load_editor
from mmedit.editors.base import Editor
from mmedit.edits.loading import load_edit
from mmedit.edits.sequence import begin, edit_in_turn, plan_of
from mmedit.errors import EditError
from mmedit.methods.ft import FT
from mmedit.vlm.network import NetworkVLM

REQUESTS = [*SEEN[:2], TEXT_ONLY]


@pytest.fixture
def ft(tiny_vlm: NetworkVLM) -> Editor:
    return load_editor("ft", tiny_vlm, steps=2)


def test_every_request_gets_an_edit_made_on_those_before(tiny_vlm: NetworkVLM, ft: Editor):
    edited = edit_in_turn(ft, tiny_vlm, REQUESTS, name="facts")
    assert [edit.name for edit in edited.edits] == ["facts-1", "facts-2", "facts-3"]
    assert [edit.on for edit in edited.edits] == [(), ("facts-1",), ("facts-1", "facts-2")]
    one_by_one = tiny_vlm
    for request in REQUESTS:
        one_by_one = ft.apply(one_by_one, [request])
    assert torch.equal(edited.predict(REQUESTS).logits, one_by_one.predict(REQUESTS).logits)


def test_a_sequence_that_was_stopped_goes_on_with_the_same_edits(
    tiny_vlm: NetworkVLM, ft: Editor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = edit_in_turn(ft, tiny_vlm, REQUESTS, name="facts")
    made: list[Example] = []
    change = FT.change

    def stopping(self: FT, vlm: NetworkVLM, requests: list[Example]):
        made.extend(requests)
        if len(made) == 3:
            raise KeyboardInterrupt
        return change(self, vlm, requests)

    monkeypatch.setattr(FT, "change", stopping)
    plan = plan_of(ft, REQUESTS)
    unfinished = begin(tmp_path / "facts", plan)
    with pytest.raises(KeyboardInterrupt):
        edit_in_turn(ft, tiny_vlm, REQUESTS, name="facts", unfinished=unfinished)
    again = begin(tmp_path / "facts", plan)
    assert again.finished == 2
    assert load_edit(tmp_path / "facts.unfinished" / "facts-2").requests[0].prompt == SEEN[1].prompt
    told: list[int] = []
    edited = edit_in_turn(
        ft, tiny_vlm, REQUESTS, name="facts", unfinished=again,
        progress=lambda _task, done, _total, _figures: told.append(done),
    )  # fmt: skip
    assert len(made) == 4
    assert told == [2, 2, 2, 3]
    assert [edit.name for edit in edited.edits] == ["facts-1", "facts-2", "facts-3"]
    assert torch.equal(edited.predict(REQUESTS).logits, whole.predict(REQUESTS).logits)
    again.discard()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("differs", "name"), [("requests", "requests"), ("settings", "settings"), ("more", "vlm")]
)
def test_finished_edits_of_another_command_are_never_mixed_in(
    tiny_vlm: NetworkVLM, ft: Editor, tmp_path: Path, differs: str, name: str
):
    begin(tmp_path / "facts", plan_of(ft, REQUESTS, vlm="a"))
    editor = load_editor("ft", tiny_vlm, steps=3) if differs == "settings" else ft
    requests = REQUESTS[:2] if differs == "requests" else REQUESTS
    plan = plan_of(editor, requests, vlm="b" if differs == "more" else "a")
    with pytest.raises(EditError, match=rf"another command: its {name} (is|are) .*delete"):
        begin(tmp_path / "facts", plan)


def test_a_folder_of_something_else_is_left_alone(ft: Editor, tmp_path: Path):
    (tmp_path / "facts.unfinished").mkdir()
    (tmp_path / "facts.unfinished" / "thesis.txt").write_text("mine")
    with pytest.raises(EditError, match=r"facts\.unfinished exists and holds no plan"):
        begin(tmp_path / "facts", plan_of(ft, REQUESTS))
    (tmp_path / "facts.unfinished" / "plan.json").write_text("{")
    with pytest.raises(EditError, match="cannot be used"):
        begin(tmp_path / "facts", plan_of(ft, REQUESTS))
    assert (tmp_path / "facts.unfinished" / "thesis.txt").read_text() == "mine"
