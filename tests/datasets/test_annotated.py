"""E-VQA, E-IC, VLKEB and one's own files: annotation files to edit cases, and their audit."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tiny
from PIL import Image
from shared_data import shared_data
from typer.testing import CliRunner

from mmedit.bench.protocol import evaluate
from mmedit.cases import Probe
from mmedit.cli.console import app
from mmedit.config import load_cases, load_editor
from mmedit.datasets.annotated import annotations, audit, releases
from mmedit.datasets.annotated.cases import Cases
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
    overrides = Overrides.parse(f"dataset.{setting}" for setting in (f"root={root}", *settings))
    found = load_cases("evqa", "test", **overrides.of("dataset"), **changes)
    assert isinstance(found, Cases)
    return found


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


def test_cases_run_through_the_protocol(root: Path, vlm):
    editor = load_editor("ft", vlm, steps=1)
    records = list(evaluate(vlm, editor, evqa(root), name="FT", batch_size=2))
    assert [record.case_id for record in records] == ["evqa-test-0", "evqa-test-1"]
    assert all(len(record.probes) == 5 for record in records)


# Faults

FAULTS: dict[str, tuple[Any, str]] = {
    "no list": ({"src": "a"}, "a JSON list of records was wanted"),
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
        "the image '../1.jpg' lies outside",
    ),
    "absolute": (
        [RECORD | {"m_loc": "/etc/passwd"}],
        "the image '/etc/passwd' lies outside",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_with_file_row_and_key(root: Path, fault: str):
    records, message = FAULTS[fault]
    file = write(root / "vqa" / "vqa_eval.json", records)
    with pytest.raises(DataError, match=message) as raised:
        evqa(root)
    assert str(file) in str(raised.value)


def test_a_link_that_leads_out_of_the_root_is_refused(root: Path, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    save_images(elsewhere, "1.jpg")
    (root / "images" / "val2014" / "link").symlink_to(elsewhere)
    write(root / "vqa" / "vqa_eval.json", [RECORD | {"image": "val2014/link/1.jpg"}])
    with pytest.raises(DataError, match="lies outside of"):
        evqa(root)


def test_a_file_that_is_no_json_or_too_large_is_refused(root: Path, monkeypatch):
    (root / "vqa" / "vqa_eval.json").write_text("[{", encoding="utf-8")
    with pytest.raises(DataError, match=r"vqa_eval\.json is not valid JSON"):
        evqa(root)
    monkeypatch.setattr(annotations, "MAX_BYTES", 1)
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
    assert cases.left_out == Counter({"an image is missing": 1, "an empty field": 1})
    (root / "images" / "val2014" / "2.jpg").unlink()
    with pytest.raises(DataError, match=r"no record is left \(an image is missing: 2, an empty"):
        evqa(root, "on_missing_image=skip")


def test_wrong_settings_say_what_was_wanted(root: Path, tmp_path: Path):
    with pytest.raises(DataError, match=r"evqa needs its folder: --set dataset\.root=ROOT"):
        load_cases("evqa", "test")
    with pytest.raises(DataError, match="there is no folder"):
        evqa(tmp_path / "nowhere")
    for template in ("Q", "Q: {}"):
        with pytest.raises(DataError, match=r"a text that holds \{\} once"):
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
    assert said in done.stdout
    assert said in (tmp_path / "run" / "table.md").read_text(encoding="utf-8")
    assert said in CliRunner().invoke(app, ["table", str(tmp_path / "run")]).stdout


# Audit


def test_audit_counts_what_may_spoil_a_number(root: Path):
    twin = RECORD | {"pred": "YES"}
    write(root / "vqa" / "vqa_eval.json", [RECORD, OTHER, twin, RECORD | {"alt": "", "src": "?"}])
    (root / "images" / "val2014" / "3.jpg").unlink()
    (root / "images" / "val2014" / "2.jpg").write_bytes(b"no image")
    source = releases.evqa_source("test", root=str(root))
    found = audit.audit(source, decode=True, progress=silent)
    assert (found.records, found.published) == (4, 2093)
    assert (found.duplicates, found.unchanged) == (1, 1)
    assert found.empty == Counter({"alt": 1})
    assert found.words == Counter({1: 3, 0: 1})
    assert (found.request_images, found.images) == (2, 4)
    assert [Path(path).name for path in found.missing] == ["3.jpg"]
    assert found.corrupt is not None
    assert "2.jpg is not an image" in found.corrupt[0]


def test_audit_is_printed_as_markdown(root: Path):
    done = CliRunner().invoke(app, ["data", "check", "evqa", "--root", str(root)])
    assert done.exit_code == 0, done.output
    assert "| records | 2 | 2 |" in done.stdout
    assert "| images corrupt | not opened | not opened |" in done.stdout
    assert done.stdout.count("SHA-256") == 2


def test_audit_of_something_else_names_what_there_is(root: Path):
    with pytest.raises(UnknownNameError, match="benchmark to check"):
        audit.sources_of("easyvqa", str(root))


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
    found = [
        audit.audit(source, decode=False, progress=silent)
        for source in audit.sources_of(name, str(shared_data(folder)))
    ]
    assert tuple(one.records for one in found) == records
    assert tuple(one.unchanged for one in found) == unchanged
    assert tuple(one.request_images for one in found) == images
    assert not any(one.empty for one in found)


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
    mmke = {Probe.TEXT_RELIABILITY, Probe.IMAGE_RELIABILITY}
    assert set(case.probes) == set(Probe) - mmke
