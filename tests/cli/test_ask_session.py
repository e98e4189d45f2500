"""A conversation with an edited VLM is a value: every line gives the next one."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import IMAGES

from mmedit.cli.session import COMMANDS, HELP, Session, Step, answer_line, made_without, typed_path
from mmedit.config import load_editor
from mmedit.datasets.easyvqa.pictures import load_pictures
from mmedit.edits.loading import load_edit
from mmedit.errors import (
    ConfigError,
    DataError,
    EditError,
    ImageError,
    MmeditError,
    UnknownNameError,
)
from mmedit.vlm.network import NetworkVLM

PICTURE = load_pictures("test")[0].path
QUESTION = "what color is the shape?"


@pytest.fixture(scope="module")
def start(vlm: NetworkVLM) -> Session:
    return Session(vlm=vlm, editor=load_editor("ft", "embedded", steps=5), image=PICTURE)


@pytest.fixture(scope="module")
def edited(start: Session) -> Session:
    return after(start, QUESTION, "/edit blue").session


def after(session: Session, *lines: str) -> Step:
    """Return the step of the last line."""
    step = Step(session)
    for line in lines:
        step = answer_line(step.session, line)
    return step


def test_a_line_is_a_question_about_the_image(start: Session):
    step = answer_line(start, f"  {QUESTION} \n")
    assert step.said == start.vlm.ask(QUESTION, PICTURE)
    [asked] = step.session.asked
    assert (asked.question, asked.answer, asked.image) == (QUESTION, step.said, PICTURE)
    assert not start.asked
    assert answer_line(start, " \n").said == ""


def test_edit_changes_the_last_answer_and_undo_brings_it_back(start: Session):
    before = answer_line(start, QUESTION)
    changed = answer_line(before.session, "/edit blue")
    assert changed.said.startswith(f"ft: {before.said} -> blue ")
    [edit] = changed.session.vlm.edits
    assert (edit.requests[0].prompt, edit.requests[0].target) == (QUESTION, "blue")
    assert (edit.seen[0].before, edit.seen[0].after) == (before.said, "blue")
    assert answer_line(changed.session, QUESTION).said == "blue"
    undone = answer_line(changed.session, "/undo")
    assert undone.said == "took out ft; no edits left"
    assert answer_line(undone.session, QUESTION).said == before.said
    assert start.vlm.edits == ()


def test_any_edit_is_taken_out_by_its_name(edited: Session):
    twice = after(edited, QUESTION, "/edit green").session
    listed = answer_line(twice, "/edits").said.splitlines()
    assert listed == [
        f"1  ft: FT-M, '{QUESTION}' -> 'blue'",
        f"2  ft-2: FT-M, '{QUESTION}' -> 'green'",
    ]
    left = answer_line(twice, "/undo ft")
    assert left.said == "took out ft; 1 edit left"
    assert [edit.name for edit in left.session.vlm.edits] == ["ft-2"]
    with pytest.raises(UnknownNameError, match=r"no edit of this VLM named 'ft-3'"):
        answer_line(twice, "/undo ft-3")


def test_compare_shows_base_and_edited_model(edited: Session, vlm: NetworkVLM):
    base = vlm.ask(QUESTION, PICTURE)
    both = f"base model:    {base}\nedited model:  blue"
    assert answer_line(edited, "/compare").said == both
    assert answer_line(edited, f"/compare {QUESTION}").said == both
    always = Session(vlm=edited.vlm, editor=edited.editor, image=PICTURE, compares=True)
    assert answer_line(always, QUESTION).said == both
    plain = Session(vlm=vlm, editor=edited.editor, image=PICTURE, compares=True)
    assert answer_line(plain, QUESTION).said.endswith(f"edited model:  {base}  (the same)")


def test_an_image_is_chosen_shown_and_put_away(start: Session, tmp_path: Path):
    place = tmp_path / "a cat.png"
    IMAGES[0].save(place)
    for typed in (str(place), f"'{place}'", f'"{place}"', str(place).replace(" ", "\\ ")):
        step = answer_line(start, f"/image {typed}")
        assert step.session.image == place
        assert step.said == f"questions are about {place} now"
    assert answer_line(start, "/image").said == f"image: {PICTURE}"
    none = answer_line(start, "/image none").session
    assert none.image is None
    assert answer_line(none, "/image").said.startswith("image: none")
    asked = after(none, QUESTION).said
    assert asked == start.vlm.ask(QUESTION)


def test_edits_are_saved_and_loaded_again(edited: Session, start: Session, tmp_path: Path):
    saved = answer_line(edited, f"/save {tmp_path / 'blue'}")
    assert saved.said == f"saved 1 edit in {tmp_path / 'blue'}"
    assert load_edit(tmp_path / "blue").requests[0].target == "blue"
    with pytest.raises(EditError, match="holds an edit already"):
        answer_line(edited, f"/save {tmp_path / 'blue'}")
    assert "saved" in answer_line(edited, f"/save --overwrite {tmp_path / 'blue'}").said
    loaded = answer_line(start, f"/load {tmp_path / 'blue'}")
    assert loaded.said == f"added blue: FT-M, '{QUESTION}' -> 'blue'"
    assert answer_line(loaded.session, QUESTION).said == "blue"


def test_an_edit_made_on_another_says_so_when_it_is_loaded_alone(edited: Session, tmp_path: Path):
    both = after(edited, QUESTION, "/edit green").session
    second = answer_line(both, "/undo ft").session
    answer_line(second, f"/save {tmp_path / 'green'}")
    plain = Session(vlm=edited.vlm.base, editor=edited.editor)
    said = answer_line(plain, f"/load {tmp_path / 'green'}").said
    assert "note: green was made on ft, which is not there before;" in said
    assert "note" not in answer_line(edited, f"/load {tmp_path / 'green'}").said


def test_notes_about_a_long_stack_are_short(edited: Session):
    [one] = edited.vlm.edits
    first = tuple(f"a{number}" for number in range(9))
    edits = [replace(one, name=f"b{number}", on=first) for number in range(50)]
    [note] = made_without(edits, edits)
    assert "b0, b1, b2 and 47 more were made on a0, a1, a2 and 6 more, which are not" in note
    assert made_without(edits, edits[:0]) == []
    assert made_without([replace(one, name=name) for name in first] + edits, edits) == []


def test_history_lists_questions_with_their_answers(edited: Session):
    assert answer_line(edited, "/history").said.splitlines()[-1] == f"{QUESTION} (0.png)  ->  blue"


@pytest.mark.parametrize(
    ("line", "kind", "message"),
    [
        ("/edit blue", ConfigError, "nothing was asked yet"),
        ("/compare", ConfigError, "nothing was asked yet"),
        ("/undo", EditError, "there are no edits to take out"),
        ("/save x", EditError, "there are no edits to save"),
        ("/save", ConfigError, "name a new folder: /save DIR"),
        ("/load", ConfigError, "name the folder of an edit"),
        ("/load nowhere", EditError, "'nowhere' does not exist"),
        ("/image nowhere.png", ImageError, "image not found: nowhere.png"),
        ("/image ~nobody-here/a.png", ImageError, "image not found"),
        ("/image 'a", ImageError, "image not found"),
        (f"/image {'a' * 5000}", ImageError, "File name too long"),
        ("/imagine", UnknownNameError, "Did you mean '/image'"),
        ("what\udcff?", DataError, "half of a character"),
        ("what? " * 600, DataError, "this model takes 512"),
    ],
)
def test_wrong_input_is_one_error(start: Session, line: str, kind: type[MmeditError], message: str):
    with pytest.raises(kind) as raised:
        answer_line(start, line)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_edit_without_an_answer_says_how(edited: Session):
    with pytest.raises(ConfigError, match=rf"{re.escape(QUESTION)}.*: /edit NEW ANSWER"):
        answer_line(edited, "/edit ")
    with pytest.raises(DataError, match="this model takes 512"):
        answer_line(edited, "/edit " + "blue " * 600)


def test_every_command_is_in_the_help(start: Session):
    assert answer_line(start, "/help").said == HELP
    for name in COMMANDS.keys() - {"/help"}:
        assert re.search(rf"^{name}\b", HELP, re.MULTILINE), name
    assert answer_line(start, "/quit").ends
    assert typed_path("~") == Path.home()
