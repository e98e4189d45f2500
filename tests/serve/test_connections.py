"""Connections over which nothing is asked, and requests that are addressed to another machine."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="mmedit serve needs the extra serve")

import uvicorn
from uvicorn.server import ServerState

from mmedit.loopback import NAMES
from mmedit.serve import server
from mmedit.serve.guard import Guard
from mmedit.serve.limits import Limits

REQUEST = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answer after a moment that is longer than an idle connection lives here."""
    await asyncio.sleep(0.4)
    await send({"type": "http.response.start", "status": 204})
    await send({"type": "http.response.body"})


async def sent(port: int, content: bytes) -> bytes:
    """Return all that comes back until the server closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(content)
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("content", "answers"),
    [(b"", 0), (REQUEST[:-2], 0), (REQUEST, 1), (REQUEST + REQUEST[:-2], 1), (REQUEST * 2, 2)],
)
def test_a_connection_lives_as_long_as_something_is_asked(
    monkeypatch: pytest.MonkeyPatch, content: bytes, answers: int
):
    monkeypatch.setattr(server, "BODY_SECONDS", 0.2)
    config = uvicorn.Config(app, http=server.Connection, lifespan="off", ws="none")

    async def asked() -> bytes:
        listening = await asyncio.get_running_loop().create_server(
            lambda: server.Connection(config, ServerState(), {}), "127.0.0.1", 0
        )
        async with listening, asyncio.timeout(10):
            return await sent(listening.sockets[0].getsockname()[1], content)

    assert asyncio.run(asked()).count(b"204 No Content") == answers


@pytest.mark.parametrize(("host", "is_ours"), [("127.0.0.1", True), ("0.0.0.0", False)])
def test_a_socket_of_this_machine_alone_is_known(host: str, is_ours: bool):
    with server.bound(host, 0) as listening:
        assert server.is_local(listening) == is_ours


def test_a_name_of_this_machine_is_known():
    with socket.create_server(("localhost", 0)) as listening:
        assert server.is_local(listening)


def answer(host: str, hosts: tuple[str, ...]) -> tuple[int, bytes]:
    """Return status and body of a request that is addressed to a host."""
    messages: list[Any] = []

    async def noted(message: Any) -> None:
        messages.append(message)

    async def received() -> Any:
        return {"type": "http.request", "body": b""}

    scope: Any = {
        "type": "http",
        "path": "/v1/models",
        "method": "GET",
        "headers": [(b"host", host.encode())],
    }
    guard = Guard(app, limits=Limits(), api_key=None, hosts=hosts)
    asyncio.run(guard(scope, received, noted))
    return messages[0]["status"], messages[1].get("body", b"")


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "LocalHost", "[::1]:8000", "vlm.lan:80"])
def test_a_request_to_a_name_of_the_server_is_let_in(host: str):
    assert answer(host, (*NAMES, "vlm.lan"))[0] == 204


@pytest.mark.parametrize("host", ["evil.example:8000", "localhost.evil.example", "", "[::1", "a@b"])
def test_a_request_to_another_name_is_refused(host: str):
    status, body = answer(host, NAMES)
    error = json.loads(body)["error"]
    assert (status, error["code"]) == (403, "host_not_allowed")
    assert "--api-key" in error["message"]


def test_a_server_that_others_reach_answers_under_every_name():
    assert answer("evil.example", ())[0] == 204
