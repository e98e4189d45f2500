"""Requests of edits from a file: only src, alt and image count."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmedit.datasets.annotated.requests import read_requests
from mmedit.errors import DataError

CAT = {"src": "What animal is this?", "alt": " dog ", "image": "cat.png"}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "cat.png")
    return tmp_path


def written(folder: Path, *records: Any) -> Path:
    file = folder / "facts.json"
    file.write_text(json.dumps(records))
    return file


def test_a_record_of_three_keys_is_a_request(pictures: Path):
    [request] = read_requests(written(pictures, CAT))
    assert (request.prompt, request.target) == ("What animal is this?", "dog")
    assert request.image == pictures / "cat.png"


def test_other_keys_may_be_there_and_need_no_files(pictures: Path):
    more = {"rephrase": "", "image_rephrase": "gone.png", "answers": ["a dog"], "mine": 3}
    [request] = read_requests(written(pictures, CAT | more | {"subject": "animal"}))
    assert request.accepted == ("dog", "a dog")
    assert request.subject == "animal"


def test_images_are_found_in_other_folders(
    pictures: Path, tmp_path_factory: pytest.TempPathFactory
):
    file = written(tmp_path_factory.mktemp("elsewhere"), CAT)
    assert read_requests(file, images=[pictures])[0].image == pictures / "cat.png"
    with pytest.raises(DataError, match=r"row 0, image: image not found: .*--images DIR"):
        read_requests(file)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (CAT | {"alt": " "}, r"row 1: alt is empty; fill it in"),
        (CAT | {"answers": [""]}, r"row 1: answers\.0 is empty"),
        ({"src": "what?", "alt": "dog"}, r"row 1: image: Field required"),
        (CAT | {"subject": "car"}, r"row 1: subject: 'car' does not stand in src"),
        (CAT | {"image": "../cat.png"}, r"row 1, image: '\.\./cat\.png' lies outside"),
        (CAT | {"image": "torn.png"}, r"row 1, image: .*torn\.png is not an image"),
        (CAT | {"src": "cut \ud83d"}, r"row 1: src: .*half of a character"),
    ],
)
def test_a_wrong_record_is_an_error_of_its_row(
    pictures: Path, record: dict[str, Any], message: str
):
    (pictures / "torn.png").write_text("text")
    with pytest.raises(DataError, match=message):
        read_requests(written(pictures, CAT, record))


@pytest.mark.parametrize("content", ["", "{}", "[]", "[1]"])
def test_a_file_that_is_no_list_of_records_is_one_error(tmp_path: Path, content: str):
    (tmp_path / "facts.json").write_text(content)
    with pytest.raises(DataError, match=r"facts\.json"):
        read_requests(tmp_path / "facts.json")
    with pytest.raises(DataError, match="does not exist"):
        read_requests(tmp_path / "nowhere.json")
