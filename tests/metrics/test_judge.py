"""A judge behind an OpenAI-compatible endpoint: a server in a thread stands for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any

import pytest

from mmedit.errors import JudgeError
from mmedit.metrics.judge import Judge, JudgeConfig, verdict

ASKED = (["what is it?", "how many?"], [["a cat", "cat"], ["2"]], ["It is a cat.", "three"])
ONE = (ASKED[0][:1], ASKED[1][:1], ASKED[2][:1])


@contextmanager
def endpoint(replies: list[tuple[int, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Answers each request with the next (status, reply), the last one for ever; notes requests."""
    requests: list[dict[str, Any]] = []
    lock = Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                place = min(len(requests), len(replies) - 1)
                requests.append({"path": self.path, "headers": dict(self.headers), **body})
            status, reply = replies[place]
            if callable(reply):
                reply = reply(body["messages"][-1]["content"])
            if isinstance(reply, str):
                reply = {"choices": [{"message": {"role": "assistant", "content": reply}}]}
            content = json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def judge(url: str, **more: Any) -> Judge:
    return Judge(JudgeConfig(url=url, model="some-judge", timeout=5, **more))


def test_verdicts_come_in_order_with_what_was_asked_and_replied(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "secret")
    with endpoint([(200, lambda text: "YES" if "cat" in text else "No, that is wrong.")]) as (
        url,
        requests,
    ):
        first, second = judge(url, key_variable="JUDGE_KEY")(*ASKED)
    assert (first.verdict, second.verdict) == (1, 0)
    assert first.asked == (
        "Question: what is it?\nAccepted answers:\n- a cat\n- cat\nAnswer: It is a cat."
    )
    assert second.replied == "No, that is wrong."
    assert {request["path"] for request in requests} == {"/v1/chat/completions"}
    assert {request["model"] for request in requests} == {"some-judge"}
    assert all(request["temperature"] == 0 for request in requests)
    assert all(request["headers"]["Authorization"] == "Bearer secret" for request in requests)


@pytest.mark.parametrize(
    "reply", ["YES", "yes.", " **Yes**", "Yes, it does.", "YES\nA cat.", '"Yes"']
)
def test_a_verdict_is_read_however_it_is_written(reply: str):
    assert verdict(reply) == 1
    assert verdict(reply.replace("Yes", "No").replace("YES", "NO").replace("yes", "no")) == 0


def test_an_explanation_behind_the_verdict_may_name_the_other_word():
    assert verdict("NO. The accepted answer is yes.") == 0


@pytest.mark.parametrize(
    "reply",
    ["", "Not", "nothing", "No idea.", "Yes and no.", "Yes or no?", "It is, yes."],
)
def test_a_reply_that_is_not_clearly_yes_or_no_is_no_verdict(reply: str):
    assert verdict(reply) is None


@pytest.mark.parametrize(
    "thoughts",
    [
        "<think>\nNo. Wait: the same.\n</think>\n\n",
        "<think></think>",
        "<THINKING>no</THINKING> ",
        "[THINK]no[/THINK]",
        "◁think▷no◁/think▷",
        "the opening tag was part of the prompt: no\n</think>\n\n",
        "<think>no</think>no, once more:</think>",
    ],
)
def test_the_verdict_is_what_follows_the_thoughts(thoughts: str):
    for said in ("YES", "**Yes**", "`yes`.", "_Yes_, it does", "yes</s>"):
        assert verdict(thoughts + said) == 1
    assert verdict(f"{thoughts}NO") == 0


@pytest.mark.parametrize("reply", ["<think>Yes, it could be, but", "<think>a</think><think>YES"])
def test_thoughts_that_never_end_give_no_verdict(reply: str):
    assert verdict(reply) is None


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "thinking", "thinking": "no"}, {"type": "text", "text": "YES"}],
        "<think>no</think>YES",
    ],
)
def test_a_judge_that_thinks_gives_its_verdict(content: Any):
    reply = {"choices": [{"message": {"content": content, "reasoning_content": "no"}}]}
    with endpoint([(200, reply)]) as (url, requests):
        (found,) = judge(url)(*ONE)
    assert found.verdict == 1
    assert len(requests) == 1


def test_a_judge_that_only_thinks_gives_no_verdict():
    reply = {"choices": [{"message": {"content": None, "reasoning_content": "YES"}}]}
    with (
        endpoint([(200, reply)]) as (url, _),
        pytest.raises(JudgeError, match="neither YES nor NO: ''"),
    ):
        judge(url)(*ONE)


def test_a_busy_or_babbling_judge_is_asked_again():
    replies = [(503, {"error": "busy"}), (200, "Well, it depends."), (200, "yes")]
    with endpoint(replies) as (url, requests):
        (verdict,) = judge(url)(*ONE)
    assert verdict.verdict == 1
    assert len(requests) == 3


@pytest.mark.parametrize(
    ("replies", "problem", "times"),
    [
        ([(401, {"error": "no such key"})], "it answered 401", 1),
        ([(200, "perhaps")], "it said neither YES nor NO: 'perhaps'", 3),
        ([(200, {"choices": []})], "IndexError", 3),
        ([(500, {"error": "broken"})], "it answered 500", 3),
    ],
)
def test_a_judge_without_verdict_is_an_error_that_says_why(replies, problem, times):
    with endpoint(replies) as (url, requests), pytest.raises(JudgeError) as raised:
        judge(url)(*ONE)
    assert problem in str(raised.value)
    assert "Check URL, model and $OPENAI_API_KEY; the records made so far are kept" in str(
        raised.value
    )
    assert len(requests) == times


def test_an_endpoint_that_is_not_there_is_an_error():
    with pytest.raises(JudgeError, match="gives no verdict; Connect"):
        judge("http://127.0.0.1:9")(*ONE)


@pytest.mark.parametrize("url", ["localhost:8000/v1", "", "http://"])
def test_a_url_without_scheme_or_host_is_refused_before_anything_is_asked(url: str):
    with pytest.raises(ValueError, match="url"):
        JudgeConfig(url=url, model="some-judge")
