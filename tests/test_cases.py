from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import random_image

from mmedit.bench.protocol import evaluate
from mmedit.cases import Cases, EditCase, Example, Probe, dataset_hash, image_name
from mmedit.errors import DataError, EmptyAnswerError, UnknownNameError
from mmedit.methods.ft import FT, FTConfig


def test_repr_of_an_example_names_its_image_in_a_few_words():
    example = Example(prompt="which color?", target="red", image=Path("pictures/a/7.png"))
    assert repr(example) == "Example('which color?' -> 'red', image 7.png)"
    in_memory = Example(prompt="which color?", target="red", image=random_image(0), context="New")
    assert repr(in_memory) == (
        "Example('which color?' -> 'red', image of 40 x 30 pixels, context of 3 characters)"
    )
    assert repr(Example(prompt="a", target="b")) == "Example('a' -> 'b')"


def test_repr_of_a_case_counts_its_probes():
    request = Example(prompt="which color?", target="red")
    case = EditCase(id="7", request=request, probes={Probe.TEXT_LOCALITY: (request, request)})
    assert repr(case) == (
        "EditCase('7', Example('which color?' -> 'red'), probes: reliability 1, text_locality 2)"
    )


def test_two_cases_of_one_id_are_refused_with_their_rows(vlm):
    request = Example(prompt="which color?", target="red")
    cases = [EditCase(id=name, request=request) for name in ("a", "b", "a")]
    message = r"two cases have the id 'a': rows 0 and 2 \(from 0\)"
    with pytest.raises(DataError, match=message):
        Cases(tuple(cases))
    with pytest.raises(DataError, match=message):
        evaluate(vlm, FT(FTConfig()), cases)


def test_the_hash_of_cases_covers_all_that_can_change_an_answer_or_its_score(tmp_path):
    picture = tmp_path / "a.png"
    random_image(0).save(picture)
    request = Example(prompt="which color?", target="red", image=picture, answers=("crimson",))
    local = Example(prompt="capital of France?", target="Paris")
    case = EditCase(id="7", request=request, probes={Probe.TEXT_LOCALITY: (local,)})
    cases = [case, EditCase(id="8", request=local)]

    def with_request(**changed: object) -> list[EditCase]:
        return [replace(case, request=replace(request, **changed)), cases[1]]

    hashes = [
        dataset_hash(cases),
        dataset_hash(cases[::-1]),
        dataset_hash(cases[:1]),
        dataset_hash(with_request(prompt="what color?")),
        dataset_hash(with_request(target="blue")),
        dataset_hash(with_request(answers=("scarlet",))),
        dataset_hash(with_request(context="New fact: it is red.")),
        dataset_hash(with_request(image=None)),
        dataset_hash(with_request(image=random_image(0))),
        dataset_hash(with_request(image=random_image(1))),
        dataset_hash([replace(case, id="x"), cases[1]]),
        dataset_hash([replace(case, probes={}), cases[1]]),
    ]
    random_image(1).save(picture)
    hashes.append(dataset_hash(cases))
    assert len(set(hashes)) == len(hashes)
    random_image(0).save(picture)
    assert dataset_hash(cases) == hashes[0]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"prompt": None}, "the prompt of an example is None, of type NoneType; expected a text"),
        ({"target": 5}, "the target of 'which color\\?' is 5, of type int; expected a text"),
        ({"target": ["red"]}, "of type list; expected a text"),
        ({"context": 5}, "the context of 'which color\\?' is 5"),
        ({"answers": None}, "the accepted answers .* are of type NoneType"),
        ({"answers": "scarlet"}, "expected a tuple of texts: \\('scarlet',\\)"),
        ({"answers": ("scarlet", 5)}, "an accepted answer of 'which color\\?' is 5"),
        ({"prompt": "cut off \ud83d"}, "the prompt .* contains half of a character"),
        ({"target": "cut off \ud83d"}, "the target .* contains half of a character"),
        ({"context": "\udcff"}, "the context .* contains half of a character"),
        ({"answers": ("\ud83d",)}, "an accepted answer .* contains half of a character"),
    ],
)
def test_an_example_of_anything_but_whole_texts_is_refused(given: dict[str, Any], said: str):
    with pytest.raises(DataError, match=said) as raised:
        Example(**{"prompt": "which color?", "target": "red", **given})
    str(raised.value).encode()  # the message itself can be printed


@pytest.mark.parametrize("given", [{"target": "  "}, {"answers": ("scarlet", " ")}])
def test_an_empty_answer_is_refused(given: dict[str, Any]):
    with pytest.raises(EmptyAnswerError, match=r"of 'which color\?' is empty"):
        Example(**{"prompt": "which color?", "target": "red", **given})


def test_accepted_answers_may_be_a_list_and_are_kept_as_a_tuple():
    example = Example(prompt="which color?", target="red", answers=["scarlet"])
    assert example.answers == ("scarlet",)
    assert example.accepted == ("red", "scarlet")


def test_an_unknown_probe_is_an_error_that_names_the_nearest_one():
    request = Example(prompt="which color?", target="red")
    probes: Any = {"reliabilty": (request,)}
    with pytest.raises(UnknownNameError, match="Did you mean 'reliability'"):
        EditCase(id="7", request=request, probes=probes)


def test_a_probe_may_be_named_by_its_value_and_have_one_example_alone():
    request = Example(prompt="which color?", target="red")
    probes: Any = {"portability": request}
    assert EditCase(id="7", request=request, probes=probes).probes[Probe.PORTABILITY] == (request,)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"id": 7}, "the id of a case is 7, of type int"),
        (
            {"request": "which color?"},
            "the request of case '7' is of type str",
        ),
        ({"probes": None}, "the probes of case '7' are of type NoneType"),
        ({"probes": {"portability": ["red"]}}, "the probe portability of case '7' is not a list"),
    ],
)
def test_a_case_of_anything_but_examples_is_refused(given: dict[str, Any], said: str):
    request = Example(prompt="which color?", target="red")
    with pytest.raises(DataError, match=said):
        EditCase(**{"id": "7", "request": request, **given})


def test_photographs_of_two_splits_have_two_names():
    def name_of(path: str) -> str | None:
        return image_name(Example(prompt="a", target="b", image=Path(path)))

    assert name_of("/home/me/grocery/val/Fruit/Kiwi/Kiwi_001.jpg") == "val/Fruit/Kiwi/Kiwi_001.jpg"
    deep = "train/Fruit/Apple/Golden-Delicious/Golden-Delicious_001.jpg"
    assert name_of(f"/home/me/grocery/{deep}") == deep
    assert name_of(f"/test/me/grocery/{deep}") == deep
    assert name_of("/test/home/me/images/val2014/COCO_1.jpg") == "images/val2014/COCO_1.jpg"
    assert name_of("cat.png") == "cat.png"
