"""`mmedit serve` in a process of its own, and OpenAI's client for it."""

from __future__ import annotations

import base64
import io
import json
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPMessage
from pathlib import Path
from typing import Any

import openai
import pytest
from PIL import Image
from processes import Started, free_port, start

KEY = "sesame"
SECONDS = 120
"""After this time a server is taken to hang."""


@dataclass(frozen=True)
class Served:
    """A running server."""

    process: Started
    port: int
    opened: ExitStack = field(default_factory=ExitStack)
    """The connections to it, closed at its end."""

    def client(self, **options: Any) -> openai.OpenAI:
        """Return OpenAI's client. It asks once: tests are about the first answer."""
        http = self.opened.enter_context(openai.DefaultHttpxClient(trust_env=False))
        given = {
            "api_key": KEY,
            "max_retries": 0,
            "timeout": SECONDS,
            "http_client": http,
        } | options
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", **given)

    def call(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, Any, HTTPMessage]:
        """Return status, JSON and headers of one request."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        usual = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        try:
            connection.request(method, path, content, usual | dict(headers or {}))
            response = connection.getresponse()
            return response.status, json.loads(response.read() or b"null"), response.headers
        finally:
            connection.close()

    def connect(self, sent: bytes) -> socket.socket:
        """Return a connection over which these bytes were sent."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=SECONDS)
        self.opened.enter_context(connection)
        connection.sendall(sent)
        return connection


@contextmanager
def serving(folder: Path, *arguments: object) -> Iterator[Served]:
    """Start a server, and kill it at the end."""
    port = free_port()
    process = start(folder, "-m", "mmedit", "serve", "--port", port, *arguments, MMEDIT_API_KEY=KEY)
    try:
        until = time.monotonic() + SECONDS
        while "serving at" not in process.out.read_text():
            if not process.is_running() or time.monotonic() > until:
                pytest.fail(f"the server did not start: {process.err.read_text()}")
            time.sleep(0.05)
        served = Served(process, int(port))
        with served.opened:
            yield served
    finally:
        if process.is_running():
            process.kill()


def ask(client: openai.OpenAI, model: str, content: Any, **options: Any) -> Any:
    """Return the answer of a model to one message."""
    messages: Any = [{"role": "user", "content": content}]
    return client.chat.completions.create(model=model, messages=messages, **options)


def about(image: Path | Image.Image, prompt: str) -> list[dict[str, Any]]:
    """Return the content of a message with an image, as a data URI."""
    content = image.read_bytes() if isinstance(image, Path) else _png(image)
    uri = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    return [
        {"type": "text", "text": prompt},
        {"type": "image_url", "image_url": {"url": uri}},
    ]


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
