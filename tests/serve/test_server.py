"""`mmedit serve` in a process of its own, asked by OpenAI's client."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="mmedit serve needs the extra serve")
pytest.importorskip("openai", reason="the tests of mmedit serve ask with OpenAI's client")

import openai
from served import KEY, SECONDS, Served, about, ask, serving

from mmedit.cases import EditCase
from mmedit.config import load_cases, load_editor
from mmedit.vlm.network import NetworkVLM

EDITS = ("ada", "bea", "cem", "dan")
ENDLESS: dict[str, Any] = {"temperature": 2.0, "seed": 18, "max_tokens": 200}
"""Options under which the embedded VLM goes on for some 60 tokens."""
CAPITAL = "what is the capital of France?"


@pytest.fixture(scope="module")
def cases() -> list[EditCase]:
    return list(load_cases("easyvqa", "test", limit=16))


@pytest.fixture(scope="module")
def edits(vlm: NetworkVLM, cases: list[EditCase], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four saved edits of weights and one of IKE."""
    folder = tmp_path_factory.mktemp("edits")
    ft, ike = load_editor("ft", vlm, steps=6), load_editor("ike", vlm, k=0)
    for name, case in zip(EDITS, cases, strict=False):
        vlm.with_edit(ft.edit(vlm, [case.request], name=name)).save(folder / name)
    vlm.with_edit(ike.edit(vlm, [cases[0].request], name="ike")).save(folder / "ike")
    return folder


@pytest.fixture(scope="module")
def server(
    edits: Path, cases: list[EditCase], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("server")
    image = cases[0].request.image
    assert isinstance(image, Path)
    given = [argument for name in (*EDITS, "ike") for argument in ("--edit", edits / name)]
    with serving(
        folder, *given, "--stack", "both=ada+bea", "--allow-edits",
        "--edits-dir", folder / "served", "--image-root", image.parent,
        "--max-body", 1, "--max-pixels", 1_000_000,
    ) as served:  # fmt: skip
        yield served


@pytest.fixture(scope="module")
def client(server: Served) -> Any:
    return server.client()


def text(completion: Any) -> str:
    return completion.choices[0].message.content


# Answers


def test_the_base_model_and_every_edit_and_stack_is_a_model(client: Any):
    models = {model.id: model for model in client.models.list()}
    assert list(models) == ["embedded", *EDITS, "ike", "both"]
    assert models["both"].edits == ["ada", "bea"]
    assert client.models.retrieve("ada").id == "ada"


def test_64_questions_to_4_edits_at_once_equal_the_answers_one_at_a_time(
    client: Any, edits: Path, vlm: NetworkVLM, cases: list[EditCase]
):
    from mmedit.edits.loading import load_edit

    edited = {name: vlm.with_edit(load_edit(edits / name)) for name in EDITS}
    asked = [(name, case.request) for case in cases for name in EDITS]
    expected = [edited[name].ask(e.prompt, e.image) for name, e in asked]
    assert expected != [vlm.ask(e.prompt, e.image) for _, e in asked]

    def answer(row: tuple[str, Any]) -> str:
        name, example = row
        return text(ask(client, name, about(example.image, example.prompt)))

    assert [answer(row) for row in asked[:8]] == expected[:8]
    with ThreadPoolExecutor(64) as pool:
        assert list(pool.map(answer, asked)) == expected


def test_a_wrapper_and_a_stack_answer_as_in_python(
    client: Any, edits: Path, vlm: NetworkVLM, cases: list[EditCase]
):
    from mmedit.edits.loading import load_edit

    ada, bea, ike = (load_edit(edits / name) for name in ("ada", "bea", "ike"))
    for name, edited in (
        ("both", vlm.with_edit(ada).with_edit(bea)),
        ("ike", vlm.with_edit(ike)),
    ):
        for case in cases[:3]:
            content = about(Path(str(case.request.image)), case.request.prompt)
            expected = edited.ask(case.request.prompt, case.request.image)
            assert text(ask(client, name, content)) == expected


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 1.5, "seed": 7},
        {"temperature": 1.0, "top_p": 0.5, "seed": 1, "max_tokens": 9},
        {"stop": [" on", "circle"]},
        {"max_tokens": 2},
    ],
)
def test_a_streamed_answer_equals_the_whole_one(client: Any, options: dict[str, Any]):
    whole = ask(client, "ada", "a photo of", **options)
    usage = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(ask(client, "ada", "a photo of", **usage, **options))
    pieces = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(piece.delta.content or "" for piece in pieces) == text(whole)
    assert pieces[0].delta.role == "assistant"
    ends = [piece.finish_reason for piece in pieces if piece.finish_reason]
    assert ends == [whole.choices[0].finish_reason]
    assert chunks[-1].usage == whole.usage
    assert {chunk.usage for chunk in chunks[:-1]} == {None}


