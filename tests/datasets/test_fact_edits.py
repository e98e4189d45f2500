"""The dataset facts: edits of what a language model knows of countries."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from mmedit.bench.contradictions import find_contradictions
from mmedit.bench.known import find_known
from mmedit.cases import Cases, EditCase, Example, Probe, Split
from mmedit.config import load_cases, load_questions
from mmedit.datasets.facts import PHRASINGS, load_facts
from mmedit.datasets.known import Known
from mmedit.errors import ConfigError, DataError

ALL = ("capital", "region", "people")
SETTINGS: list[dict[str, Any]] = [{}, {"relations": ALL}, {"answers": "sentence"}]
TRUE = {(fact.relation, fact.subject): fact.answer for fact in load_facts()}


def sentence(subject: str, answer: str) -> str:
    return f"The capital of {subject} is {answer}."


def written(file: Path, settings: dict[str, Any], *wrong: str) -> Path:
    """Write that a base model knows all but some facts of the test split; returns the file."""
    right = {key: not any(word in key for word in wrong)
             for key, _ in load_questions("facts", "test", settings)}  # fmt: skip
    Known(vlm="a", identity={}, dataset="facts", right=right).write(file)
    return file


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("split", get_args(Split))
def test_a_request_sets_the_answer_of_another_country(split: Split, settings: dict[str, Any]):
    cases = load_cases("facts", split, **settings)
    capitals = {answer for (relation, _), answer in TRUE.items() if relation == "capital"}
    for case in cases:
        relation, subject = case.id.split("-")[2], case.request.subject
        true, target = TRUE[relation, subject], case.request.target
        if "answers" in settings:
            assert target in {sentence(subject, answer) for answer in capitals - {true}}
        else:
            assert target != true
            assert target in {a for (r, _), a in TRUE.items() if r == relation}


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_subject_stands_in_every_prompt(settings: dict[str, Any]):
    for case in load_cases("facts", "test", **settings):
        asked = [case.request, *(e for probe in case.probes.values() for e in probe)]
        assert all(example.subject and example.subject in example.prompt for example in asked)
        assert all(example.image is None for example in asked)


@pytest.mark.parametrize("settings", SETTINGS)
def test_held_out_wordings_are_in_text_generality_of_the_test_alone(settings: dict[str, Any]):
    of = {split: load_cases("facts", split, **settings) for split in get_args(Split)}
    wordings = {
        split: {
            example.prompt.replace(case.request.subject, "X")
            for case in cases
            for example in case.probes[Probe.TEXT_GENERALITY]
        }
        for split, cases in of.items()
    }
    requests = {
        case.request.prompt.replace(case.request.subject, "X")
        for cases in of.values()
        for case in cases
    }
    assert wordings["train"] < wordings["test"]
    assert not wordings["test"] & requests
    if "answers" not in settings:
        held_out = {w.format(subject="X") for w in PHRASINGS["capital"].held_out}
        assert held_out <= wordings["test"] - wordings["train"]
    for cases in of.values():
        for case in cases:
            targets = {example.target for example in case.probes[Probe.TEXT_GENERALITY]}
            assert targets == {case.request.target}


@pytest.mark.parametrize("settings", SETTINGS)
def test_locality_asks_true_facts_that_no_case_edits(settings: dict[str, Any]):
    every = [c for s in get_args(Split) for c in load_cases("facts", s, **settings)]
    edited = {case.request.prompt for case in every}
    for case in every:
        asked = case.probes[Probe.TEXT_LOCALITY]
        if case.id.startswith("facts-test"):
            assert not edited & {example.prompt for example in asked}
        assert len(asked) >= 2
        for example in asked:
            true = {a for (_, subject), a in TRUE.items() if subject == example.subject}
            assert example.target in true | {sentence(example.subject, a) for a in true}
            assert example.target != case.request.target


@pytest.mark.parametrize("settings", SETTINGS)
def test_training_asks_nothing_that_the_test_asks(settings: dict[str, Any]):
    asked = [
        {e.prompt for case in load_cases("facts", split, **settings) for e in every_example(case)}
        for split in get_args(Split)
    ]
    assert not set.intersection(*asked)


def every_example(case: EditCase) -> list[Example]:
    return [case.request, *(e for examples in case.probes.values() for e in examples)]


def test_locality_asks_what_else_is_known_of_the_country():
    [case] = [c for c in load_cases("facts", "test") if c.request.subject == "Afghanistan"] or [
        c for c in load_cases("facts", "test") if c.request.subject == "Angola"
    ]
    own = {e.target for e in case.probes[Probe.TEXT_LOCALITY] if e.subject == case.request.subject}
    assert own == {TRUE["region", case.request.subject], TRUE["people", case.request.subject]}


def test_edits_held_together_contradict_no_probe():
    cases = load_cases("facts", "test", relations=ALL)
    assert not find_contradictions(cases).counts
    assert len(cases) == 332


def test_the_same_seed_gives_the_same_cases():
    cases = load_cases("facts", "test", seed=3)
    assert load_cases("facts", "test", seed=3, limit=9) == cases[:9]
    other = {case.id: case.request.target for case in load_cases("facts", "test", seed=4)}
    assert other != {case.id: case.request.target for case in cases}
    assert other.keys() == {case.id for case in cases}


def test_the_edit_of_a_fact_is_the_same_whatever_else_is_edited():
    alone = {case.id: case.request for case in load_cases("facts", "test")}
    all_of_them = {case.id: case.request for case in load_cases("facts", "test", relations=ALL)}
    assert alone.items() <= all_of_them.items()


def test_a_country_of_two_names_is_there_once():
    subjects = {
        example.subject
        for split in get_args(Split)
        for _, example in load_questions("facts", split, {})
    }
    assert {"Myanmar", "Serbia"} <= subjects
    assert not {"Burma", "Serbia and Montenegro"} & subjects


def asked(cases: Cases) -> set[str]:
    return {e.prompt for case in cases for e in (case.request, *case.probes[Probe.TEXT_LOCALITY])}


@pytest.mark.parametrize("settings", SETTINGS)
def test_what_cases_ask_is_in_the_list_of_questions(settings: dict[str, Any]):
    for split in get_args(Split):
        questions = {e.prompt for _, e in load_questions("facts", split, settings)}
        assert asked(load_cases("facts", split, **settings)) <= questions


@pytest.mark.parametrize("settings", SETTINGS)
def test_edits_and_locality_are_of_known_facts_alone(settings: dict[str, Any], tmp_path: Path):
    every = load_cases("facts", "test", **settings)
    unknown = every[0].request.prompt
    beside = every[1].probes[Probe.TEXT_LOCALITY][0].prompt
    file = written(tmp_path / "known.json", settings, unknown, beside)
    cases = load_cases("facts", "test", known=file, **settings)
    assert not asked(cases) & {unknown, beside}
    assert [case.request for case in cases] == [case.request for case in every[1:]]
    [(reason, number)] = cases.left_out.items()
    assert (reason, number) == (
        "the base model does not answer the request's question right", 1
    )  # fmt: skip


def test_facts_that_were_not_asked_are_an_error_that_says_how(tmp_path: Path):
    file = written(tmp_path / "known.json", {})
    message = r"leaves no case of the train split .*not asked.*: 26\); .*--split train"
    with pytest.raises(DataError, match=message):
        load_cases("facts", "train", known=file)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"relations": []}, "relations is empty; name some of capital, region, people"),
        ({"relations": ["capital", "people"], "answers": "sentence"}, "only capitals have"),
        ({"relations": ["river"]}, "river"),
    ],
)
def test_a_wrong_setting_is_an_error(settings: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        load_cases("facts", "test", **settings)


def test_the_embedded_vlm_knows_the_facts(vlm, tmp_path: Path):
    questions = list(load_questions("facts", "test", {}))[::40]
    found = find_known(vlm, questions, tmp_path / "known.json", dataset="facts")
    assert all(found.right.values())
    assert len(found.right) == len(questions)
