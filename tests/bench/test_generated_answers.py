"""Generations in records: every score on every split, before and after, in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest
from tiny import random_image

from mmedit.bench.base_outputs import BaseOutputs
from mmedit.bench.generation import GenerationScorer, GenerationSettings
from mmedit.bench.protocol import Meter, NoEdit, evaluate
from mmedit.cases import EditCase, Example, Probe
from mmedit.config import load_generation
from mmedit.datasets.easyvqa import cases as easyvqa
from mmedit.editors.base import Editor
from mmedit.errors import ConfigError, DataError, EmptyAnswerError
from mmedit.methods.ft import FT, FTConfig
from mmedit.methods.ike import IKE, IKEConfig
from mmedit.metrics.clip_score import ClipScore
from mmedit.metrics.generation import contains, exact, fluency, rouge_l
from mmedit.metrics.judge import Judge, Transcript
from mmedit.records.schema import Record
from mmedit.settings import Overrides
from mmedit.vlm.network import NetworkVLM

SITE = "language_model.model.decoder.layers.3.fc1"
PICTURE = random_image(0)


@pytest.fixture(scope="module")
def cases() -> list[EditCase]:
    return list(easyvqa.EasyVQA().load("test", limit=3))


@pytest.fixture(scope="module")
def records(vlm: NetworkVLM, cases: list[EditCase]) -> list[Record]:
    editor = FT(FTConfig(sites=(SITE,), lr=2e-3, steps=8))
    return measured(vlm, editor, cases, GenerationScorer(fluency_tokens=20), max_new_tokens=8)


def measured(
    vlm: NetworkVLM,
    editor: Editor,
    cases: list[EditCase],
    scorer: GenerationScorer,
    max_new_tokens: int,
) -> list[Record]:
    meter = Meter(
        BaseOutputs(vlm),
        name="x",
        batch_size=3,
        max_new_tokens=max_new_tokens,
        scorer=scorer,
    )
    return list(meter.evaluate(editor, cases))


class Counted:
    """Stands for a CLIP or a judge: notes how much it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def clip(self, images: Sequence[Any], texts: Sequence[str]) -> list[float]:
        assert len(images) == len(texts)
        self.asked += texts
        return [len(text) / 100 for text in texts]

    def judge(
        self, prompts: Sequence[str], answers: Sequence[Sequence[str]], texts: Sequence[str]
    ) -> list[Transcript]:
        self.asked += texts
        return [
            Transcript(asked=f"{p} {a} {t}", replied="YES", verdict=1.0)
            for p, a, t in zip(prompts, answers, texts, strict=True)
        ]


def test_every_split_is_scored_before_and_after(records: list[Record]):
    for record in records:
        assert len(record.probes) == 5
        for probe, asked in record.probes.items():
            for one in asked:
                for said, scores in (
                    (one.generated_pre, one.generation_pre),
                    (one.generated_post, one.generation_post),
                ):
                    assert said is not None
                    assert scores is not None
                    assert scores.contains == contains(said, [one.target])
                    assert scores.exact == exact(said, [one.target])
                    assert scores.rouge_l == rouge_l(said, [one.target])
                    assert scores.clip_score is scores.judge is None
                unchanged = one.generation_post.unchanged if one.generation_post else None
                same = float(one.generated_pre == one.generated_post)
                assert unchanged == (same if probe.is_locality else None)


def test_fluency_is_measured_on_a_long_continuation_of_the_request_alone(vlm, records, cases):
    for record, case in zip(records, cases, strict=True):
        for probe, asked in record.probes.items():
            (before, after) = (asked[0].generation_pre, asked[0].generation_post)
            assert before is not None
            assert after is not None
            measured = probe is Probe.RELIABILITY
            assert (before.fluency is not None) == (after.fluency is not None) == measured
        (said,) = vlm.generate([case.request], max_new_tokens=20)
        assert record.probes[Probe.RELIABILITY][0].generation_pre.fluency == fluency(said)


