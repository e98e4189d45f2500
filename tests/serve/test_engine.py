"""The engine: batches, rows that fail alone, rows that are given up."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import tiny_families
from tiny import IMAGES

pytest.importorskip("fastapi", reason="mmedit serve needs the extra serve")

import itertools

from mmedit.cases import Example
from mmedit.errors import ModelError
from mmedit.methods.ft import FT, FTConfig
from mmedit.serve.desk import base_model, model_of
from mmedit.serve.engine import Engine
from mmedit.serve.limits import Limits
from mmedit.serve.models import Model
from mmedit.serve.pictures import Picture
from mmedit.serve.questions import Job, Question, Ticket
from mmedit.serve.refusals import Refusal
from mmedit.vlm.loading import load_vlm
from mmedit.vlm.network import NetworkVLM

LONG = 30
"""Most new tokens here. The random network seldom ends by itself."""


@dataclass
class Asked:
    """An engine on a tiny VLM, its models, and the sizes of its batches."""

    engine: Engine
    models: dict[str, Model]
    batches: list[int] = field(default_factory=list)

    def ask(self, model: str = "base", changed: Callable[[], None] = lambda: None, **asked: Any):
        question = Question(**({"prompt": "a photo of", "new_tokens": LONG} | asked))
        return self.engine.ask(question, self.models[model], changed)


@contextmanager
def engine_of(vlm: NetworkVLM, monkeypatch: pytest.MonkeyPatch, **limits: Any) -> Iterator[Asked]:
    limits = {"wait": 0.0, "seconds": 60.0} | limits
    editor = FT(FTConfig(steps=3, lr=0.1))
    models = {"base": base_model(vlm)}
    for name, target in (("blue", " blue"), ("no", " no")):
        request = Example(prompt="what color is the shape?", target=target, image=IMAGES[0])
        models[name] = model_of(vlm, editor.edit(vlm, [request], name=name))
    asked = Asked(Engine(vlm, Limits(**limits)), models)
    answer = NetworkVLM.answer

    def counted(self: NetworkVLM, examples: Sequence[Example], **options: Any):
        asked.batches.append(len(examples))
        return answer(self, examples, **options)

    monkeypatch.setattr(NetworkVLM, "answer", counted)
    try:
        yield asked
    finally:
        asked.engine.close()


def done(*tickets: Ticket | Job) -> None:
    until = time.monotonic() + 60
    while not all(ticket.is_done for ticket in tickets):
        assert time.monotonic() < until, "the engine hangs"
        time.sleep(0.002)


def text_of(ticket: Ticket) -> str:
    done(ticket)
    assert ticket.answer is not None, ticket.error
    return ticket.answer.text


@contextmanager
def held(asked: Asked) -> Iterator[None]:
    """Keep the engine busy while questions are put in."""
    begun, go_on = threading.Event(), threading.Event()
    job = asked.engine.do(lambda: (begun.set(), go_on.wait(60)), lambda: None)
    assert begun.wait(60)
    yield
    go_on.set()
    done(job)


def test_questions_about_different_edits_are_answered_in_one_batch_as_one_by_one(
    tiny_vlm: NetworkVLM, monkeypatch: pytest.MonkeyPatch
):
    prompts = ("what color is the shape?", "a photo of", "is there a red circle in the image?")
    wanted = [(name, prompt) for name in ("base", "blue", "no") for prompt in prompts]
    with engine_of(tiny_vlm, monkeypatch) as asked:
        alone = [text_of(asked.ask(name, prompt=prompt)) for name, prompt in wanted]
        assert asked.batches == [1] * 9
        with held(asked):
            tickets = [asked.ask(name, prompt=prompt) for name, prompt in wanted]
        assert [text_of(ticket) for ticket in tickets] == alone
        assert asked.batches[9:] == [9]
        assert len(set(alone)) > 3  # the edits and prompts matter


def test_no_batch_is_larger_than_the_limit(tiny_vlm: NetworkVLM, monkeypatch: pytest.MonkeyPatch):
    with engine_of(tiny_vlm, monkeypatch, batch=4) as asked:
        with held(asked):
            tickets = [asked.ask() for _ in range(10)]
        done(*tickets)
        assert asked.batches == [4, 4, 2]


def test_a_short_question_is_answered_while_the_rest_of_its_batch_goes_on(
    tiny_vlm: NetworkVLM, monkeypatch: pytest.MonkeyPatch
):
    order: list[str] = []
    with engine_of(tiny_vlm, monkeypatch) as asked:
        with held(asked):
            long = asked.ask(changed=lambda: order.append("long"))
            short = asked.ask(changed=lambda: order.append("short"), new_tokens=1)
        done(long, short)
        assert order == ["short", "long"]
        assert asked.batches == [2]


def test_a_question_at_fault_fails_alone(tiny_vlm: NetworkVLM, monkeypatch: pytest.MonkeyPatch):
    with engine_of(tiny_vlm, monkeypatch) as asked:
        with held(asked):
            sound = asked.ask()
            broken = asked.ask(picture=Picture(b"no image", 100))
            long = asked.ask(prompt="a photo of " * 60)
            many = asked.ask(new_tokens=1000)
            again = asked.ask("blue")
        done(sound, broken, long, many, again)
        assert text_of(sound) == text_of(asked.ask())
        assert text_of(again) == text_of(asked.ask("blue"))
        for ticket, code in (
            (broken, "invalid_image"),
            (long, "context_length_exceeded"),
            (many, "context_length_exceeded"),
        ):
            assert isinstance(ticket.error, Refusal)
            assert (ticket.error.status, ticket.error.code) == (400, code)


def test_where_a_batch_fails_each_question_is_answered_by_itself(
    tiny_vlm: NetworkVLM, monkeypatch: pytest.MonkeyPatch
):
    with engine_of(tiny_vlm, monkeypatch) as asked:
        answer = NetworkVLM.answer

        def failing(self: NetworkVLM, examples: Sequence[Example], **options: Any):
            if any(example.prompt == "poison" for example in examples):
                raise RuntimeError("out of memory")
            return answer(self, examples, **options)

        monkeypatch.setattr(NetworkVLM, "answer", failing)
        with held(asked):
            tickets = [asked.ask(prompt=p) for p in ("a photo of", "poison", "a photo of")]
        done(*tickets)
        assert [ticket.error is None for ticket in tickets] == [True, False, True]
        assert text_of(tickets[0]) == text_of(tickets[2])
        assert asked.engine.is_running


def test_a_question_that_was_given_up_ends_its_row(
    tiny_vlm: NetworkVLM, monkeypatch: pytest.MonkeyPatch
):
    steps = 0
    with engine_of(tiny_vlm, monkeypatch) as asked:
        ticket: Ticket

        def changed() -> None:
            nonlocal steps
            steps += 1
            if steps == 3:
                ticket.cancel()

        with held(asked):
            ticket = asked.ask(changed=changed, shows_growth=True)
        done(ticket)
        assert ticket.error is not None
        assert ticket.answer is None
        assert steps < LONG / 2


def test_a_question_that_waits_too_long_is_dropped(
    tiny_vlm: NetworkVLM, monkeypatch: pytest.MonkeyPatch
):
    with engine_of(tiny_vlm, monkeypatch, seconds=0.05) as asked:
        with held(asked):
            ticket = asked.ask()
            time.sleep(0.1)
        done(ticket)
        assert isinstance(ticket.error, Refusal)
        assert (ticket.error.status, asked.batches) == (504, [])


def test_the_text_grows_to_the_answer_and_nothing_is_taken_back(
    tiny_vlm: NetworkVLM, monkeypatch: pytest.MonkeyPatch
):
    seen: list[str] = []
    with engine_of(tiny_vlm, monkeypatch) as asked:
        with held(asked):
            ticket = asked.ask(
                changed=lambda: seen.append(ticket.text), shows_growth=True, temperature=1.5, seed=3
            )
        done(ticket)
        assert seen[-1] == text_of(ticket) == text_of(asked.ask(temperature=1.5, seed=3))
        assert len(seen) > 3
        assert all(b.startswith(a) for a, b in itertools.pairwise(seen))


def test_without_a_seed_two_sampled_answers_differ(
    tiny_vlm: NetworkVLM, monkeypatch: pytest.MonkeyPatch
):
    with engine_of(tiny_vlm, monkeypatch) as asked:
        assert text_of(asked.ask(temperature=2.0)) != text_of(asked.ask(temperature=2.0))


def test_a_job_waits_for_what_came_before_it_and_its_error_is_its_own(
    tiny_vlm: NetworkVLM, monkeypatch: pytest.MonkeyPatch
):
    def fail() -> None:
        raise ModelError("no")

    with engine_of(tiny_vlm, monkeypatch) as asked:
        with held(asked):
            first = asked.ask()
            job = asked.engine.do(lambda: (first.is_done, second.is_done), lambda: None)
            failing = asked.engine.do(fail, lambda: None)
            second = asked.ask()
        done(first, job, failing, second)
        assert job.result == (True, False)
        assert isinstance(failing.error, ModelError)
        assert asked.batches == [1, 1]


def test_a_fault_of_the_server_is_logged_and_an_error_of_the_client_is_not(
    tiny_vlm: NetworkVLM, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def fail(error: Exception) -> None:
        raise error

    def decode(_: Picture) -> None:
        raise MemoryError("the image fills the memory")

    monkeypatch.setattr(Picture, "decode", decode)
    with engine_of(tiny_vlm, monkeypatch) as asked:
        done(asked.engine.do(lambda: fail(ModelError("of the client")), lambda: None))
        assert not caplog.records
        done(asked.engine.do(lambda: fail(OSError("the disk is full")), lambda: None))
        assert "the disk is full" in caplog.text
        done(asked.ask(picture=Picture(b"", 1)))
        assert "the image fills the memory" in caplog.text


def test_a_closed_engine_finishes_what_waits_and_takes_nothing_new(
    tiny_vlm: NetworkVLM, monkeypatch: pytest.MonkeyPatch
):
    with engine_of(tiny_vlm, monkeypatch) as asked:
        with held(asked):
            tickets = [asked.ask(), asked.ask("no")]
        asked.engine.close()
        assert all(ticket.answer is not None for ticket in tickets)
        with pytest.raises(Refusal, match="stopping") as refused:
            asked.ask()
        assert refused.value.status == 503


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava"])
def test_other_families_answer_in_a_mixed_batch_as_in_python(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    vlm = load_vlm(tiny_families.save_family(family, tmp_path))
    file = io.BytesIO()
    IMAGES[0].save(file, "PNG")
    prompt = "what color is the shape?"
    questions: list[dict[str, Any]] = [
        {"prompt": prompt, "picture": Picture(file.getvalue(), 10**6)},
        {"prompt": "a photo of"},
    ]
    with engine_of(vlm, monkeypatch) as asked:
        expected = []
        for name in ("base", "blue", "no"):
            edited = asked.models[name].edited()
            expected += [edited.ask(prompt, IMAGES[0], max_new_tokens=8)]
            expected += [edited.ask("a photo of", max_new_tokens=8)]
        with held(asked):
            tickets = [
                asked.ask(name, new_tokens=8, **question)
                for name in ("base", "blue", "no")
                for question in questions
            ]
        assert [text_of(ticket) for ticket in tickets] == expected
        assert asked.batches[-1] == 6
