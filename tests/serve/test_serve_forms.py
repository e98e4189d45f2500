"""What a request may say, and how a conversation becomes one question."""

from __future__ import annotations

import asyncio
import base64
import gzip
import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="mmedit serve needs the extra serve")

from mmedit.serve import fetching
from mmedit.serve.conversation import as_one_question
from mmedit.serve.forms import ChatRequest, NewEdit, read_form
from mmedit.serve.growing import grown, settled
from mmedit.serve.pictures import Picture, Pictures
from mmedit.serve.refusals import Refusal

HELLO = [{"role": "user", "content": "hello"}]
PICTURES = Pictures(most_pixels=10_000, most_bytes=100_000)
ZEROS = bytes(100_000)
PACKED = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + gzip.compress(ZEROS)


def chat(**fields: Any) -> ChatRequest:
    return read_form(ChatRequest, json.dumps({"model": "m", "messages": HELLO} | fields).encode())


def png(width: int = 8, height: int = 6, *, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(file, kind)
    return file.getvalue()


def data_uri(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def read(pictures: Pictures, url: str) -> Picture:
    return asyncio.run(pictures.read(url))


# Fields


def test_a_request_without_options_is_greedy_and_whole():
    form = chat()
    assert (form.temperature, form.top_p, form.stop, form.stream) == (0.0, 1.0, [], False)
    assert form.new_tokens is None


def test_a_null_stands_for_a_field_left_out():
    assert chat(temperature=None, stop=None, n=None, tools=None, max_tokens=None) == chat()


def test_fields_that_ask_for_nothing_are_accepted():
    form = chat(
        n=1, frequency_penalty=0.0, presence_penalty=0, logprobs=False, user="me", tools=[],
        response_format={"type": "text"}, metadata={"a": "b"}, store=True,
    )  # fmt: skip
    assert form == chat()


def test_one_stop_text_is_a_list_of_one():
    assert chat(stop="\n").stop == ["\n"]


def test_the_newer_name_of_the_number_of_tokens_counts_first():
    assert chat(max_tokens=5).new_tokens == 5
    assert chat(max_tokens=5, max_completion_tokens=3).new_tokens == 3


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"n": 2}, "n", "unsupported_parameter"),
        ({"tools": [{"type": "function"}]}, "tools", "unsupported_parameter"),
        ({"logprobs": True}, "logprobs", "unsupported_parameter"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "unsupported_parameter"),
        ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
        ({"top_k": 4}, "top_k", "unsupported_parameter"),
        ({"temperature": 2.1}, "temperature", None),
        ({"temperature": "hot"}, "temperature", None),
        ({"top_p": 0}, "top_p", None),
        ({"max_tokens": 0}, "max_tokens", None),
        ({"max_tokens": "5"}, "max_tokens", None),
        ({"seed": 1.5}, "seed", None),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", None),
        ({"stop": [""]}, "stop.0", None),
        ({"stream": "yes"}, "stream", None),
        ({"messages": []}, "messages", None),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role", None),
        ({"messages": [{"role": "user"}]}, "messages.0.content", None),
        ({"model": 5}, "model", None),
    ],
)
def test_a_wrong_or_unknown_field_is_refused_by_its_name(
    fields: dict[str, Any], param: str, code: str | None
):
    with pytest.raises(Refusal) as refused:
        chat(**fields)
    assert (refused.value.status, refused.value.param, refused.value.code) == (400, param, code)
    assert "\n" not in refused.value.message


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'"text"', b"null"])
def test_a_body_that_is_no_object_is_refused(body: bytes):
    with pytest.raises(Refusal) as refused:
        read_form(ChatRequest, body)
    assert refused.value.status == 400


def test_an_edit_needs_a_request():
    with pytest.raises(Refusal, match="requests"):
        read_form(NewEdit, b'{"name": "x", "requests": []}')


# Conversations


