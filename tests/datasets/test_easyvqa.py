from __future__ import annotations

import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from mmedit.bench.contradictions import find_contradictions
from mmedit.cases import Cases, EditCase, Example, Probe, Split
from mmedit.datasets import DATASETS, facts
from mmedit.datasets.easyvqa import cases as easyvqa
from mmedit.datasets.easyvqa import questions
from mmedit.datasets.easyvqa.cases import Task
from mmedit.datasets.easyvqa.pictures import Picture, known_pictures, load_pictures
from mmedit.datasets.easyvqa.questions import Scene, parse_question
from mmedit.datasets.easyvqa.renderings import find_shape
from mmedit.datasets.facts import split_facts
from mmedit.errors import ConfigError, UnknownNameError
from mmedit.images import image_key, open_image

SPLITS, TASKS = get_args(Split), get_args(Task)
COLOR_VALUES = {
    "black": (0, 0, 0), "blue": (0, 0, 255), "brown": (165, 42, 42), "gray": (128, 128, 128),
    "green": (0, 255, 0), "red": (255, 0, 0), "teal": (0, 128, 128), "yellow": (255, 255, 0),
}  # fmt: skip
ALL_PHRASINGS = {**questions.PHRASINGS, "caption": questions.CAPTION_PROMPTS, **facts.PHRASINGS}

every_split = pytest.mark.parametrize("split", SPLITS)
every_task = pytest.mark.parametrize("task", TASKS)
every_phrasings = pytest.mark.parametrize("phrasings", ALL_PHRASINGS.values(), ids=ALL_PHRASINGS)


@pytest.fixture(scope="session")
def all_cases() -> dict[tuple[Split, Task], Cases]:
    """All test cases that are questions, and many of the others."""
    limits = {("test", "vqa"): None, ("train", "vqa"): 639}
    return {
        (split, task): easyvqa.EasyVQA(task=task).load(split, limit=limits.get((split, task), 150))
        for split in SPLITS
        for task in TASKS
    }


