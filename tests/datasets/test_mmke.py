"""MMKE-Bench: which question is asked about which image, of each of its three types."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmedit.bench.protocol import NoEdit, evaluate
from mmedit.cases import EditCase, Probe
from mmedit.config import load_cases
from mmedit.errors import DataError, MmeditError
from mmedit.report.table import method_table

BASE: dict[str, Any] = {
    "src": "What is known of the one in the image?",
    "pred": "It is Ada.",
    "alt": "It is Bob, who lives in Oslo.",
    "rephrase": "What can you tell about it?",
    "image": "entity/Ada+2.jpg",
    "image_rephrase": "entity/Ada+11.jpg",
    "loc": "what is the capital of France",
    "loc_ans": "Paris",
    "m_loc": "entity/other.jpg",
    "m_loc_q": "What colour is it?",
    "m_loc_a": "red",
    "port_new": [
        {
            "port_type": "1-hop",
            "Q&A": {"Question": "In which country does it live?", "Answer": "Norway"},
        }
    ],
    "type_self": "human",
}
NUMBERED = {
    "rel_1": "Where does Bob live?", "rel_ans_1": "Oslo", "rel_2": "Who is Bob?", "rel_ans_2": "it",
    "m_rel_1": "Where does it live?", "m_rel_ans_1": "Oslo",
    "m_rel_2": "What is its name?", "m_rel_ans_2": "Bob",
}  # fmt: skip
OTHER_SPELLING = {
    key.replace("rel_ans_1", "rel_1_ans").replace("rel_ans_2", "rel_2_ans"): value
    for key, value in NUMBERED.items()
}
RECORDS: dict[str, dict[str, Any]] = {
    "entity": BASE | NUMBERED | {"knowledge_type": "entity_level"},
    "user": BASE
    | OTHER_SPELLING
    | {"knowledge_type": "user_specific", "one_hop_img": "entity/hop.jpg"},
    "visual": BASE
    | {
        "knowledge_type": "visual_knowledge",
        "rel": "What does a thumb up mean?",
        "rel_ans": "no",
        "m_rel": "What does the gesture mean?",
        "m_rel_ans": "no",
        "image_rephrase_question": "And here?",
        "one_hop_img": "entity/hop.jpg",
    },
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number, name in enumerate(("Ada+2", "Ada+11", "other", "hop")):
        file = tmp_path / "data_image" / "entity" / f"{name}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (60 * number, 0, 0)).save(file)
    return tmp_path


def write(root: Path, name: str, records: list[dict]) -> None:
    file = root / "data_json" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(records))


def load(root: Path, knowledge: str, split: str = "test", **settings: str) -> list[EditCase]:
    given = {"root": root, "knowledge": knowledge} | settings
    settings = {key: str(value) for key, value in given.items()}
    return list(load_cases("mmke", split, **settings))  # pyright: ignore


def asked(case: EditCase, probe: Probe) -> list[tuple[str, str, str | None]]:
    return [
        (e.prompt, e.target, e.image.name if isinstance(e.image, Path) else None)
        for e in case.probes[probe]
    ]


@pytest.mark.parametrize("knowledge", list(RECORDS))
@pytest.mark.parametrize("layout", ["{}_eval.json", "{}/eval.json"])
def test_both_layouts_are_read(root, knowledge, layout):
    write(root, layout.format(knowledge), [RECORDS[knowledge]])
    [case] = load(root, knowledge)
    assert case.id == f"mmke-{knowledge}-test-0"
    assert asked(case, Probe.RELIABILITY) == [(BASE["src"], BASE["alt"], "Ada+2.jpg")]
    assert asked(case, Probe.TEXT_GENERALITY) == [(BASE["rephrase"], BASE["alt"], "Ada+2.jpg")]
    assert asked(case, Probe.TEXT_LOCALITY) == [(BASE["loc"], "Paris", None)]
    assert asked(case, Probe.IMAGE_LOCALITY) == [("What colour is it?", "red", "other.jpg")]


@pytest.mark.parametrize("knowledge", ["entity", "user"])
def test_two_questions_each_are_asked_of_entities_and_users(root, knowledge):
    write(root, f"{knowledge}_eval.json", [RECORDS[knowledge]])
    [case] = load(root, knowledge)
    assert asked(case, Probe.TEXT_RELIABILITY) == [
        ("Where does Bob live?", "Oslo", None),
        ("Who is Bob?", "it", None),
    ]
    for probe, image in ((Probe.IMAGE_RELIABILITY, "Ada+2"), (Probe.IMAGE_GENERALITY, "Ada+11")):
        assert asked(case, probe) == [
            ("Where does it live?", "Oslo", f"{image}.jpg"),
            ("What is its name?", "Bob", f"{image}.jpg"),
        ]


def test_what_is_seen_has_one_question_and_another_one_about_the_other_image(root):
    write(root, "visual_eval.json", [RECORDS["visual"]])
    [case] = load(root, "visual")
    assert asked(case, Probe.TEXT_RELIABILITY) == [("What does a thumb up mean?", "no", None)]
    assert asked(case, Probe.IMAGE_RELIABILITY) == [
        ("What does the gesture mean?", "no", "Ada+2.jpg")
    ]
    assert asked(case, Probe.IMAGE_GENERALITY) == [("And here?", "no", "Ada+11.jpg")]


@pytest.mark.parametrize(
    ("knowledge", "image"), [("entity", "Ada+2.jpg"), ("user", "hop.jpg"), ("visual", "hop.jpg")]
)
def test_portability_is_about_the_image_of_the_hop(root, knowledge, image):
    write(root, f"{knowledge}_eval.json", [RECORDS[knowledge]])
    [case] = load(root, knowledge)
    assert asked(case, Probe.PORTABILITY) == [("In which country does it live?", "Norway", image)]


def test_the_template_is_around_questions_about_images(root):
    write(root, "entity_eval.json", [RECORDS["entity"]])
    [case] = load(root, "entity", template="Q: {} A:")
    assert case.request.prompt == f"Q: {BASE['src']} A:"
    assert case.probes[Probe.IMAGE_RELIABILITY][0].prompt == "Q: Where does it live? A:"
    assert case.probes[Probe.TEXT_RELIABILITY][0].prompt == "Where does Bob live?"


def without(record: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != key}


@pytest.mark.parametrize(
    ("knowledge", "record", "message"),
    [
        (
            "entity",
            RECORDS["user"],
            "row 0: knowledge_type is 'user_specific'; dataset.knowledge=entity",
        ),
        ("entity", without(RECORDS["entity"], "rel_ans_2"), "row 0: rel_ans_2 is missing"),
        ("visual", without(RECORDS["visual"], "m_rel"), "row 0: m_rel is missing"),
        ("visual", without(RECORDS["visual"], "one_hop_img"), "row 0: one_hop_img is missing"),
        ("user", RECORDS["user"] | {"one_hop_img": "../../x.jpg"}, "lies outside of"),
        ("entity", RECORDS["entity"] | {"image": "entity/gone.jpg"}, "gone.jpg"),
        ("entity", without(RECORDS["entity"], "knowledge_type"), "row 0: knowledge_type"),
        ("nothing", RECORDS["entity"], "no type of knowledge of mmke named 'nothing'"),
    ],
)
def test_a_fault_is_named_with_file_row_and_key(root, knowledge, record, message):
    write(root, f"{knowledge}_eval.json", [record])
    with pytest.raises(MmeditError, match=message):
        load(root, knowledge)


def test_an_old_answer_need_not_be_there(root):
    write(root, "visual_eval.json", [RECORDS["visual"] | {"pred": ""}])
    assert len(load(root, "visual")) == 1


def test_what_is_missing_says_how_to_get_it(root):
    with pytest.raises(DataError, match="mmedit data get mmke --root DIR"):
        load(root, "entity")


def test_cases_run_through_the_embedded_vlm(vlm, root):
    write(root, "visual_eval.json", [RECORDS["visual"]])
    records = list(evaluate(vlm, NoEdit(), load(root, "visual"), name="base", batch_size=4))
    table = method_table(records)
    headings = list(dict.fromkeys(heading for heading, _ in table.columns))
    assert headings[:8] == ["Rel", "T-Rel", "I-Rel", "T-Gen", "I-Gen", "T-Loc", "I-Loc", "Port"]


def test_the_audit_counts_all_types_that_are_there(mmedit_, root):
    for knowledge, record in RECORDS.items():
        write(root, f"{knowledge}_eval.json", [record, record])
    shown = mmedit_("data", "check", "mmke", "--root", root)
    assert shown.code == 0
    assert "data_json/entity_eval.json" in shown.out
    assert "| records | 2 | 2 | 2 |" in shown.out
    assert "| images in all | 3 | 4 | 4 |" in shown.out