def test_the_stop_text_and_the_number_of_tokens_end_an_answer(client: Any):
    whole = ask(client, "embedded", "a photo of")
    assert whole.choices[0].finish_reason == "stop"
    words = text(whole).split()
    stopped = ask(client, "embedded", "a photo of", stop=words[1])
    assert (text(stopped), stopped.choices[0].finish_reason) == (words[0], "stop")
    cut = ask(client, "embedded", "a photo of", max_completion_tokens=2)
    assert (cut.choices[0].finish_reason, cut.usage.completion_tokens) == ("length", 2)
    assert text(whole).startswith(text(cut))


def test_usage_counts_the_tokens_of_prompt_image_and_answer(
    client: Any, vlm: NetworkVLM, cases: list[EditCase]
):
    request = cases[0].request
    answer = ask(client, "embedded", about(Path(str(request.image)), request.prompt))
    assert answer.usage.prompt_tokens == vlm.prompt_tokens([request])[0]
    assert answer.usage.completion_tokens == vlm.answer([request], max_new_tokens=64)[0].tokens
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_seed_repeats_a_sampled_answer_and_greedy_is_the_default(client: Any, vlm: NetworkVLM):
    sampled = [
        text(ask(client, "embedded", "a photo of", temperature=2, seed=s)) for s in (5, 5, 6)
    ]
    assert sampled[0] == sampled[1] != sampled[2]
    assert text(ask(client, "embedded", CAPITAL)) == vlm.ask(CAPITAL) == "Paris"


def test_earlier_turns_are_read(client: Any):
    turns: list[Any] = [
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": "is there a red circle in the image?"},
        {"role": "assistant", "content": "no"},
        {"role": "user", "content": CAPITAL},
    ]
    answer = client.chat.completions.create(model="embedded", messages=turns)
    alone = ask(client, "embedded", CAPITAL)
    assert answer.usage.prompt_tokens > alone.usage.prompt_tokens + 10


def test_an_image_in_the_folder_of_images_is_named_by_its_path(client: Any, cases: list[EditCase]):
    image = Path(str(cases[0].request.image))
    prompt = cases[0].request.prompt
    content = [
        {"type": "text", "text": prompt},
        {"type": "image_url", "image_url": {"url": image.name}},
    ]
    assert text(ask(client, "ada", content)) == text(ask(client, "ada", about(image, prompt)))