@pytest.fixture(scope="session")
def undrawn_cases(
    all_cases: dict[tuple[Split, Task], Cases],
) -> dict[tuple[Split, Task], Cases]:
    """As `all_cases`, with all training cases that are questions: these have no other rendering of
    their picture, which takes longest to draw.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(easyvqa, "_render", lambda *_: None)
        return {**all_cases, ("train", "vqa"): easyvqa.EasyVQA().load("train")}


@pytest.fixture(scope="session")
def twice() -> Cases:
    """The test cases with two questions about each picture."""
    return easyvqa.EasyVQA(questions_per_picture=2).load("test")


@pytest.fixture(scope="session")
def pictures() -> dict[Path, tuple[Picture, Scene]]:
    return {
        picture.path: (picture, scene)
        for split in SPLITS
        for picture, scene in known_pictures(split)
    }


def path_of(example: Example) -> Path:
    assert isinstance(example.image, Path)
    return example.image


def only(case: EditCase, probe: Probe) -> Example:
    (example,) = case.probes[probe]
    return example


def everything(case: EditCase) -> list[object]:
    """All that a case says and shows."""
    return [
        (case.id, probe, example.prompt, example.target, example.image and image_key(example.image))
        for probe, examples in case.probes.items()
        for example in examples
    ]


# Splits, order and seeds


def test_train_has_2582_cases_and_test_639(undrawn_cases):
    assert len(undrawn_cases["train", "vqa"]) == 2_582
    assert len(undrawn_cases["test", "vqa"]) == 639
    assert len(easyvqa.EasyVQA(task="caption").load("test")) == 639


def test_two_questions_per_picture_make_1278_test_cases_the_second_ones_last(all_cases, twice):
    assert len(twice) == len({case.id for case in twice}) == 1_278
    assert [everything(case) for case in twice[:639]] == [
        everything(case) for case in all_cases["test", "vqa"]
    ]
    kinds = defaultdict[Path, list[questions.Kind]](list)
    for case in twice:
        kinds[path_of(case.request)].append(parse_question(case.request.prompt).kind)
    assert all(first != second for first, second in kinds.values())


def test_a_limit_never_raises_the_number_of_cases():
    assert len(easyvqa.EasyVQA(task="caption").load("test", limit=10**30)) == 639


def test_two_captions_of_a_picture_are_refused():
    with pytest.raises(ConfigError, match="a caption has one prompt"):
        easyvqa.EasyVQA(task="caption", questions_per_picture=2).load("test")


@every_split
@every_task
def test_no_case_edits_a_picture_that_image_locality_asks_about(undrawn_cases, split, task):
    cases = undrawn_cases[split, task]
    other_seed = easyvqa.EasyVQA(task=task).load(split, seed=7, limit=40)
    edited = {path_of(case.request) for case in (*cases, *other_seed)}
    assert edited.isdisjoint(
        path_of(only(case, Probe.IMAGE_LOCALITY)) for case in (*cases, *other_seed)
    )


def test_no_edit_contradicts_a_probe_of_another(twice):
    """A perfect editor can get every probe of 1,278 edits right."""
    assert find_contradictions(twice).counts == {}


def test_no_picture_of_the_test_split_is_in_the_train_split(undrawn_cases):
    shown: dict[str, set[Path]] = {
        split: {
            path_of(example)
            for case in undrawn_cases[split, "vqa"]
            for example in (case.request, only(case, Probe.IMAGE_LOCALITY))
        }
        for split in SPLITS
    }
    assert shown["train"].isdisjoint(shown["test"])
    content = {split: {image_key(path) for path in paths} for split, paths in shown.items()}
    assert content["train"].isdisjoint(content["test"])


@every_split
@every_task
def test_every_case_has_its_own_picture_and_id(undrawn_cases, split: Split, task: Task):
    cases = undrawn_cases[split, task]
    assert len({case.id for case in cases}) == len({case.request.image for case in cases})
    assert len({case.id for case in cases}) == len(cases)


@every_task
def test_same_seed_gives_the_same_cases(all_cases, task: Task):
    again = easyvqa.EasyVQA(task=task).load("test", limit=20)
    assert [everything(case) for case in again] == [
        everything(case) for case in all_cases["test", task][:20]
    ]


@every_task
def test_another_seed_gives_other_cases(all_cases, task: Task):
    other = easyvqa.EasyVQA(task=task).load("test", limit=20, seed=1)
    assert [case.id for case in other] != [case.id for case in all_cases["test", task][:20]]


@pytest.mark.parametrize("limit", [0, 1, 7])
def test_smaller_limit_is_a_prefix(all_cases, limit: int):
    first = easyvqa.EasyVQA().load("train", limit=limit)
    assert [everything(case) for case in first] == [
        everything(case) for case in all_cases["train", "vqa"][:limit]
    ]


@pytest.mark.parametrize("split", ["valid", "tset", None, ["test"]])
def test_another_split_is_never_the_test_split(split):
    with pytest.raises(UnknownNameError, match=r"no split named .* There are: test, train"):
        easyvqa.EasyVQA().load(split)


@pytest.mark.parametrize("changed", [{"limit": -1}, {"seed": -1}, {"seed": "a"}, {"limit": 1.5}])
def test_a_limit_or_seed_that_is_no_count_is_refused(changed):
    with pytest.raises(ConfigError, match="expected a whole number from 0"):
        easyvqa.EasyVQA().load("test", **changed)


def test_the_table_of_datasets_knows_the_loader():
    assert DATASETS["easyvqa"] is easyvqa.EasyVQA


# Questions and answers


@every_split
def test_every_question_of_easy_vqa_is_read_and_answered_as_easy_vqa_does(split: Split):
    pictures = load_pictures(split)
    assert (
        sum(len(picture.asked) for picture in pictures) == {"train": 38_575, "test": 9_673}[split]
    )
    for picture in pictures:
        for asked in picture.asked:
            texts = [
                asked.question.ask(p) for p in questions.PHRASINGS[asked.question.kind].original
            ]
            assert asked.text in texts
            if picture.scene:
                assert asked.question.answer(picture.scene) == asked.answer


def test_text_that_is_no_question_of_easy_vqa_is_an_error():
    for text in ("is there a pink shape?", "what color is the circle", "who drew the shape?"):
        with pytest.raises(ValueError, match=f"not a question of easy-VQA: '{re.escape(text)}'"):
            parse_question(text)


@every_split
def test_request_is_a_question_of_easy_vqa_with_a_wrong_answer_of_the_same_type(
    all_cases, pictures, split: Split
):
    types = (questions.COLORS, questions.SHAPES, ("yes", "no"))
    for case in all_cases[split, "vqa"]:
        picture, _ = pictures[path_of(case.request)]
        (truth,) = {asked.answer for asked in picture.asked if asked.text == case.request.prompt}
        (answers,) = [answers for answers in types if truth in answers]
        assert case.request.target in answers
        assert case.request.target != truth


@every_split
def test_no_kind_of_question_dominates(all_cases, split: Split):
    kinds = Counter(parse_question(case.request.prompt).kind for case in all_cases[split, "vqa"])
    assert set(kinds) == set(questions.Kind)
    assert max(kinds.values()) < 0.3 * kinds.total()


@every_split
def test_caption_target_is_wrong_in_colour_shape_and_size(all_cases, pictures, split: Split):
    for case in all_cases[split, "caption"]:
        path = path_of(case.request)
        _, scene = pictures[path]
        truth = scene.caption(find_shape(open_image(path)).size).split()
        target = case.request.target.split()
        different = [
            n for n, words in enumerate(zip(truth, target, strict=True)) if len(set(words)) > 1
        ]
        assert different == [1, 2, 3]
        assert target[1] in questions.SIZES
        assert target[2] in questions.COLORS
        assert target[3] in questions.SHAPES


# Rephrases


def wordings(case: EditCase, task: Task) -> tuple[set[str], set[str]]:
    """All ways to ask what a case asks: those of training, and those held out."""
    if task == "caption":
        return set(questions.CAPTION_PROMPTS.train), set(questions.CAPTION_PROMPTS.held_out)
    question = parse_question(case.request.prompt)
    phrasings = questions.PHRASINGS[question.kind]
    train, held_out = (
        {question.ask(p) for p in group} for group in (phrasings.train, phrasings.held_out)
    )
    return train, held_out


@every_split
@every_task
def test_rephrase_is_held_out_in_the_test_split_and_never_in_train(all_cases, split, task):
    for case in all_cases[split, task]:
        rephrase = only(case, Probe.TEXT_GENERALITY)
        train, held_out = wordings(case, task)
        assert rephrase.prompt in (held_out if split == "test" else train)
        assert rephrase.prompt not in (train if split == "test" else held_out)
        assert rephrase.prompt != case.request.prompt
        assert (rephrase.target, rephrase.image) == (case.request.target, case.request.image)


@every_phrasings
def test_held_out_wording_is_no_wording_of_training(phrasings: questions.Phrasings):
    assert set(phrasings.held_out).isdisjoint(phrasings.train)
    every = [*phrasings.train, *phrasings.held_out]
    assert len(set(every)) == len(every)


def words(texts: tuple[str, ...]) -> set[str]:
    return {word.strip("?.:") for text in texts for word in text.split()}


def test_every_word_of_a_held_out_wording_is_known_from_training():
    known = set[str]().union(*(words(p.train) for p in ALL_PHRASINGS.values()))
    for phrasings in ALL_PHRASINGS.values():
        assert words(phrasings.held_out) <= known


# Image rephrases


def color_of(image: Image.Image) -> str:
    """The named colour nearest to what is in the middle of the shape."""
    box = find_shape(image)
    row, column = (box.top + box.bottom) // 2, (box.left + box.right) // 2
    middle = np.asarray(image)[row - 1 : row + 2, column - 1 : column + 2].mean((0, 1))
    return min(COLOR_VALUES, key=lambda name: np.abs(middle - COLOR_VALUES[name]).sum())


@every_split
@every_task
def test_image_rephrase_asks_the_same_of_another_picture(all_cases, split: Split, task: Task):
    for case in all_cases[split, task]:
        other = only(case, Probe.IMAGE_GENERALITY)
        assert isinstance(other.image, Image.Image)
        assert (other.prompt, other.target) == (case.request.prompt, case.request.target)
        assert other.image.tobytes() != open_image(path_of(case.request)).tobytes()


@every_split
def test_image_rephrase_keeps_shape_in_frame_size_and_colour(all_cases, pictures, split: Split):
    for case in all_cases[split, "vqa"]:
        path, other = path_of(case.request), only(case, Probe.IMAGE_GENERALITY).image
        assert isinstance(other, Image.Image)
        before, after = find_shape(open_image(path)), find_shape(other)
        widths, heights = (
            (before.right - before.left, after.right - after.left),
            (before.bottom - before.top, after.bottom - after.top),
        )
        # 12 degrees and 12 % of size, for a box around it: cos 12 + sin 12 times the other side
        assert 0.7 < max(widths[1], heights[1]) / max(widths[0], heights[0]) < 1.45
        assert color_of(other) == pictures[path][1].color


# Locality


@every_split
@every_task
def test_locality_picture_shows_another_shape_in_another_colour(all_cases, pictures, split, task):
    for case in all_cases[split, task]:
        other = only(case, Probe.IMAGE_LOCALITY)
        picture, shown = pictures[path_of(other)]
        _, scene = pictures[path_of(case.request)]
        assert shown.color != scene.color
        assert shown.shape != scene.shape
        assert (other.prompt, other.target) in {(a.text, a.answer) for a in picture.asked}


def test_text_locality_of_the_two_splits_is_about_different_countries():
    countries = {split: {fact.subject for fact in split_facts(split)} for split in SPLITS}
    assert countries["train"].isdisjoint(countries["test"])
    assert set().union(*countries.values()) == {fact.subject for fact in facts.load_facts()}
    assert len(countries["test"]) > 20


@every_split
@every_task
def test_text_locality_is_a_fact_of_its_split(all_cases, split: Split, task: Task):
    asked = {
        (fact.ask(wording), fact.answer)
        for fact in split_facts(split)
        for wording in facts.PHRASINGS[fact.relation].train
    }
    for case in all_cases[split, task]:
        fact = only(case, Probe.TEXT_LOCALITY)
        assert (fact.prompt, fact.target) in asked
        assert fact.image is None
