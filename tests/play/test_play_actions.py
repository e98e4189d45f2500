"""The playground without its page: questions, sessions, methods, folders, and what is shown."""

from dataclasses import replace
from pathlib import Path

import pytest
import tiny_families
import torch
from PIL import Image

from mmedit.cases import EditCase, Example, Probe
from mmedit.config import load_cases, load_editor, load_vlm
from mmedit.editors.fitting import Fitting
from mmedit.errors import (
    ConfigError,
    DataError,
    EditError,
    EditorError,
    ImageError,
    UnknownNameError,
)
from mmedit.play.actions import Playground
from mmedit.play.exporting import report
from mmedit.play.folders import Folders
from mmedit.play.methods import list_methods, method_named
from mmedit.play.questions import CASES, Fields, Pictures, case_of, opened
from mmedit.play.render import answers_html, changes_html, note_html
from mmedit.play.session import Session, label_of
from mmedit.settings import Overrides

FT = "FT-M: fine-tuning on the new answer"
IKE = "IKE: the new fact as text before the question"


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    return Pictures(load_cases("easyvqa", "test", limit=CASES))


@pytest.fixture
def play(vlm, pictures: Pictures, tmp_path: Path) -> Playground:
    return Playground(
        start=vlm,
        pictures=pictures,
        folders=Folders(tmp_path / "edits", tmp_path / "exports"),
        editors_dir=tmp_path / "editors",
        overrides=Overrides.parse(["ft.steps=10"]),
    )


@pytest.fixture
def fields(pictures: Pictures, tmp_path: Path) -> Fields:
    """The fields of the first picture, with the picture as a file that the page wrote."""
    first = pictures[0]
    first.image.save(tmp_path / "picture.png")
    filled = first.fields
    return Fields(
        prompt=filled.prompt,
        image=tmp_path / "picture.png",
        target=filled.target,
        rephrase=filled.rephrase,
    )


@pytest.fixture
def own(tmp_path: Path) -> Path:
    Image.new("RGB", (80, 60), "green").save(tmp_path / "own.png")
    return tmp_path / "own.png"


def prompts(case: EditCase, probe: Probe) -> list[str]:
    return [example.prompt for example in case.probes.get(probe, ())]


def test_a_new_tab_has_a_question_that_is_answered_and_probes(play: Playground):
    session = play.session()
    answers = play.answers(session)
    assert answers is not None
    assert (answers.prompt, answers.base, answers.edited) == (
        "what color is the circle?",
        "black",
        None,
    )
    found = play.changes(session)
    assert {one.probe for one in found} == {
        Probe.RELIABILITY,
        Probe.TEXT_GENERALITY,
        Probe.IMAGE_GENERALITY,
        Probe.TEXT_LOCALITY,
        Probe.IMAGE_LOCALITY,
    }
    assert found[0].before.answer == found[0].after.answer == "black"


def test_an_edit_changes_the_answer_and_the_scores_of_both_metrics(play: Playground, fields):
    session, seconds = play.edit(play.session(), fields, FT)
    assert seconds > 0
    request, *others = play.changes(session)
    assert (request.before.answer, request.after.answer) == ("black", "brown")
    assert request.before.exact_match == 0
    assert request.after.exact_match == request.after.token_accuracy == 1
    assert request.is_good
    assert request.verdict == "new answer"
    unrelated = [one for one in others if one.probe.is_locality]
    assert len(unrelated) == 4
    assert all(one.before.exact_match == 1 and not one.expected for one in unrelated)


def test_the_base_model_and_other_sessions_stay_as_they_were(play: Playground, fields, vlm):
    request = case_of(fields, play.pictures).request
    before = vlm.predict([request]).logits
    one, other = play.session(), play.session()
    edited, _ = play.edit(one, fields, FT)
    assert one.edits == other.edits == ()
    assert len(edited.edits) == 1
    assert torch.equal(vlm.predict([request]).logits, before)


def test_an_edit_is_taken_out_and_put_back(play: Playground, fields):
    edited, _ = play.edit(play.session(), fields, FT)
    twice, _ = play.edit(edited, fields, IKE)
    assert [edit.name for edit in twice.held] == ["edit-1", "edit-2"]
    undone = twice.undone()
    assert [edit.name for edit in undone.held] == ["edit-1"]
    empty = undone.undone()
    answers = play.answers(empty)
    assert answers is not None
    assert answers.edited is None
    again = empty.holding(["edit-1"])
    request = case_of(fields, play.pictures).request
    assert torch.equal(again.vlm.predict([request]).logits, edited.vlm.predict([request]).logits)
    with pytest.raises(EditError, match="holds no edit"):
        empty.undone()
    with pytest.raises(EditError, match="this tab has no edit named 'edit-9'"):
        twice.holding(["edit-9"])


