"""The probes of De-VQA and of binding: which similar questions a case gets, and from where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made_grocery import make_grocery
from typer.testing import CliRunner

from mmedit.cases import EditCase, Example, Probe
from mmedit.cli.console import app
from mmedit.config import load_cases
from mmedit.datasets.easyvqa.pictures import scenes
from mmedit.datasets.easyvqa.questions import PHRASINGS, Kind, asks_of
from mmedit.datasets.grocery.questions import product_facts
from mmedit.datasets.neighbours import Neighbours, same_question
from mmedit.errors import ConfigError, DataError

SAMPLES = Path(__file__).parents[2] / "data" / "samples"
LIMIT = 12


@pytest.fixture(scope="module", params=["test", "train", "validation"])
def cases(request) -> list[EditCase]:
    return list(load_cases("easyvqa", request.param, limit=LIMIT, probes="devqa"))


def path_of(example: Example) -> Path:
    assert isinstance(example.image, Path)
    return example.image


class Plain:
    """Images show themselves, questions are the same if their words are."""

    def settles(self, prompt: str, other: str) -> bool:
        return same_question(prompt, other)

    def shows(self, image: Path) -> str:
        return str(image)


def question(prompt: str, target: str = "x", image: str | None = "1.png") -> Example:
    return Example(prompt=prompt, target=target, image=Path(image) if image else None)


def nearest(request: Example, *others: Example, **probes: Example) -> Example | None:
    case = EditCase(id="a", request=request, probes={Probe(k): (v,) for k, v in probes.items()})
    found = Neighbours(others, Plain()).nearest(case)
    return found and found.example


def test_the_pairs_are_those_of_de_vqa(cases):
    for case in cases:
        one, three = case.request, case.probes[Probe.IMAGE_LOCALITY][0]
        own, own_elsewhere, other = case.probes[Probe.CONSISTENT_IMAGE]
        assert own.image not in (one.image, three.image)
        assert (other.prompt, other.image) == (own.prompt, one.image)
        assert (own_elsewhere.prompt, own_elsewhere.image) == (one.prompt, own.image)
        first, *second = case.probes[Probe.RANDOM_IMAGE]
        assert (first.prompt, first.image) == (one.prompt, three.image)
        assert all((e.prompt, e.image) == (three.prompt, one.image) for e in second)
        alone, unseen = case.probes[Probe.NO_IMAGE]
        assert (alone.prompt, unseen.prompt) == (one.prompt, own.prompt)
        assert alone.image is None
        assert unseen.image is None
        assert case.probes[Probe.QUESTION_ALONE] == (alone,)


def test_no_probe_asks_what_the_edit_settles_about_its_picture(cases):
    for case in cases:
        topic = asks_of(case.request.prompt)
        for probe in (Probe.RANDOM_IMAGE, Probe.CONSISTENT_IMAGE):
            about = [e for e in case.probes[probe] if e.image == case.request.image]
            assert all(asks_of(example.prompt) != topic for example in about)


def test_neighbours_are_of_the_training_split_and_show_something_else(cases):
    for case in cases:
        near = case.probes[Probe.CONSISTENT_IMAGE][0]
        assert path_of(near).parent.parent.name == "train"
        assert scenes()[path_of(near)] != scenes()[path_of(case.request)]
        assert near.target != case.request.target


def test_no_probe_forces_the_edits_target_in_training(cases):
    probes = (Probe.RANDOM_IMAGE, Probe.NO_IMAGE, Probe.CONSISTENT_IMAGE)
    forced = [(c.request.target, c.probes[p][0].target) for c in cases for p in probes[1:]]
    assert all(target != own for own, target in forced)


def test_every_reading_gives_the_same_neighbours_and_a_limit_a_prefix():
    def read(limit: int) -> list[EditCase]:
        return list(load_cases("easyvqa", "test", limit=limit, probes="devqa"))

    def asked(cases: list[EditCase]) -> list[object]:
        return [case.probes[Probe.CONSISTENT_IMAGE] for case in cases]

    assert asked(read(8))[:4] == asked(read(4))


def test_the_other_probes_and_the_requests_stay_as_they_are():
    plain = load_cases("easyvqa", "test", limit=4)
    for case, more in zip(
        plain, load_cases("easyvqa", "test", limit=4, probes="devqa"), strict=True
    ):
        assert case.request == more.request
        same = (Probe.RELIABILITY, Probe.TEXT_GENERALITY, Probe.TEXT_LOCALITY, Probe.IMAGE_LOCALITY)
        assert all(case.probes[probe] == more.probes[probe] for probe in same)


def test_the_question_with_the_most_similar_rare_words_is_the_neighbour():
    asked = question("What color is the cat on the sofa?", "y")
    far = question("What color is the ball?", image="2.png")
    near = question("What breed is the dog on the sofa?", image="3.png")
    other = question("Who is the man in the car?", image="4.png")
    assert nearest(asked, far, near, other) == near


def test_the_same_question_in_other_words_is_no_neighbour():
    asked = question("What city is featured in the image?", "y")
    same = question("Which city is shown here?", image="2.png")
    rephrased = question("Which town is it?", image="3.png")
    other = question("What county is shown?", image="4.png")
    probes = {"text_generality": question("In which town was it taken?")}
    assert nearest(asked, same, rephrased, other, **probes) == other


def test_a_neighbour_has_neither_the_edits_target_nor_its_pictures():
    asked = question("What color is the cat?", "The red")
    right = question("What color is the dog?", "red", "2.png")
    seen = question("What color is the dog?", "blue", "1.png")
    alternative = question("What color is the dog?", "blue", "5.png")
    possible = question("What color is the bird?", "blue", "4.png")
    probes = {"image_generality": question("What color is the cat?", "red", "5.png")}
    assert nearest(asked, right, seen, alternative, possible, **probes) == possible


def test_equal_questions_are_spread_over_the_cases():
    others = [question("What color is the dog?", image=f"{n}.png") for n in range(20)]
    found = Neighbours(others, Plain())
    request = question("What color is the cat?", "y", "own.png")
    near = [found.nearest(EditCase(id=str(n), request=request)) for n in range(40)]
    assert len({path_of(one.example) for one in near if one}) > 10


def test_captions_which_have_one_prompt_get_another_image_alone():
    [case] = load_cases("easyvqa-caption", "test", limit=1, probes="devqa")
    [elsewhere] = case.probes[Probe.CONSISTENT_IMAGE]
    assert elsewhere.prompt == case.request.prompt
    assert scenes()[path_of(elsewhere)] != scenes()[path_of(case.request)]
    assert [e.prompt for e in case.probes[Probe.NO_IMAGE]] == [case.request.prompt]


def test_wordings_of_easy_vqa_are_told_apart_by_what_they_are_about():
    slots = {"noun": "circle", "color": "red"}
    shape = {"thing": "a circle", "bare": "circle"}
    color = {"thing": "a red shape", "bare": "red shape"}
    for kind, phrasings in PHRASINGS.items():
        for wording in (*phrasings.train, *phrasings.held_out):
            asked = asks_of(wording.format(**slots, **shape))
            assert asked == ("color" if kind is Kind.COLOR else "shape")
            if kind in (Kind.PRESENCE, Kind.ABSENCE):
                assert asks_of(wording.format(**slots, **color)) == "color"


def test_a_file_fixes_the_neighbours(tmp_path):
    file = tmp_path / "neighbours.json"
    command = ["data", "neighbours", "--dataset", "easyvqa", "--out", str(file)]
    result = CliRunner().invoke(app, [*command, "--split", "test"])
    assert result.exit_code == 0, result.output
    settings: dict[str, Any] = {"probes": "devqa", "neighbours": str(file)}
    first = load_cases("easyvqa", "test", limit=3, probes="devqa")
    assert list(load_cases("easyvqa", "test", limit=3, **settings)) == list(first)
    content = json.loads(file.read_text())
    moved = content["neighbours"][first[1].id]
    content["neighbours"][first[0].id] = moved
    file.write_text(json.dumps(content))
    [changed] = load_cases("easyvqa", "test", limit=1, **settings)
    assert moved["image"].endswith(path_of(changed.probes[Probe.CONSISTENT_IMAGE][0]).name)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"form": 2}', '{"form": 1, "neighbours": {"a": {"prompt": "x"}}}']
)
def test_a_file_of_another_form_is_refused(text, tmp_path):
    file = tmp_path / "neighbours.json"
    file.write_text(text)
    with pytest.raises(DataError, match="not a file of neighbours"):
        load_cases("easyvqa", "test", limit=1, probes="devqa", neighbours=str(file))


def test_a_neighbour_that_the_training_split_does_not_ask_is_refused(tmp_path):
    [case] = load_cases("easyvqa", "test", limit=1)
    file = tmp_path / "neighbours.json"
    place = {"prompt": "what?", "image": "a.png"}
    file.write_text(json.dumps({"form": 1, "neighbours": {case.id: place}}))
    with pytest.raises(DataError, match="which the training split does not ask"):
        load_cases("easyvqa", "test", limit=1, probes="devqa", neighbours=str(file))


def test_datasets_without_images_or_facts_say_what_they_lack():
    with pytest.raises(DataError, match="no question about an image"):
        load_cases("facts", "test", limit=1, probes="devqa")
    with pytest.raises(ConfigError, match="no facts for the probes of binding"):
        load_cases("easyvqa", "test", limit=1, probes="binding")


@pytest.mark.parametrize("name", ["evqa", "eic", "vlkeb", "mmke"])
def test_published_datasets_have_the_probes_too(name):
    cases = load_cases(name, "test", root=str(SAMPLES / name), probes="devqa")
    for case in cases:
        assert {Probe.RANDOM_IMAGE, Probe.NO_IMAGE, Probe.QUESTION_ALONE} <= case.probes.keys()


# Binding


@pytest.mark.parametrize("task", ["object", "photo"])
def test_a_new_name_of_a_product_binds_what_follows_from_it(task, tmp_path):
    root = str(make_grocery(tmp_path))
    settings: dict[str, Any] = {"root": root, "asked": ("product",), "probes": ("devqa", "binding")}
    cases = load_cases(f"grocery-{task}", "test", **settings)
    bound = [case for case in cases if Probe.NEW_BINDING in case.probes]
    assert bound
    by_name = {facts.name: facts for facts in product_facts().values()}
    for case in bound:
        new = by_name[case.request.target]
        old = product_facts()[path_of(case.request).stem.split("_")[0]]
        asked = (Probe.NEW_BINDING, Probe.OLD_BINDING, Probe.OLD_ENTITY)
        for one, before, alone in zip(*(case.probes[p] for p in asked), strict=True):
            assert one.image == before.image == case.request.image
            assert one.prompt == before.prompt
            assert (one.target, before.target) in ((new.kind, old.kind), (new.origin, old.origin))
            assert one.target != before.target
            assert alone.image is None
            assert old.name in alone.prompt
            assert alone.target == one.target
        assert case.probes[Probe.NEW_BINDING] == case.probes[Probe.PORTABILITY]


def test_vlkebs_question_about_the_new_entity_is_asked_about_the_old_one():
    settings: dict[str, Any] = {
        "root": str(SAMPLES / "vlkeb"),
        "portability": "onehop",
        "probes": "binding",
    }
    case = load_cases("vlkeb", "test", **settings)[0]
    [alone] = case.probes[Probe.OLD_ENTITY]
    assert (alone.prompt, alone.target, alone.image) == ("What is green?", "a color", None)
    assert case.probes[Probe.NEW_BINDING] == case.probes[Probe.PORTABILITY]
    assert Probe.OLD_BINDING not in case.probes