def messages(*said: tuple[str, Any]) -> list[Any]:
    return chat(messages=[{"role": role, "content": text} for role, text in said]).messages


def test_the_last_message_is_the_prompt_and_all_before_it_the_context():
    asked = as_one_question(
        messages(
            ("system", "Be brief."), ("user", "a cat?"), ("assistant", "no"), ("user", "a dog?")
        )
    )
    assert asked.prompt == "a dog?"
    assert asked.context == "Be brief.\nUser: a cat?\nAssistant: no\n"


def test_an_image_of_an_earlier_turn_stays_the_image():
    image = {"type": "image_url", "image_url": {"url": "data:x"}}
    text = {"type": "text", "text": "what is this?"}
    asked = as_one_question(
        messages(("user", [image, text]), ("assistant", "a cat"), ("user", "which color?"))
    )
    assert (asked.image_url, asked.prompt) == ("data:x", "which color?")


IMAGE = {"type": "image_url", "image_url": {"url": "data:x"}}


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ([("user", "a"), ("assistant", "b")], "the last message"),
        ([("user", "a"), ("user", " ")], "empty"),
        ([("user", [IMAGE, IMAGE])], "2 images"),
        ([("user", [IMAGE]), ("assistant", "b"), ("user", [IMAGE])], "2 images"),
        ([("system", [IMAGE]), ("user", "a")], "role 'system'"),
    ],
)
def test_a_conversation_that_is_no_question_is_refused(said: list[Any], problem: str):
    with pytest.raises(Refusal, match=problem) as refused:
        as_one_question(messages(*said))
    assert refused.value.param == "messages"


# Images


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_a_data_uri_is_an_image(kind: str):
    assert read(PICTURES, data_uri(png(kind=kind))).decode().size == (8, 6)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("data:image/png;base64,!!!", "base64"),
        ("data:image/png,abc", "of the form"),
        (data_uri(b""), "cannot be read"),
        (data_uri(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "cannot be read"),
        (data_uri(png(200, 200)), "at most 10,000"),
        ("http://example.org/a.png", "--allow-image-urls"),
        ("file:///etc/passwd", "--image-root"),
        ("/etc/passwd", "--image-root"),
        ("ftp://example.org/a.png", "not the address"),
    ],
)
def test_other_addresses_of_images_are_refused(url: str, problem: str):
    with pytest.raises(Refusal, match=problem) as refused:
        read(PICTURES, url)
    assert refused.value.code == "invalid_image"


def test_an_image_that_is_cut_off_is_refused_when_it_is_decoded():
    noise = io.BytesIO()
    Image.effect_noise((90, 90), 50).save(noise, "PNG")
    picture = read(PICTURES, data_uri(noise.getvalue()[:2000]))
    with pytest.raises(Refusal, match="broken"):
        picture.decode()


def test_a_folder_of_images_gives_its_own_files_and_no_others(tmp_path: Path):
    root, secret = tmp_path / "images", tmp_path / "secret.png"
    root.mkdir()
    (root / "a b.png").write_bytes(png())
    secret.write_bytes(png())
    (root / "link.png").symlink_to(secret)
    pictures = Pictures(most_pixels=10_000, most_bytes=100_000, root=root)
    assert read(pictures, "a b.png").content == png()
    assert read(pictures, f"file://{root}/a%20b.png").content == png()
    for outside in ("../secret.png", str(secret), "link.png", "file:///etc/passwd", "x/../../y"):
        with pytest.raises(Refusal, match="outside") as refused:
            read(pictures, outside)
        assert "secret.png is" not in refused.value.message
    for missing in ("b.png", ".", "a" * 500):
        with pytest.raises(Refusal):
            read(pictures, missing)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0"]
)
def test_an_address_that_is_not_public_is_not_fetched(host: str):
    pictures = Pictures(most_pixels=10_000, most_bytes=100_000, allow_urls=True)
    with pytest.raises(Refusal, match="not a public address"):
        read(pictures, f"http://{host}:9/a.png")