def test_saved_edits_come_back_in_a_new_session_with_the_same_answers(play: Playground, fields):
    edited, _ = play.edit(play.session(), fields, FT)
    path = play.save(edited, "brown")
    assert play.folders.saved() == ["brown"]
    loaded, parts = play.load(play.session(), "brown")
    assert len(parts) == 1
    request = case_of(fields, play.pictures).request
    expected = edited.vlm.predict([request]).logits
    assert torch.equal(loaded.vlm.predict([request]).logits, expected)
    assert path.name in label_of(loaded.edits[0])
    twice, _ = play.load(loaded, "brown")
    assert len({edit.name for edit in twice.edits}) == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "name is empty"),
        ("  ", "name is empty"),
        (None, "name is empty"),
        ("../out", "cannot be the name"),
        ("a/b", "cannot be the name"),
        ("/tmp/x", "cannot be the name"),
        (".hidden", "cannot be the name"),
        ("..", "cannot be the name"),
        ("x" * 65, "cannot be the name"),
        ("nul\0", "cannot be the name"),
        ("link", "link to another place"),
        ("there", "exists already"),
    ],
)
def test_no_name_leads_out_of_the_folder_of_edits(name, message, tmp_path: Path):
    folders = Folders(tmp_path / "edits", tmp_path / "exports")
    (folders.edits / "there").mkdir(parents=True)
    (folders.edits / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(EditError, match=message):
        folders.to_save(name)


@pytest.mark.parametrize("name", ["", None, "../edits/real", "missing", ["real"]])
def test_only_a_saved_edit_of_the_list_is_loaded(name, tmp_path: Path):
    folders = Folders(tmp_path / "edits", tmp_path / "exports")
    for folder in ("real", "not an edit"):
        (folders.edits / folder).mkdir(parents=True)
    (folders.edits / "real" / "edit.json").write_text("{}")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "edit.json").write_text("{}")
    (folders.edits / "link").symlink_to(tmp_path / "outside")
    assert folders.to_load("real") == folders.edits / "real"
    for wrong in (name, "link"):
        with pytest.raises(EditError, match=r"No edit is chosen|no saved edit|another place"):
            folders.to_load(wrong)


def test_nothing_is_saved_or_exported_without_an_edit(play: Playground):
    with pytest.raises(EditError, match="holds no edit"):
        play.save(play.session(), "x")
    with pytest.raises(EditError, match="holds no edit"):
        play.export(play.session(), "x", "transformers")
    with pytest.raises(UnknownNameError, match="form of an export"):
        play.export(play.session(), "x", "zip")
    assert not play.folders.edits.exists()


def test_a_dropped_picture_gets_the_unrelated_questions_of_the_dataset(own: Path, pictures):
    written = Fields(prompt="what is it?", image=own, target="grass", rephrase="what is shown?")
    case = case_of(written, pictures)
    assert prompts(case, Probe.RELIABILITY) == ["what is it?"]
    assert prompts(case, Probe.TEXT_GENERALITY) == ["what is shown?"]
    assert Probe.IMAGE_GENERALITY not in case.probes
    assert len(case.probes[Probe.TEXT_LOCALITY]) == len(case.probes[Probe.IMAGE_LOCALITY]) == 2


def test_another_question_about_a_dataset_picture_drops_the_rephrase_of_the_first(pictures, fields):
    changed = Fields(
        prompt="is there a circle?", image=fields.image, target="no", rephrase=fields.rephrase
    )
    case = case_of(changed, pictures)
    assert Probe.TEXT_GENERALITY not in case.probes
    assert prompts(case, Probe.IMAGE_GENERALITY) == ["is there a circle?"]
    kept = case_of(fields, pictures)
    assert prompts(kept, Probe.TEXT_GENERALITY) == [fields.rephrase]
    assert kept.probes[Probe.TEXT_LOCALITY][0] == pictures.cases[0].probes[Probe.TEXT_LOCALITY][0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"prompt": " "}, "The question is empty"),
        ({"prompt": None}, "The question is empty"),
        ({"prompt": ["x"]}, "The question is empty"),
        ({"prompt": "x" * 4001}, "at most 4,000"),
        ({"target": ""}, "The new answer is empty"),
        ({"prompt": "half \ud83d"}, "half of a character"),
        ({"rephrase": "x" * 4001}, "at most 4,000"),
    ],
)
def test_a_wrong_text_is_a_sentence(wrong, message, pictures):
    written = {"prompt": "what is it?", "target": "dog", "rephrase": ""} | wrong
    with pytest.raises(DataError, match=message):
        case_of(Fields(**written), pictures)


def test_a_question_that_is_too_long_for_the_vlm_is_refused(play: Playground):
    with pytest.raises(DataError, match="tokens"):
        play.ask(play.session(), Fields(prompt="what is it? " * 300))


def test_an_error_about_a_picture_names_the_file_and_not_its_folder(tmp_path: Path):
    (tmp_path / "cat.png").write_text("not a picture")
    with pytest.raises(ImageError, match=r"^cat\.png is not an image"):
        opened(tmp_path / "cat.png")


