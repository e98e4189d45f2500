"""Probes that another edit of the run contradicts: found by content, refused, or left out."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image
from shared_data import shared_data
from tiny import random_image

from mmedit.bench import contradictions
from mmedit.bench.contradictions import find_contradictions, settle
from mmedit.bench.modes import Batch, Independent, Mode, Sequential
from mmedit.cases import EditCase, Example, Probe, Split
from mmedit.config_files import Block
from mmedit.datasets.annotated.releases import PUBLISHED
from mmedit.errors import DataError, UnknownNameError
from mmedit.records.notes import notes_of
from mmedit.records.store import read_manifest, read_records
from mmedit.suite import RunOptions, prepare

TOGETHER: tuple[Mode, ...] = (Batch(k=2), Sequential())


def case(
    name: str,
    target: str,
    image: Path | Image.Image | None = None,
    *,
    prompt: str = "which fruit?",
    **probes: Example,
) -> EditCase:
    request = Example(prompt=prompt, target=target, image=image)
    asked = {Probe(probe): (example,) for probe, example in probes.items()}
    return EditCase(id=name, request=request, probes=asked)


def asked(target: str, image: Path | Image.Image | None = None) -> Example:
    return Example(prompt="which fruit?", target=target, image=image)


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for number, path in enumerate(paths):
        random_image(number).save(path)
    return paths


def contradicted(pictures: list[Path]) -> list[EditCase]:
    """The image locality of "b" asks what "a" edits."""
    return [
        case("a", "pear", pictures[0], image_locality=asked("plum", pictures[2])),
        case("b", "fig", pictures[1], image_locality=asked("apple", pictures[0])),
    ]


def test_a_probe_that_another_request_answers_differently_is_counted(pictures):
    found = find_contradictions(contradicted(pictures))
    assert found.counts == {"image_locality": 1}
    assert "image locality of 'b' expects 'apple' for 'which fruit?'" in found.example
    assert "the request of 'a' sets 'pear'" in found.example


def test_locality_is_contradicted_whatever_the_other_request_sets(pictures):
    cases = [
        case("a", "pear", pictures[0]),
        case("b", "fig", pictures[1], image_locality=asked("pear", pictures[0])),
    ]
    assert find_contradictions(cases).counts == {"image_locality": 1}


def test_leaving_out_takes_the_probe_and_nothing_else(pictures):
    first, second = contradicted(pictures)
    settled = settle([first, second], Sequential(), "skip")
    assert settled.cases[0] == first
    assert list(settled.cases[1].probes) == [Probe.RELIABILITY]
    assert settled.cases[1].request == second.request


def test_of_two_requests_that_exclude_each_other_the_first_stays(pictures):
    cases = [
        case("a", "pear", pictures[0]),
        case("b", "plum", pictures[0], image_locality=asked("x", pictures[1])),
        case("c", "pear", pictures[0]),
        case("d", "fig", pictures[1]),
    ]
    found = find_contradictions(cases)
    assert [one.id for one in found.cases] == ["a", "c", "d"]
    assert found.counts == {"request": 1}


def test_a_probe_of_the_request_itself_with_another_answer_is_a_contradiction(pictures):
    found = find_contradictions(
        [case("a", "pear", pictures[0], image_locality=asked("apple", pictures[0]))]
    )
    assert found.counts == {"image_locality": 1}


def test_a_text_that_is_asked_without_an_image_counts_too():
    cases = [case("a", "pear"), case("b", "fig", prompt="what?", text_locality=asked("apple"))]
    assert find_contradictions(cases).counts == {"text_locality": 1}


def test_the_same_answer_another_image_another_prompt_or_context_is_no_contradiction(pictures):
    other = Example(prompt="what is it?", target="apple", image=pictures[0])
    conditioned = Example(prompt="which fruit?", target="x", image=pictures[0], context="Fact.")
    cases = [
        case("a", "pear", pictures[0]),
        case("b", "fig", pictures[1], image_generality=asked("pear", pictures[0])),
        case("c", "fig", pictures[1], image_locality=asked("apple", pictures[2])),
        case("d", "fig", pictures[1], image_locality=other, portability=conditioned),
        case("e", "fig", pictures[1], text_locality=asked("apple")),
    ]
    found = find_contradictions(cases)
    assert found.counts == {}
    assert list(found.cases) == cases


@pytest.mark.parametrize("drawn", [False, True])
def test_images_are_compared_by_content_not_by_name(pictures, tmp_path, drawn: bool):
    file = tmp_path / "copy.png"
    file.write_bytes(pictures[0].read_bytes())
    copy = Image.open(file) if drawn else file
    cases = [
        case("a", "pear", pictures[0]),
        case("b", "fig", pictures[1], image_locality=asked("apple", copy)),
    ]
    assert find_contradictions(cases).counts == {"image_locality": 1}


def test_only_images_whose_prompt_is_contested_are_read(pictures):
    gone = Path("gone.png")
    cases = [
        case("a", "pear", pictures[0], image_generality=asked("pear", gone)),
        case("b", "fig", prompt="what?", image=gone),
    ]
    assert find_contradictions(cases).counts == {}


@pytest.mark.parametrize("mode", TOGETHER, ids=lambda mode: mode.kind)
def test_edits_that_are_held_together_must_not_contradict_a_probe(pictures, mode: Mode):
    message = r"contradict each other's probes \(image locality 1\).*--on-contradiction skip"
    with pytest.raises(DataError, match=message):
        settle(contradicted(pictures), mode, "error")


def test_separate_edits_are_counted_and_measured_whole(pictures):
    cases = contradicted(pictures)
    settled = settle(cases, Independent(), "error")
    assert list(settled.cases) == cases
    assert settled.counts == {"image_locality": 1}


# Whole runs


@pytest.fixture
def own_file(pictures) -> Path:
    """Three records, of which the last asks in image locality what the first edits."""
    rows = [
        {"src": "which fruit?", "alt": answer, "image": picture.name}
        for answer, picture in zip(("pear", "fig", "plum"), pictures, strict=True)
    ]
    rows[2] |= {"m_loc": pictures[0].name, "m_loc_q": "which fruit?", "m_loc_a": "apple"}
    file = pictures[0].parent / "mine.json"
    file.write_text(json.dumps(rows))
    return file


def block(file: Path, mode: str, **changed) -> Block:
    settings = (f"dataset.test={file}", "ft.steps=1")
    return Block(dataset="json", editors=("ft",), mode=mode, settings=settings, **changed)


def test_a_run_says_what_contradicts_what_before_the_vlm_is_loaded(own_file, tmp_path):
    with pytest.raises(
        DataError, match=r"'mine-test-2' expects 'apple'.*'mine-test-0' sets 'pear'"
    ):
        prepare("x", block(own_file, "sequential"), tmp_path / "x", RunOptions())
    assert not (tmp_path / "x").exists()


def test_skip_stands_in_the_block_or_in_the_options(own_file, tmp_path):
    of_block = block(own_file, "sequential", on_contradiction="skip")
    options = RunOptions(on_contradiction="skip")
    by_block = prepare("x", of_block, tmp_path / "x", RunOptions())
    by_options = prepare("x", block(own_file, "sequential"), tmp_path / "x", options)
    assert by_block.plan.manifest({}) == by_options.plan.manifest({})
    assert by_block.plan.contradictions == {"image_locality": 1}


def test_another_word_than_error_and_skip_is_refused(pictures):
    with pytest.raises(UnknownNameError, match=r"named 'skipp'\. Did you mean 'skip'"):
        settle(contradicted(pictures), Sequential(), "skipp")  # pyright: ignore


def test_skipped_probes_are_counted_under_the_table_and_in_the_manifest(
    own_file, tmp_path, mmedit_
):
    command = (
        "bench", "--editor", "ft", "--dataset", "json", "--mode", "sequential", "--no-generate",
        "--set", f"dataset.test={own_file}", "--set", "ft.steps=1", "--out", tmp_path / "x",
    )  # fmt: skip
    refused = mmedit_(*command)
    assert refused.code == 2
    assert "--on-contradiction skip" in refused.err
    shown = mmedit_(*command, "--on-contradiction", "skip")
    assert shown.code == 0, shown.err
    left_out = "Left out, because another edit of the run contradicts them: image locality 1."
    assert left_out in (tmp_path / "x" / "table.md").read_text()
    manifest = read_manifest(tmp_path / "x")
    assert manifest.run.contradictions == {"image_locality": 1}
    assert all(Probe.IMAGE_LOCALITY not in r.probes for r in read_records(tmp_path / "x"))


def test_separate_edits_note_contradictions_in_the_manifest_alone(own_file, tmp_path):
    plan = prepare("x", block(own_file, "independent"), tmp_path / "x", RunOptions()).plan
    manifest = plan.manifest({})
    assert manifest.run.contradictions == {"image_locality": 1}
    assert notes_of(manifest) == []


def test_a_limit_above_what_there_is_says_how_many_there_are(own_file, tmp_path):
    options = RunOptions(limit=10**20)
    [said] = prepare("x", block(own_file, "independent"), tmp_path / "x", options).plan.remarks
    assert "more than the 3 test cases that json has" in said


# The real files


@pytest.mark.parametrize(
    ("name", "root", "split", "counts"),
    [
        ("evqa", "editing-data", "train", {"text_generality": 3}),
        ("evqa", "editing-data", "test", {}),
        ("eic", "editing-data", "test", {}),
        ("vlkeb", "VLKEB", "test", {}),
    ],
)
def test_contradictions_of_the_released_files(
    monkeypatch, name: str, root: str, split: Split, counts: dict[str, int]
):
    """The images, which are not here, are taken to be there and to differ from each other."""
    settings = PUBLISHED[name](root=shared_data(root))
    monkeypatch.setattr(Path, "is_file", lambda _: True)
    monkeypatch.setattr(os, "access", lambda *_: True)
    monkeypatch.setattr(contradictions, "image_key", str)
    assert find_contradictions(settings.load(split)).counts == counts