def test_further_accepted_answers_count_when_they_are_said():
    example = Example(prompt="what is it?", target="disc", answers=("circle", "disc"))
    assert example.accepted == ("disc", "circle")
    (scored,) = GenerationScorer()([example], ["It is a circle."])
    assert scored.scores.contains == 1
    assert scored.scores.exact == 0


def test_an_empty_accepted_answer_is_refused_as_silence_would_be_right():
    with pytest.raises(EmptyAnswerError, match="would accept silence; leave it out"):
        Example(prompt="what is it?", target="disc", answers=("circle", " "))


def test_one_text_in_place_of_accepted_answers_is_refused_as_it_would_be_its_letters():
    with pytest.raises(DataError, match=r"expected a tuple of texts: \('circle',\)"):
        Example(prompt="what is it?", target="disc", answers=cast(Any, "circle"))


def test_a_text_is_judged_and_seen_by_clip_once_and_the_transcript_kept():
    counted = Counted()
    scorer = GenerationScorer(clip=cast(ClipScore, counted.clip), judge=cast(Judge, counted.judge))
    seen = Example(prompt="what is it?", target="disc", image=PICTURE)
    blind = Example(prompt="which city?", target="Tirana")
    first = scorer([seen, blind, seen], ["a disc", "Tirana", "a disc"])
    again = scorer([blind, seen], ["Tirana", "a disc"])
    assert counted.asked == ["a disc", "a disc", "Tirana"]
    assert [scored.scores.clip_score for scored in first] == [0.06, None, 0.06]
    assert [scored.scores.judge for scored in again] == [1, 1]
    transcript = first[1].transcript
    assert transcript is not None
    assert transcript.asked == "which city? ('Tirana',) Tirana"


def test_verdicts_and_transcripts_stand_in_the_records(vlm, cases):
    counted = Counted()
    scorer = GenerationScorer(judge=cast(Judge, counted.judge))
    (record,) = measured(vlm, NoEdit(), cases[:1], scorer, max_new_tokens=4)
    read = Record.model_validate_json(record.model_dump_json())
    for asked in read.probes.values():
        assert asked[0].judge_pre == asked[0].judge_post is not None
        assert asked[0].generation_post is not None
        assert asked[0].generation_post.judge == 1


def test_nothing_is_scored_where_nothing_was_generated(vlm, cases):
    (record,) = evaluate(vlm, NoEdit(), cases[:1])
    for asked in record.probes.values():
        assert asked[0].generated_post is asked[0].generation_pre is None
        assert asked[0].generation_post is asked[0].judge_post is None


def test_what_an_edit_adds_is_counted_per_edit(vlm: NetworkVLM, records, cases):
    outputs, inputs = vlm.shape(SITE)
    assert {record.extra_parameters for record in records} == {outputs * inputs}
    (base,) = evaluate(vlm, NoEdit(), cases[:1])
    (ike,) = evaluate(vlm, IKE(IKEConfig(k=0)), cases[:1])
    assert base.extra_parameters == ike.extra_parameters == 0


def test_generation_is_set_like_everything_else_and_checked_before_anything_is_loaded():
    assert load_generation(Overrides()) == GenerationSettings()
    written = ("fluency_tokens=100", "judge.url=http://x/v1", "judge.model=m")
    found = load_generation(Overrides.parse(f"generation.{text}" for text in written))
    assert found.fluency_tokens == 100
    assert found.judge is not None
    assert found.judge.model == "m"
    with pytest.raises(ConfigError, match=r"unknown key 'fluency'. Did you mean 'fluency_tokens'"):
        load_generation(Overrides.parse(["generation.fluency=1"]))
    with pytest.raises(ConfigError, match="expected ARCHITECTURE/WEIGHTS"):
        load_generation(Overrides.parse(["generation.clip_score=ViT-B-32"]))
    wrong = ("judge.url=localhost:8000", "judge.model=m")
    with pytest.raises(ConfigError, match=r"judge\.url.*found 'localhost:8000'"):
        load_generation(Overrides.parse(f"generation.{text}" for text in wrong))