def test_a_method_that_must_be_fitted_says_how(play: Playground, fields):
    title = "MEND: must be fitted first"
    with pytest.raises(EditorError, match="mmedit fit --editor mend --vlm embedded --out"):
        play.edit(play.session(), fields, title)
    with pytest.raises(UnknownNameError, match="no method named 'nonsense'"):
        play.edit(play.session(), fields, "nonsense")


def test_fitted_editors_in_the_folder_are_offered_and_edit(play: Playground, fields, vlm):
    cases = load_cases("easyvqa", "train", limit=4)
    fitted = load_editor("ike", vlm, k=2).fit(vlm, Fitting(cases))
    fitted.save(play.editors_dir / "ike-2")
    (play.editors_dir / "damaged").mkdir()
    (play.editors_dir / "damaged" / "editor.json").write_text("{")
    [title] = [m.title for m in play.methods() if "fitted (" in m.title]
    assert title == f"IKE: fitted ({play.editors_dir / 'ike-2'})"
    session, _ = play.edit(play.session(), fields, title)
    assert session.edits[0].method == "ike"


def test_settings_that_do_not_fit_a_method_are_refused_before_the_page_opens(play: Playground):
    play.check_editors()
    with pytest.raises(ConfigError, match="stepz"):
        replace(play, overrides=Overrides.parse(["ft.stepz=3"])).check_editors()
    with pytest.raises(EditorError, match=r"has no editor\.json"):
        replace(play, editors=(str(play.folders.edits.parent),)).check_editors()


def test_methods_that_need_no_training_come_first(tmp_path: Path):
    titles = [m.title for m in list_methods("embedded", editors_dir=tmp_path)]
    assert titles[0] == FT
    assert [t for t in titles if "must be fitted" in t] == titles[3:]
    assert method_named(titles[0], list_methods("x", editors_dir=tmp_path)).name == "ft"


def test_texts_of_users_and_models_are_never_markup(play: Playground, own: Path):
    evil = "<img src=x onerror=alert(1)>${1+1}{{7*7}}"
    session = play.ask(play.session(), Fields(prompt=evil, image=own))
    shown = answers_html(play.answers(session))
    assert "<img src=x" not in shown
    assert "&lt;img src=x" in shown
    assert "<b>" not in note_html("<b>bold</b>", kind="fault")
    case = EditCase(id="x", request=Example(prompt=evil, target=evil))
    table = changes_html(play.changes(Session(play.start, case=case)), held=0)
    assert "<img src=x" not in table
    assert "{{7*7}}" in table


def test_the_table_says_each_outcome_in_words(play: Playground, fields):
    session, _ = play.edit(play.session(), fields, FT)
    shown = changes_html(play.changes(session), held=1)
    assert "3 of 3 questions about the edit get the new answer" in shown
    assert shown.count("new answer</span>") == 3
    assert "tok&nbsp;100 · EM&nbsp;100" in shown
    before = changes_html(play.changes(session.undone()), held=0)
    assert "no edit yet" in before
    assert "new answer</span>" not in before


def test_another_family_is_asked_and_edited(pictures: Pictures, own: Path, tmp_path: Path):
    folder = tiny_families.save_family("qwen2_5_vl", tmp_path / "model")
    play = Playground(
        start=load_vlm(folder),
        pictures=pictures,
        folders=Folders(tmp_path / "edits", tmp_path / "exports"),
        overrides=Overrides.parse(["ft.steps=30", "ft.lr=0.01"]),
        vlm_name=str(folder),
    )
    written = Fields(prompt="what is it?", image=own, target="a dog")
    session, _ = play.edit(play.session(), written, FT)
    request, *_ = play.changes(session)
    assert request.before.exact_match == 0
    assert request.after.exact_match == 1
    play.save(session, "dog")
    loaded, _ = play.load(play.session(), "dog")
    assert play.answers(loaded) == play.answers(session)


@pytest.mark.parametrize("form", ["transformers", "peft"])
def test_an_export_says_what_was_seen_when_it_was_opened(play: Playground, fields, form: str):
    session, _ = play.edit(play.session(), fields, FT)
    made, path = play.export(session, "brown", form)
    assert path == play.folders.exports / "brown"
    assert any(path.iterdir())
    said = report(made, path)
    assert "the edit is kept, 0 of the other answers changed" in said
    assert str(path) in said
    with pytest.raises(EditError, match="exists already"):
        play.export(session, "brown", form)
    context, _ = play.edit(play.session(), fields, IKE)
    with pytest.raises(EditError, match="mmedit serve"):
        play.export(context, "ike", form)
    assert not (play.folders.exports / "ike").exists()


def test_a_dataset_without_pictures_still_opens(vlm, tmp_path: Path):
    text = EditCase(id="a", request=Example(prompt="name the capital of Italy.", target="Paris"))
    play = Playground(
        start=vlm, pictures=Pictures([text]), folders=Folders(tmp_path, tmp_path / "exports")
    )
    session = play.session()
    assert play.answers(session) is None
    assert play.changes(session) == ()
    asked = play.answers(play.ask(session, Fields(prompt="name the capital of Italy.")))
    assert asked is not None
    assert asked.base == "Rome"