# Errors


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"model": "eve"}, 404, "model_not_found"),
        ({"n": 2}, 400, "unsupported_parameter"),
        ({"max_tokens": 100_000}, 400, "max_tokens_exceeded"),
        ({"messages": [{"role": "user", "content": "a photo of " * 600}]}, 400,
         "context_length_exceeded"),
        ({"messages": [{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "/etc/passwd"}}]}]}, 400, "invalid_image"),
        ({"messages": [{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "http://127.0.0.1/a.png"}}]}]}, 400,
         "invalid_image"),
        ({"messages": [{"role": "user", "content": "x" * 2_000_000}]}, 413, "body_too_large"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_an_error_has_its_status_and_openais_form(
    client: Any, change: dict[str, Any], status: int, code: str, stream: bool
):
    asked = {"model": "ada", "messages": [{"role": "user", "content": "hi"}], "stream": stream}
    with pytest.raises(openai.APIStatusError) as raised:
        client.chat.completions.create(**(asked | change))
    assert (raised.value.status_code, raised.value.code) == (status, code)
    assert "message" in str(raised.value.body)


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status"),
    [
        ("GET", "/v1/models", None, {"Authorization": "Bearer wrong"}, 401),
        ("GET", "/v1/models", None, {"Authorization": ""}, 401),
        ("POST", "/v1/edits", {}, {"Authorization": KEY}, 401),
        ("POST", "/v1/chat/completions", b"{}", {"Content-Type": "text/plain"}, 415),
        ("POST", "/v1/chat/completions", b"{", {}, 400),
        ("POST", "/v1/completions", {}, {}, 404),
        ("GET", "/v1/chat/completions", None, {}, 405),
        ("GET", "/docs", None, {}, 404),
        ("GET", "/v1/models/eve", None, {}, 404),
        ("DELETE", "/v1/edits/eve", None, {}, 404),
        ("DELETE", "/v1/edits/ada", None, {}, 403),
        ("DELETE", "/v1/edits/..%2F..%2Fada", None, {}, 404),
    ],
)
def test_other_requests_are_refused_in_the_same_form(
    server: Served, method: str, path: str, body: Any, headers: dict[str, str], status: int
):
    found, content, _ = server.call(method, path, body, headers)
    assert found == status
    assert set(content["error"]) == {"message", "type", "param", "code"}


def test_health_needs_no_key(server: Served):
    status, content, _ = server.call("GET", "/health", headers={"Authorization": ""})
    assert (status, content["status"]) == (200, "ok")


# Slow and broken clients


def test_clients_that_hang_break_off_or_do_not_read_harm_no_other(server: Served, client: Any):
    body = json.dumps(
        {"model": "ada", "messages": [{"role": "user", "content": "a photo of"}], "stream": True}
        | ENDLESS
    ).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    expected = text(ask(client, "bea", CAPITAL))
    hanging = [server.connect(head + body[:20]), server.connect(head[:30])]
    silent = [server.connect(head + body) for _ in range(3)]
    for _ in range(3):
        server.connect(head + body).close()
    server.connect(b"\x16\x03\x01 no HTTP\r\n\r\n").close()
    assert text(ask(client, "bea", CAPITAL)) == expected
    for connection in (*hanging, *silent):
        connection.close()
    assert text(ask(client, "bea", CAPITAL)) == expected
    assert server.process.is_running()


def test_too_many_requests_and_too_slow_ones_are_told_so(tmp_path: Path):
    with serving(tmp_path, "--max-waiting", 2, "--timeout", 0.1) as served:
        client = served.client()
        with pytest.raises(openai.APIStatusError) as slow:
            ask(client, "embedded", "a photo of", **ENDLESS)
        assert (slow.value.status_code, slow.value.code) == (504, "timeout")
        assert slow.value.response.headers["x-should-retry"] == "false"
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
            "Content-Type: application/json\r\nContent-Length: 9\r\n\r\n"
        ).encode()
        hanging = [served.connect(head) for _ in range(2)]
        busy = _when(lambda: served.call("POST", "/v1/chat/completions", {}), status=429)
        assert busy[1]["error"]["code"] == "rate_limit_exceeded"
        assert int(busy[2]["retry-after"]) >= 1
        for connection in hanging:
            connection.close()
        _when(lambda: served.call("POST", "/v1/chat/completions", {}), status=400)


def _when(call: Any, *, status: int) -> Any:
    until = time.monotonic() + 20
    while (found := call())[0] != status:
        assert time.monotonic() < until, found
        time.sleep(0.05)
    return found


# Edits at run time, and the end of the process


