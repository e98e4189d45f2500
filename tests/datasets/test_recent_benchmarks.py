"""ComprehendEdit, FGVEdit, CCKEB and ADS-Edit: which question each case asks about which image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmedit.cases import EditCase, Probe
from mmedit.config import load_cases
from mmedit.errors import DataError

COMMON = {"loc": "what is the capital of France", "loc_ans": "Paris"}


def write(root: Path, name: str, records: list[dict[str, Any]]) -> None:
    (root / name).write_text(json.dumps(records), encoding="utf-8")


def draw(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), "red").save(path)


def asked(case: EditCase, probe: Probe) -> list[tuple[str, str, str | None]]:
    return [
        (e.prompt, e.target, e.image.name if isinstance(e.image, Path) else None)
        for e in case.probes[probe]
    ]


# ComprehendEdit


def neighbour(pid: int, source: str = "GQA", **more: Any) -> dict[str, Any]:
    return {
        "image": f"GQA/images/{pid}.jpg", "question": f"q{pid}?", "answer": f"a{pid}",
        "source": source, "Category": "object counting", "pid": pid,
    } | more  # fmt: skip


def of_test(pid: int, **more: Any) -> dict[str, Any]:
    groups = ("img_topk", "txt_topk", "img_last_topk", "txt_last_topk")
    probes = {
        "rephrase": f"r{pid}?", "locality_prompt": "capital?", "locality_ground_truth": "Paris",
        "multimodal_locality_image": "GQA/images/0.jpg",
        "multimodal_locality_prompt": "what?", "multimodal_locality_ground_truth": "this",
    }  # fmt: skip
    others = {group: [0, 1, 2, 3] for group in groups}
    rights = {f"ori_rt_{group}": [12, 11, 10] for group in groups}
    return neighbour(pid) | probes | others | rights | more


@pytest.fixture
def comprehend(tmp_path: Path) -> Path:
    draw(tmp_path, *(f"GQA/images/{number}.jpg" for number in (*range(4), 10, 11, 12)))
    write(tmp_path, "ComprehendEdit_test.json", [of_test(pid) for pid in range(4)])
    rights = [neighbour(10, "TallyQA"), neighbour(11, "VSR"), neighbour(12, "MathVista")]
    write(tmp_path, "ComprehendEdit_ori_right.json", rights)
    return tmp_path


def read(root: Path, **settings: Any) -> list[EditCase]:
    return list(load_cases("comprehendedit", "test", root=root, **settings))


def test_the_nearest_are_the_first_named_and_the_farthest_the_last_and_none_is_itself(comprehend):
    case = read(comprehend, per_group=2)[1]
    near, far = Probe.GENERALIZATION_IMAGE_NEAR, Probe.GENERALIZATION_TEXT_FAR
    assert [target for _, target, _ in asked(case, near)] == ["a0", "a2"]
    assert [target for _, target, _ in asked(case, far)] == ["a2", "a3"]
    assert asked(case, near)[0] == ("Question: q0? Short answer:", "a0", "0.jpg")


def test_what_was_right_is_in_a_file_of_its_own_and_asked_as_its_source_asks(comprehend):
    case = read(comprehend, per_group=3)[0]
    assert asked(case, Probe.PRESERVATION_TEXT_NEAR) == [
        ("q12? Short answer:", "a12", "12.jpg"),
        (
            "Question: Is this description true or false? Description: q11? Short answer:",
            "a11",
            "11.jpg",
        ),
        ("Question: q10? Answer with a number. Short answer:", "a10", "10.jpg"),
    ]


def test_a_template_of_your_own_is_asked_of_all_sources(comprehend):
    case = read(comprehend, per_group=1, template="Q: {} A:")[0]
    assert asked(case, Probe.PRESERVATION_IMAGE_NEAR) == [("Q: q12? A:", "a12", "12.jpg")]
    assert case.request.prompt == "Q: q0? A:"


def test_text_locality_has_its_answer_and_no_template(comprehend):
    assert asked(read(comprehend)[0], Probe.TEXT_LOCALITY) == [("capital?", "Paris", None)]
    assert Probe.IMAGE_GENERALITY not in read(comprehend)[0].probes


def test_neighbours_can_be_left_out_and_then_their_file_need_not_be_there(comprehend):
    (comprehend / "ComprehendEdit_ori_right.json").unlink()
    probes = read(comprehend, per_group=0)[0].probes
    assert not any(probe.among for probe in probes)
    with pytest.raises(DataError, match=r"ComprehendEdit_ori_right\.json does not exist"):
        read(comprehend)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"img_topk": [77]}, "img_topk names pid 77, which .* lacks; expected one of its 4"),
        ({"ori_rt_txt_topk": None}, "row 0: ori_rt_txt_topk is missing; .*dataset.per_group=0"),
        ({"img_topk": "1"}, "row 0: img_topk"),
        ({"source": None}, "row 0: source"),
        (
            {"locality_ground_truth": None},
            "locality_ground_truth is missing beside locality_prompt",
        ),
        ({"rephrase": None}, "row 0: rephrase is missing"),
        ({"image": "../../x.jpg"}, "row 0, image"),
        ({"multimodal_locality_image": "../../x.jpg"}, "row 0, multimodal_locality_image"),
    ],
)
def test_a_fault_of_comprehendedit_is_named(comprehend, changed, message):
    record = {k: v for k, v in of_test(0, **changed).items() if v is not None}
    write(comprehend, "ComprehendEdit_test.json", [record, *map(of_test, range(1, 4))])
    with pytest.raises(DataError, match=message):
        read(comprehend)


def test_images_may_be_in_the_folder_beside_the_files(comprehend):
    (comprehend / "ComprehendEdit").mkdir()
    (comprehend / "GQA").rename(comprehend / "ComprehendEdit" / "GQA")
    assert len(read(comprehend)) == 4


# FGVEdit

FINE = COMMON | {
    "src": "What is left?", "alt": "a fox", "rephrase": "What stands left?",
    "image": "train2014/1.jpg", "fg_gen_q": "Is it a fox?", "fg_gen_a": "yes",
    "fg_loc_q": "What is right?", "fg_loc_a": "a cup",
}  # fmt: skip


def test_fine_questions_are_about_the_edited_image(tmp_path: Path):
    draw(tmp_path / "images", "train2014/1.jpg")
    write(tmp_path, "test_data.json", [FINE])
    [case] = load_cases("fgvedit", "test", root=tmp_path)
    template = "Question: {} Short answer:"
    assert asked(case, Probe.FINE_GENERALITY) == [(template.format("Is it a fox?"), "yes", "1.jpg")]
    assert asked(case, Probe.FINE_LOCALITY) == [
        (template.format("What is right?"), "a cup", "1.jpg")
    ]
    assert Probe.FINE_LOCALITY.is_locality
    assert not Probe.FINE_GENERALITY.is_locality


def test_the_files_of_fgvedit_may_be_in_a_folder_of_their_own(tmp_path: Path):
    draw(tmp_path / "images", "train2014/1.jpg")
    (tmp_path / "FGVEdit").mkdir()
    write(tmp_path / "FGVEdit", "train_data.json", [FINE])
    assert [case.id for case in load_cases("fgvedit", "train", root=tmp_path)] == [
        "fgvedit-train-0"
    ]


@pytest.mark.parametrize("key", ["fg_gen_q", "fg_loc_a", "loc", "rephrase"])
def test_a_key_that_fgvedit_lacks_is_named(tmp_path: Path, key: str):
    write(tmp_path, "test_data.json", [{k: v for k, v in FINE.items() if k != key}])
    with pytest.raises(DataError, match=rf"row 0: {key}"):
        load_cases("fgvedit", "test", root=tmp_path)


# CCKEB


def pair(**more: Any) -> dict[str, Any]:
    question = {"Question": "Where does he work?", "Answer": "Bonn", "Query": "..."}
    return COMMON | {
        "src": "Who is it?", "pred": "Ada", "alt": "Bob", "rephrase": "What is his name?",
        "image": "m/1.jpg", "image_rephrase": "m/2.jpg",
        "m_loc": "m/3.jpg", "m_loc_q": "what?", "m_loc_a": "this",
        "port_new": [{"port_type": "comp", "Q&A": question}],
        "textual_edit": {
            "src": "Where does Bob work?", "pred": ["Bonn"], "alt": ["New", "York"],
            "rephrase": "In which city does Bob work?", "loc": "who?", "loc_ans": "he",
        },
    } | more  # fmt: skip


@pytest.fixture
def cckeb(tmp_path: Path) -> Path:
    draw(tmp_path / "CCKEB_images" / "mmkb_images", "m/1.jpg", "m/2.jpg", "m/3.jpg")
    return tmp_path


def test_a_case_of_cckeb_edits_an_image_and_a_fact_and_asks_what_needs_both(cckeb):
    write(cckeb, "CCKEB_eval.json", [pair()])
    [case] = load_cases("cckeb", "test", root=cckeb)
    assert [(r.prompt, r.target, r.image is None) for r in case.requests] == [
        ("Who is it?", "Bob", False),
        ("Where does Bob work?", "New York", True),
    ]
    assert asked(case, Probe.COMPOSITIONAL_RELIABILITY) == [
        ("Where does he work?", "New York", "1.jpg")
    ]
    assert asked(case, Probe.TEXT_RELIABILITY) == [("Where does Bob work?", "New York", None)]
    assert asked(case, Probe.TEXT_GENERALITY) == [
        ("What is his name?", "Bob", "1.jpg"),
        ("In which city does Bob work?", "New York", None),
    ]
    assert asked(case, Probe.TEXT_LOCALITY)[1] == ("who?", "he", None)
    assert Probe.PORTABILITY not in case.probes


def test_other_hops_of_cckeb_are_portability(cckeb):
    more = {"port_type": "2-hop", "Q&A": {"Question": "And then?", "Answer": "so"}}
    write(cckeb, "CCKEB_eval.json", [pair(port_new=[more, *pair()["port_new"]])])
    [case] = load_cases("cckeb", "test", root=cckeb)
    assert asked(case, Probe.PORTABILITY) == [("And then?", "so", "1.jpg")]
    assert len(case.probes[Probe.COMPOSITIONAL_RELIABILITY]) == 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"port_new": []},
            "row 0: port_new holds nothing; expected an entry with port_type 'comp'",
        ),
        ({"textual_edit": {"src": "x", "alt": "y"}}, r"row 0: textual_edit\.rephrase"),
        ({"textual_edit": pair()["textual_edit"] | {"alt": 3}}, r"row 0: textual_edit\.alt"),
        ({"textual_edit": pair()["textual_edit"] | {"alt": " "}}, "an empty field"),
    ],
)
def test_a_fault_of_cckeb_is_named(cckeb, changed, message):
    write(cckeb, "CCKEB_eval.json", [pair(**changed)])
    with pytest.raises(DataError, match=message):
        load_cases("cckeb", "test", root=cckeb)


# ADS-Edit


def driving(image: Any, kind: str = "single-image", **more: Any) -> dict[str, Any]:
    return COMMON | {
        "src": "What do the cones signal?", "rephrase": "What do they mean?", "alt": "Road works",
        "image": image, "image_rephrase": image, "image_type": kind, "data_type": "Signboard",
        "source": "codalm", "m_loc": "val2014/1.jpg", "m_loc_q": "what?", "m_loc_a": "this",
    } | more  # fmt: skip


VIDEO = driving(["images/train/x/0.jpg", "images/train/x/1.jpg"], "video")
CAMERAS = driving({"CAM_FRONT": "../a.jpg", "CAM_BACK": "../b.jpg"}, "multi-image")


@pytest.fixture
def road(tmp_path: Path) -> Path:
    draw(tmp_path / "images", "test/images/3391.jpg", "a.jpg", "val2014/1.jpg")
    return tmp_path


def test_a_name_of_coda_lm_is_the_image_that_it_annotates(road):
    names = ["test_3391.json", "a.jpg", ["a.jpg"], "images/a.jpg"]
    write(road, "test.json", [driving(name) for name in names])
    cases = load_cases("adsedit", "test", root=road)
    images = [case.request.image for case in cases]
    assert all(isinstance(image, Path) and image.is_file() for image in images)
    assert str(images[0]).endswith("images/test/images/3391.jpg")


def test_videos_and_several_cameras_are_left_out_and_counted_and_take_no_place(road):
    write(road, "test.json", [VIDEO, driving("a.jpg"), CAMERAS, driving("a.jpg", src="And?")])
    cases = load_cases("adsedit", "test", root=road)
    assert [case.id for case in cases] == ["adsedit-test-1", "adsedit-test-3"]
    assert cases.left_out == {"a video or several images": 2}
    assert len(load_cases("adsedit", "test", root=road, limit=1)) == 1


def test_if_there_are_only_videos_the_error_says_so(road):
    write(road, "test.json", [VIDEO])
    with pytest.raises(DataError, match=r"no record is left \(a video or several images: 1\)"):
        load_cases("adsedit", "test", root=road)


# What they have in common


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("comprehendedit", "ComprehendEdit_test.json"),
        ("fgvedit", "test_data.json"),
        ("cckeb", "CCKEB_eval.json"),
        ("adsedit", "test.json"),
    ],
)
def test_a_file_that_is_missing_is_named_with_how_to_get_it(tmp_path: Path, name: str, file: str):
    with pytest.raises(DataError, match=rf"{file} does not exist.*mmedit data get {name}"):
        load_cases(name, "test", root=tmp_path)


def test_the_command_that_checks_them_counts_their_files(mmedit_, comprehend):
    shown = mmedit_("data", "check", "comprehendedit", "--root", comprehend)
    assert shown.code == 0
    assert "| records | 4 | 3 |" in shown.out
    assert "| published | 4,482 | – |" in shown.out
    assert "ComprehendEdit_train.json is not there" in shown.out
