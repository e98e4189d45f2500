"""E-VQA, E-IC, VLKEB and one's own files: annotation files to edit cases, and their audit."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny
from PIL import Image
from shared_data import shared_data
from typer.testing import CliRunner

from mmedit.bench.protocol import evaluate
from mmedit.cases import Cases, Probe
from mmedit.cli.console import app
from mmedit.config import load_cases, load_editor
from mmedit.datasets import base
from mmedit.datasets.annotated import audit, releases
from mmedit.errors import ConfigError, DataError, UnknownNameError
from mmedit.progress import silent
from mmedit.settings import Overrides

RECORD: dict[str, Any] = {
    "src": "Is it sunny?",
    "pred": "no",
    "alt": " yes",
    "rephrase": "Is the weather bright?",
    "image": "val2014/1.jpg",
    "image_rephrase": "val2014_image_rephrase/1.png",
    "loc": "nq question: who wrote hamlet",
    "loc_ans": "Shakespeare",
    "m_loc": "val2014/2.jpg",
    "m_loc_q": "What does this grow from?",
    "m_loc_a": "roots",
}
OTHER = RECORD | {"src": "How many?", "alt": "2", "image": "val2014/3.jpg"}


def save_images(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        tiny.random_image(number).save(path)


IMAGES = ("val2014/1.jpg", "val2014_image_rephrase/1.png", "val2014/2.jpg", "val2014/3.jpg")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """`editing-data` with two records of either benchmark."""
    for file in (
        "vqa/vqa_train.json",
        "vqa/vqa_eval.json",
        "caption/caption_train_edit.json",
        "caption/caption_eval_edit.json",
    ):
        write(tmp_path / file, [RECORD, OTHER])
    save_images(tmp_path / "images", *IMAGES)
    return tmp_path


def write(file: Path, records: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(records), encoding="utf-8")
    return file


def evqa(root: Path, *settings: str, **changes: Any) -> Cases:
    return load_cases("evqa", "test", **parsed(f"root={root}", *settings), **changes)


def parsed(*settings: str) -> dict[str, Any]:
    """What `--set dataset.KEY=VALUE` makes of settings."""
    return dict(Overrides.parse(f"dataset.{setting}" for setting in settings).of("dataset"))


# What a record becomes


def test_every_key_of_a_record_becomes_what_the_paper_does_with_it(root: Path):
    case = evqa(root)[0]
    asked = {probe: shown[0] for probe, shown in case.probes.items()}
    template = "Question: {} Short answer:".format
    image, images = root / "images" / "val2014/1.jpg", root / "images"
    assert case.id == "evqa-test-0"
    assert (case.request.prompt, case.request.target) == (template("Is it sunny?"), "yes")
    assert case.request.image == image
    assert asked[Probe.TEXT_GENERALITY].prompt == template("Is the weather bright?")
    assert asked[Probe.IMAGE_GENERALITY].image == images / "val2014_image_rephrase/1.png"
    assert asked[Probe.IMAGE_GENERALITY].prompt == case.request.prompt
    assert asked[Probe.TEXT_LOCALITY].prompt == "nq question: who wrote hamlet"
    assert asked[Probe.TEXT_LOCALITY].image is None
    assert asked[Probe.IMAGE_LOCALITY].prompt == template("What does this grow from?")
    assert asked[Probe.IMAGE_LOCALITY].target == "roots"
    assert asked[Probe.IMAGE_LOCALITY].image == images / "val2014/2.jpg"


def test_captions_are_asked_without_the_template_of_questions(root: Path):
    case = load_cases("eic", "train", root=str(root))[0]
    assert case.request.prompt == "Is it sunny?"
    locality = case.probes[Probe.IMAGE_LOCALITY][0]
    assert locality.prompt == "Question: What does this grow from? Short answer:"


def test_the_order_is_the_files_and_a_limit_its_beginning(root: Path):
    assert [case.id for case in evqa(root, seed=3)] == ["evqa-test-0", "evqa-test-1"]
    assert [case.id for case in evqa(root, limit=1)] == ["evqa-test-0"]


def test_braces_in_a_question_stay_braces(root: Path):
    write(root / "vqa" / "vqa_eval.json", [RECORD | {"src": "What is {0} {}?"}])
    assert evqa(root, "template='Q: {}'")[0].request.prompt == "Q: What is {0} {}?"


def test_folders_of_images_can_be_named(root: Path, tmp_path: Path):
    (root / "images" / "val2014_image_rephrase").rename(tmp_path / "val2014_image_rephrase")
    case = evqa(root, f"rephrase_images={tmp_path}")[0]
    assert case.probes[Probe.IMAGE_GENERALITY][0].image == tmp_path / RECORD["image_rephrase"]


@pytest.mark.parametrize(
    ("kind", "file", "hop"),
    [
        ("onehop", "eval_edit_onehop.json", {"port_q": "Which zone?", "port_a": "Central"}),
        (
            "multihop",
            "eval_multihop.json",
            {"port_type": "2-hop", "Q&A": {"Question": "Which zone?", "Answer": "Central"}},
        ),
    ],
)
def test_vlkeb_asks_its_portability_questions(tmp_path: Path, kind: str, file: str, hop: Any):
    write(tmp_path / file, [RECORD | {"port_new": [hop, hop]}])
    save_images(tmp_path / "VLKEB_images", *IMAGES)
    case = load_cases("vlkeb", "test", root=str(tmp_path), portability=kind)[0]
    hops = case.probes[Probe.PORTABILITY]
    assert [(asked.prompt, asked.target) for asked in hops] == [("Which zone?", "Central")] * 2
    assert hops[0].image == case.request.image


def test_ones_own_file_needs_no_more_than_question_answer_and_image(tmp_path: Path):
    mine = {
        "src": "What is it?",
        "alt": "a fox",
        "image": "fox.png",
        "answers": ["fox", "a red fox"],
    }
    file = write(tmp_path / "mine.json", [mine])
    save_images(tmp_path, "fox.png")
    case = load_cases("json", "test", test=str(file))[0]
    assert list(case.probes) == [Probe.RELIABILITY]
    assert case.request.accepted == ("a fox", "fox", "a red fox")
    with pytest.raises(DataError, match="the train file is not named"):
        load_cases("json", "train", test=str(file))


def test_the_subject_of_ones_own_record_is_set_where_it_stands(tmp_path: Path):
    save_images(tmp_path, "fox.png")
    mine = {"src": "What does the fox eat?", "rephrase": "What is its food?", "alt": "mice"}
    mine |= {"image": "fox.png", "subject": "the Fox"}
    case = load_cases("json", "test", test=write(tmp_path / "mine.json", [mine]))[0]
    assert case.request.subject == "the Fox"
    assert [example.subject for example in case.probes[Probe.TEXT_GENERALITY]] == [""]
    file = write(tmp_path / "other.json", [mine | {"subject": "a cat"}])
    with pytest.raises(DataError, match=r"row 0: subject: 'a cat' does not stand in src"):
        load_cases("json", "test", test=file)


def test_cases_run_through_the_protocol(root: Path, vlm):
    editor = load_editor("ft", vlm, steps=1)
    records = list(evaluate(vlm, editor, evqa(root), name="FT", batch_size=2))
    assert [record.case_id for record in records] == ["evqa-test-0", "evqa-test-1"]
    assert all(len(record.probes) == 5 for record in records)


# Faults

FAULTS: dict[str, tuple[Any, str]] = {
    "no list": ({"src": "a"}, "expected a JSON list of records"),
    "empty": ([], "at least one"),
    "no record": (["a"], "row 0: the record"),
    "missing key": ([RECORD, {k: v for k, v in RECORD.items() if k != "alt"}], "row 1: alt"),
    "missing probe": ([{k: v for k, v in RECORD.items() if k != "rephrase"}], "row 0: rephrase"),
    "wrong type": ([RECORD | {"alt": 2}], r"row 0: alt: .* \(found 2\)"),
    "half a pair": (
        [{k: v for k, v in RECORD.items() if k != "m_loc_a"}],
        "m_loc_a is missing beside",
    ),
    "empty hop": ([RECORD | {"port_new": [{"port_q": "a"}]}], "port_new.0 must hold port_q and"),
    "above the root": (
        [RECORD | {"image": "../1.jpg"}],
        "row 0, image: '../1.jpg' lies outside of the folder .*images: it is .*1.jpg",
    ),
    "a NUL": (
        [RECORD | {"image": "a\0.png"}],
        r"row 0, image: 'a\\x00.png' cannot be read: .*null",
    ),
    "a long name": (
        [RECORD | {"image": "a" * 5000}],
        r"row 0, image: 'a{27}\.\.\.a{27}' cannot be read: File name too long$",
    ),
    "a lone surrogate": (
        [RECORD, RECORD | {"loc": "a\ud800"}],
        r"row 1: loc: 'a\\ud800' contains half of a character",
    ),
    "a lone surrogate below": (
        [RECORD | {"port_new": [{"port_q": "a", "port_a": "\ud800"}]}],
        r"row 0: port_new\.0\.port_a: ",
    ),
    "absolute": (
        [RECORD | {"m_loc": "/etc/passwd"}],
        "row 0, m_loc: '/etc/passwd' lies outside of .*set 'dataset.images=",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_with_file_row_and_key(root: Path, fault: str):
    records, message = FAULTS[fault]
    file = write(root / "vqa" / "vqa_eval.json", records)
    with pytest.raises(DataError, match=message) as raised:
        evqa(root)
    assert str(file) in str(raised.value)


def test_a_file_with_a_byte_order_mark_is_read(root: Path):
    file = root / "vqa" / "vqa_eval.json"
    file.write_text(json.dumps([RECORD]), encoding="utf-8-sig")
    assert len(evqa(root)) == 1
    file.write_text(json.dumps([RECORD | {"src": "é"}], ensure_ascii=False), encoding="latin-1")
    with pytest.raises(DataError, match=r"is not UTF-8 text: .* Save it as UTF-8"):
        evqa(root)


@pytest.fixture
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    save_images(folder, "a.jpg", "b.jpg")
    return folder


def own(tmp_path: Path, images: str, *records: dict[str, Any]) -> Cases:
    file = write(tmp_path / "mine" / "mine.json", list(records))
    settings = [f"test={file}", *([f"images={images}"] if images else [])]
    return load_cases("json", "test", **parsed(*settings))


def of(image: Path | str) -> dict[str, Any]:
    return {"src": "What is it?", "alt": "a fox", "image": str(image)}


@pytest.mark.parametrize("images", ["{}", "[{}]", "/", "[/, {}]"])
def test_absolute_paths_are_allowed_inside_a_named_folder(tmp_path: Path, photos: Path, images):
    [case] = own(tmp_path, images.format(photos), of(photos / "a.jpg"))
    assert case.request.image == photos / "a.jpg"
    with pytest.raises(DataError, match=r"mine\.json, row 0, image: .* lies outside of the folder"):
        own(tmp_path, "", of(photos / "a.jpg"))


def test_a_linked_folder_is_allowed_once_what_it_leads_to_is_named(tmp_path: Path, photos: Path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "photos").symlink_to(photos)
    with pytest.raises(DataError, match="lies outside of the folder"):
        own(tmp_path, "", of("photos/a.jpg"))
    for images in (f"[{mine}, {photos}]", f"[{photos}, {mine}]", str(mine / "photos")):
        name = "a.jpg" if images.endswith("photos") else "photos/a.jpg"
        [case] = own(tmp_path, images, of(name))
        assert case.request.image == mine / "photos" / "a.jpg"


def test_each_folder_is_searched_in_turn(tmp_path: Path, photos: Path):
    save_images(tmp_path / "mine", "own.jpg", "a.jpg")
    images = f"[{tmp_path / 'mine'}, {photos}]"
    cases = own(tmp_path, images, of("own.jpg"), of("a.jpg"), of("b.jpg"))
    folders = [case.request.image.parent for case in cases]  # pyright: ignore
    assert folders == [tmp_path / "mine", tmp_path / "mine", photos]


def test_when_every_record_has_an_empty_field_the_rows_and_keys_are_named(tmp_path: Path):
    save_images(tmp_path / "mine", "a.jpg")
    empty = of("a.jpg") | {"alt": " "}
    with pytest.raises(DataError, match=r"row 0: alt; row 1: rephrase, alt|row 1: alt, reph") as e:
        own(tmp_path, "", empty, empty | {"rephrase": ""})
    assert "an empty field: 2" in str(e.value)
    assert "dataset.images" not in str(e.value)
    with pytest.raises(DataError, match=r"row 4: alt; and 3 more\. Fill these"):
        own(tmp_path, "", *[empty] * 8)


def test_a_file_of_ones_own_that_is_not_there_is_named_as_such(tmp_path: Path):
    with pytest.raises(
        DataError, match=r"the file .*gone\.json does not exist\. Check the path in"
    ) as e:
        load_cases("json", "test", test=tmp_path / "gone.json")
    assert "dataset.images" not in str(e.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("folder", "folder is not a regular file; name a text file"),
        ("pipe", "pipe is not a regular file; name a text file"),
        ("a" * 5000, r"'/.*\.\.\.a*' cannot be read: File name too long"),
        ("a\0b", r"cannot be a path: embedded null byte"),
    ],
)
def test_a_path_that_is_no_readable_file_is_one_line(tmp_path: Path, name: str, message: str):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match=message) as raised:
        load_cases("json", "test", test=tmp_path / name)
    assert len(str(raised.value)) < 400


def test_a_pipe_in_place_of_an_image_is_named_and_not_opened(tmp_path: Path):
    (tmp_path / "mine").mkdir()
    os.mkfifo(tmp_path / "mine" / "pipe.png")
    with pytest.raises(DataError, match=r"pipe\.png \(which is not a regular file; .* row 0\)"):
        own(tmp_path, "", of("pipe.png"))


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"answers": ["fox", ""]}, r"answers\.1"),
        ({"port_new": [{"port_q": " ", "port_a": "mice"}]}, r"port_new\.0\.port_q"),
        ({"port_new": [{"Q&A": {"Question": "q", "Answer": ""}}]}, r"port_new\.0\.Q&A\.Answer"),
    ],
)
def test_an_empty_text_inside_a_list_leaves_the_record_out_too(tmp_path: Path, changed, key):
    save_images(tmp_path / "mine", "a.jpg")
    with pytest.raises(DataError, match=f"row 0: {key}"):
        own(tmp_path, "", of("a.jpg") | changed)
    cases = own(tmp_path, "", of("a.jpg"), of("a.jpg") | changed)
    assert (len(cases), cases.left_out) == (1, {"an empty field": 1})


@pytest.mark.parametrize(
    "changed", [{"limit": "5"}, {"limit": True}, {"seed": True}, {"limit": -1}]
)
def test_a_limit_or_seed_that_is_no_count_is_refused(root: Path, changed):
    with pytest.raises(ConfigError, match=r"expected a (whole )?number"):
        load_cases("evqa", "test", root=root, **changed)


def test_the_training_file_alone_is_enough_for_training(tmp_path: Path):
    save_images(tmp_path, "a.jpg")
    file = write(tmp_path / "train.json", [of("a.jpg")])
    assert len(load_cases("json", "train", train=file)) == 1
    with pytest.raises(DataError, match=r"the test file is not named: --set dataset\.test="):
        load_cases("json", "test", train=file)


def test_a_split_is_train_or_test(root: Path):
    with pytest.raises(UnknownNameError, match=r"no split named 'tset'\. Did you mean 'test'\?"):
        load_cases("evqa", "tset", root=root)  # pyright: ignore


def test_a_link_that_leads_out_of_the_root_is_refused(root: Path, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    save_images(elsewhere, "1.jpg")
    (root / "images" / "val2014" / "link").symlink_to(elsewhere)
    write(root / "vqa" / "vqa_eval.json", [RECORD | {"image": "val2014/link/1.jpg"}])
    with pytest.raises(DataError, match="lies outside of the folder"):
        evqa(root)


def test_a_file_that_is_no_json_or_too_large_is_refused(root: Path, monkeypatch):
    (root / "vqa" / "vqa_eval.json").write_text("[{", encoding="utf-8")
    with pytest.raises(DataError, match=r"vqa_eval\.json is not valid JSON"):
        evqa(root)
    monkeypatch.setattr(base, "MAX_BYTES", 1)
    with pytest.raises(DataError, match="has 2 bytes; at most 1 are read"):
        evqa(root)


def test_missing_images_are_counted_before_anything_runs(root: Path):
    (root / "images" / "val2014" / "2.jpg").unlink()
    with pytest.raises(DataError, match=r"1 images are missing, for instance .*2\.jpg") as raised:
        evqa(root)
    assert "mmedit data get evqa --root DIR" in str(raised.value)
    assert "on_missing_image=skip" in str(raised.value)


def test_records_without_their_images_can_be_left_out_and_are_counted(root: Path):
    (root / "images" / "val2014" / "3.jpg").unlink()
    write(root / "vqa" / "vqa_eval.json", [RECORD, OTHER, RECORD | {"loc_ans": " "}])
    cases = evqa(root, "on_missing_image=skip")
    assert [case.id for case in cases] == ["evqa-test-0"]
    assert cases.left_out == {"an image is missing": 1, "an empty field": 1}
    (root / "images" / "val2014" / "2.jpg").unlink()
    with pytest.raises(DataError, match=r"no record is left \(an image is missing: 2, an empty"):
        evqa(root, "on_missing_image=skip")


def test_wrong_settings_say_what_was_wanted(root: Path, tmp_path: Path):
    with pytest.raises(DataError, match=r"evqa needs its folder: --set dataset\.root=ROOT"):
        load_cases("evqa", "test")
    with pytest.raises(DataError, match="does not exist"):
        evqa(tmp_path / "nowhere")
    for template in ("Q", "Q: {}"):
        with pytest.raises(ConfigError, match=r"a text that holds \{\} once"):
            evqa(root, f"template={template}")
    with pytest.raises(UnknownNameError, match=r"Did you mean 'skip'\?"):
        evqa(root, "on_missing_image=skp")
    with pytest.raises(ConfigError, match="tempate"):
        evqa(root, "tempate=Q {}")
    with pytest.raises(UnknownNameError, match="portability of vlkeb"):
        load_cases("vlkeb", "test", root=str(root), portability="two")


def test_what_is_left_out_is_said_on_the_command_line(root: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    (root / "images" / "val2014" / "3.jpg").unlink()
    done = CliRunner().invoke(
        app,
        [
            "bench", "--editor", "ft", "--dataset", "evqa", "--out", str(tmp_path / "run"),
            "--set", f"dataset.root={root}", "--set", "dataset.on_missing_image=skip",
            "--set", "editor.steps=1", "--no-generate",
        ],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    said = "Left out of evqa: an image is missing: 1."
    assert said in done.stderr
    assert said in " ".join(done.stdout.split())
    assert said in (tmp_path / "run" / "table.md").read_text(encoding="utf-8")
    table = CliRunner().invoke(app, ["table", str(tmp_path / "run")])
    assert said in " ".join(table.stdout.split())


# Audit


def audited(name: str, root: Path, *, decode: bool = False) -> list[audit.Audit]:
    settings = releases.PUBLISHED[name](root=root)
    return audit.audit_release(settings, decode=decode, progress=silent)[0]


audited_once = cache(audited)
"""For the real files, which take seconds to read."""


def test_audit_counts_what_may_spoil_a_number(root: Path):
    twin = RECORD | {"pred": "YES"}
    write(root / "vqa" / "vqa_eval.json", [RECORD, OTHER, twin, RECORD | {"alt": "", "src": "?"}])
    (root / "images" / "val2014" / "3.jpg").unlink()
    (root / "images" / "val2014" / "2.jpg").write_bytes(b"no image")
    found = audited("evqa", root, decode=True)[1]
    assert (found.records, found.published) == (4, 2093)
    assert (found.duplicates, found.unchanged) == (1, 1)
    assert found.empty == {"alt": (3,)}
    assert found.words == Counter({1: 3, 0: 1})
    assert (found.request_images, found.images) == (2, 4)
    assert [Path(path).name for path in found.missing] == ["3.jpg"]
    assert found.corrupt is not None
    assert "2.jpg is not an image" in found.corrupt[0]


def test_audit_counts_rephrases_and_questions_that_make_a_score_easy(root: Path):
    records = [
        RECORD | {"rephrase": "Here it is:\n\nIs it bright?"},
        RECORD | {"rephrase": " is it Sunny? ", "image_rephrase": RECORD["image"]},
        RECORD | {"rephrase": "Yes or no: is it sunny?", "m_loc": RECORD["image"]},
        RECORD | {"alt": "no", "src": "Is it sunny?", "loc_ans": "William\nShakespeare"},
        RECORD | {"alt": "+", "rephrase": "Is it?", "port_new": [{"port_q": "?", "port_a": "x"}]},
    ]
    write(root / "vqa" / "vqa_eval.json", records)
    found = audited("evqa", root)[1]
    assert {title: rows for title, rows in found.doubtful.items() if rows} == {
        "rephrases of several lines": (0,),
        "rephrases that repeat the question": (1,),
        "rephrases that hold the new answer": (2,),
        "other texts of several lines": (3,),
        "rephrased image is the request's": (1,),
        "image locality is about the request's image": (2,),
    }
    assert found.contradicting == 2
    shown = audit.markdown([found], "mmedit data check evqa")
    assert "| rephrases of several lines | 1 |" in shown
    assert "vqa_eval.json: rephrases that repeat the question, for instance row 1\n" in shown


def test_audit_is_printed_as_markdown(root: Path):
    done = CliRunner().invoke(app, ["data", "check", "evqa", "--root", str(root)])
    assert done.exit_code == 0, done.output
    assert "| records | 2 | 2 |" in done.stdout
    assert "| images corrupt | not opened | not opened |" in done.stdout
    assert done.stdout.count("SHA-256") == 2


def test_audit_of_something_else_names_what_there_is(root: Path):
    with pytest.raises(UnknownNameError, match="no dataset to check named 'easyvqa'") as raised:
        CliRunner().invoke(
            app, ["data", "check", "easyvqa", "--root", str(root)], catch_exceptions=False
        )
    names = "adsedit, cckeb, comprehendedit, eic, evqa, fgvedit, grocery, json, mmke, vlkeb"
    assert names in str(raised.value)


def test_audit_of_ones_own_file_names_every_fault(tmp_path: Path, photos: Path, mmedit_):
    save_images(tmp_path / "mine", "a.jpg")
    records = [
        of("a.jpg"),
        of("a.jpg"),
        of("gone.jpg") | {"alt": ""},
        of(photos / "b.jpg") | {"loc": "why " * 300, "loc_ans": "so"},
    ]
    file = write(tmp_path / "mine" / "mine.json", records)
    shown = mmedit_("data", "check", "json", "--root", file)
    assert shown.code == 0, shown.err
    assert "| records | 4 |" in shown.out
    assert "| duplicates (question, answer, image) | 1 |" in shown.out
    assert "| records with an empty field | alt 1 |" in shown.out
    assert "mine.json: empty, for instance alt in row 2" in shown.out
    assert "too long, for instance row 3, loc (1,200 characters" in shown.out
    assert "| images missing | 1 |" in shown.out
    assert "| images outside of the folders | 1 |" in shown.out
    assert "mine.json, row 3, image: " in shown.out
    shown = mmedit_("data", "check", "json", "--root", file, "--images", "/")
    assert "| images outside of the folders | 0 |" in shown.out


def test_audit_says_which_files_are_not_there(root: Path, mmedit_):
    (root / "vqa" / "vqa_train.json").unlink()
    shown = mmedit_("data", "check", "evqa", "--root", root)
    assert "vqa_train.json is not there" in shown.out
    (root / "vqa" / "vqa_eval.json").unlink()
    shown = mmedit_("data", "check", "evqa", "--root", root)
    assert (shown.code, "mmedit data get evqa" in shown.err) == (2, True)


def test_audit_opens_what_it_is_told_to(root: Path):
    Image.new("RGB", (4, 4)).save(root / "images" / "val2014" / "3.jpg")
    done = CliRunner().invoke(app, ["data", "check", "eic", "--root", str(root), "--decode"])
    assert "| images corrupt | 0 | 0 |" in done.stdout


# The real files

COUNTS = {
    "evqa": ("editing-data", (6345, 2093), (6, 4), (3363, 1390)),
    "eic": ("editing-data", (2849, 1000), (0, 0), (2849, 1000)),
    "vlkeb": ("VLKEB", (5000, 3174, 1278), (0, 0, 0), (5000, 3174, 1278)),
}


@pytest.mark.parametrize("name", COUNTS)
def test_the_real_files_are_read_whole(name: str):
    folder, records, unchanged, images = COUNTS[name]
    found = audited_once(name, shared_data(folder))
    assert tuple(one.records for one in found) == records
    assert tuple(one.unchanged for one in found) == unchanged
    assert tuple(one.request_images for one in found) == images
    assert not any(one.empty for one in found)


def test_the_audit_counts_the_odd_rephrases_of_e_vqa():
    train, test = audited_once("evqa", shared_data("editing-data"))
    for title, counts in {
        "rephrases of several lines": (15, 13),
        "rephrases that repeat the question": (118, 45),
    }.items():
        assert (len(train.doubtful[title]), len(test.doubtful[title])) == counts


def test_real_records_become_cases_where_their_images_are(tmp_path: Path):
    file = shared_data("editing-data") / "vqa" / "vqa_eval.json"
    records = json.loads(file.read_text(encoding="utf-8"))[:5]
    write(tmp_path / "vqa" / "vqa_eval.json", records)
    named = {r[key] for r in records for key in ("image", "image_rephrase", "m_loc")}
    save_images(tmp_path / "images", *sorted(named))
    cases = evqa(tmp_path)
    assert [case.request.target for case in cases] == [record["alt"] for record in records]
    assert cases[0].request.prompt == (
        "Question: How many tennis balls are in the picture? Short answer:"
    )


def test_the_file_of_the_page_is_read(tmp_path: Path):
    page = Path(__file__).parents[2] / "docs" / "datasets.md"
    [shown] = re.findall(r"```json\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    file = write(tmp_path / "mine.json", json.loads(shown))
    save_images(tmp_path, "photos/1.jpg", "photos/2.jpg", "photos/3.jpg")
    [case] = load_cases("json", "test", test=str(file))
    generality = {Probe.TEXT_GENERALITY, Probe.IMAGE_GENERALITY}
    locality = {Probe.TEXT_LOCALITY, Probe.IMAGE_LOCALITY}
    assert set(case.probes) == {Probe.RELIABILITY, *generality, *locality, Probe.PORTABILITY}