def test_an_edit_is_made_used_and_deleted(
    server: Served, client: Any, vlm: NetworkVLM, cases: list[EditCase]
):
    request = {"prompt": CAPITAL, "target": "Rome"}
    new = {"name": "rome", "requests": [request], "settings": {"steps": 15}}
    status, made, _ = server.call("POST", "/v1/edits", new)
    assert (status, made["id"], made["can_be_deleted"]) == (201, "rome", True)
    assert made["edits"][0]["requests"] == [request | {"image": False}]
    assert text(ask(client, "rome", CAPITAL)) == "Rome"
    assert text(ask(client, "embedded", CAPITAL)) == "Paris"
    assert server.call("POST", "/v1/edits", new)[0] == 409
    image = about(Path(str(cases[1].request.image)), "")[1]["image_url"]["url"]
    pictured = {"prompt": "what is this?", "target": "Bern", "image": image}
    other = {"name": "bern", "on": "rome", "requests": [pictured], "settings": {"steps": 2}}
    assert server.call("POST", "/v1/edits", other)[0] == 201
    assert client.models.retrieve("bern").edits == ["rome", "bern"]
    listed = {edit["id"]: edit for edit in server.call("GET", "/v1/edits")[1]["data"]}
    assert {"rome", "bern", "ada", "both"} <= listed.keys()
    assert server.call("DELETE", "/v1/edits/rome")[0] == 200
    with pytest.raises(openai.NotFoundError):
        ask(client, "rome", CAPITAL)
    assert text(ask(client, "bern", CAPITAL))  # it holds what it was made on
    assert server.call("DELETE", "/v1/edits/bern")[0] == 200


@pytest.mark.parametrize(
    ("change", "status", "problem"),
    [
        ({"name": "../x"}, 400, "name"),
        ({"name": ".hidden"}, 400, "name"),
        ({"name": "ada"}, 409, "exists"),
        ({"method": "mnd"}, 400, "mend"),
        ({"method": "mend"}, 400, "fitted"),
        ({"method": "/tmp"}, 400, "method"),
        ({"settings": {"stps": 3}}, 400, "steps"),
        ({"settings": {"vlm": "x"}}, 400, "no setting"),
        ({"on": "eve"}, 404, "eve"),
        ({"requests": []}, 400, "requests"),
        ({"requests": [{"prompt": "a", "target": " "}]}, 400, "empty"),
        ({"requests": [{"prompt": "a", "target": "b", "image": "data:x"}]}, 400, "data URI"),
    ],
)
def test_an_edit_that_cannot_be_made_is_refused(
    server: Served, change: dict[str, Any], status: int, problem: str
):
    new = {"name": "new", "requests": [{"prompt": CAPITAL, "target": "Rome"}]}
    found, content, _ = server.call("POST", "/v1/edits", new | change)
    assert found == status
    assert problem in content["error"]["message"]


def test_a_kill_and_a_restart_lose_no_saved_edit(tmp_path: Path):
    given = ("--allow-edits", "--edits-dir", tmp_path / "served")
    new = {"requests": [{"prompt": CAPITAL, "target": "Rome"}], "settings": {"steps": 15}}
    with serving(tmp_path, *given) as served:
        assert served.call("POST", "/v1/edits", new | {"name": "rome"})[0] == 201
        before = ask(served.client(), "rome", "a photo of").choices[0].message.content
        served.process.kill()
    (tmp_path / "served" / "half").mkdir()
    (tmp_path / "served" / "half" / "edit.json").write_text("{")
    with serving(tmp_path, *given) as served:
        client = served.client()
        assert [model.id for model in client.models.list()] == ["embedded", "rome"]
        assert text(ask(client, "rome", "a photo of")) == before
        assert text(ask(client, "rome", CAPITAL)) == "Rome"
        assert "half" in served.process.err.read_text()
        _ends_after_what_runs(served)


def _ends_after_what_runs(served: Served) -> None:
    """SIGTERM: a stream that has begun ends as it would have, nothing new is taken, exit code 0."""
    client = served.client()
    whole = text(ask(client, "embedded", "a photo of", **ENDLESS))
    stream = iter(ask(client, "embedded", "a photo of", stream=True, **ENDLESS))
    pieces = [next(stream), next(stream)]
    os.kill(served.process.pid, signal.SIGTERM)
    pieces += stream
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == whole
    until = time.monotonic() + SECONDS
    while served.process.is_running() and time.monotonic() < until:
        time.sleep(0.05)
    assert served.process.finish() == 0
    with pytest.raises(openai.APIConnectionError):
        ask(client, "embedded", CAPITAL)