def test_a_host_with_one_private_address_is_not_fetched(monkeypatch: pytest.MonkeyPatch):
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, 80)) for a in ("8.8.8.8", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(Refusal, match="not a public address"):
        fetching.public_address("example.org", 80)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The port of a web server that answers for every public name."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.headers["Host"] != f"example.org:{port}":
                return self.send_error(400)
            if self.path.startswith("/slow"):
                return self.trickle(b"" if self.path == "/slow_head.png" else b"\r\n\r\n")
            if self.path == "/packed.png":
                self.wfile.write(PACKED)
                return None
            self.send_response({"/moved.png": 302, "/gone.png": 404}.get(self.path, 200))
            self.send_header("Location", "/a.png")
            self.end_headers()
            self.wfile.write(b"x" * 200_000 if self.path == "/large.png" else png())

        def trickle(self, head_end: bytes) -> None:
            """Send a byte now and then for ten seconds, or until the client has gone."""
            with suppress(OSError):
                self.wfile.write(b"HTTP/1.1 200 OK\r\nX: x" + head_end)
                for _ in range(500):
                    self.wfile.write(b"x")
                    time.sleep(0.02)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        port = server.server_port
        monkeypatch.setattr(fetching, "public_address", lambda *_: "127.0.0.1")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield port
        server.shutdown()
        thread.join()


def test_an_image_is_fetched_where_the_server_was_told_to(host: int):
    pictures = Pictures(most_pixels=10_000, most_bytes=100_000, allow_urls=True)
    assert read(pictures, f"http://example.org:{host}/a.png").decode().size == (8, 6)


@pytest.mark.parametrize(
    ("path", "problem"),
    [("moved", "status 302"), ("gone", "status 404"), ("large", "more than 100,000 bytes")],
)
def test_what_else_an_address_gives_is_refused(host: int, path: str, problem: str):
    pictures = Pictures(most_pixels=10_000, most_bytes=100_000, allow_urls=True)
    with pytest.raises(Refusal, match=problem):
        read(pictures, f"http://example.org:{host}/{path}.png")


@pytest.mark.parametrize("path", ["slow_head", "slow_body"])
def test_one_limit_holds_for_a_host_that_sends_single_bytes(
    host: int, path: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(fetching, "SECONDS", 0.3)
    pictures = Pictures(most_pixels=10_000, most_bytes=100_000, allow_urls=True)
    begun = time.monotonic()
    with pytest.raises(Refusal, match="took longer than"):
        read(pictures, f"http://example.org:{host}/{path}.png")
    assert time.monotonic() - begun < 5


def test_a_name_that_is_searched_for_too_long_is_refused(monkeypatch: pytest.MonkeyPatch):
    answered = threading.Event()
    monkeypatch.setattr(fetching, "SECONDS", 0.1)
    monkeypatch.setattr(fetching, "public_address", lambda *_: answered.wait(10))
    try:
        with pytest.raises(Refusal, match="took longer than"):
            asyncio.run(fetching.fetched("http://example.org/a.png", most_bytes=100))
    finally:
        answered.set()


def test_a_packed_body_is_not_unpacked(host: int):
    url = f"http://example.org:{host}/packed.png"
    assert gzip.decompress(asyncio.run(fetching.fetched(url, most_bytes=1000))) == ZEROS


# Growing texts


def test_a_settled_text_begins_every_longer_answer():
    whole, stops = " a red circle \n\nQuestion: what? ", ["\n\nQuestion"]
    final = "a red circle"
    shown = ""
    for end in range(len(whole) + 1):
        now = settled(whole[:end], stops)
        assert final.startswith(now), whole[:end]
        shown = grown(shown, now)
    assert shown == final


def test_half_of_a_character_is_not_shown():
    assert settled("caf\ufffd", []) == "caf"


def test_nothing_that_was_shown_is_taken_back():
    assert grown("a cat", "a dog and more") == "a cat"
