"""The playground on this machine alone: one process, no address outside of it is asked."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from importlib.util import find_spec
from tempfile import TemporaryDirectory
from typing import Any

from mmedit.errors import ConfigError, RunError
from mmedit.loopback import NAMES
from mmedit.play.actions import Playground

HOST = "127.0.0.1"
MAX_UPLOAD = "50mb"
POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
"""Content-Security-Policy: the page loads nothing from, and sends nothing to, another server."""
SHUTDOWN_SECONDS = 3
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def require_gradio() -> None:
    """Raise ConfigError if Gradio is not installed. It is not imported yet: that takes seconds, and
    Gradio then reads where its files are to lie.
    """
    if find_spec("gradio") is None:
        raise ConfigError(
            "the playground needs Gradio, which is not installed; install it: "
            "pip install 'mmedit[play]'"
        )


def bound_socket(port: int) -> socket.socket:
    """Return a socket on this machine alone; port 0 takes a free one. Raises RunError."""
    opened = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind((HOST, port))
    except OSError as error:
        opened.close()
        raise RunError(
            f"port {port} cannot be used: {error.strerror}. Choose another one: --port {port + 1}"
        ) from error
    return opened


def serve(app: Any, opened: socket.socket, ready: Callable[[str], None]) -> None:
    """Serve the page until Ctrl+C or SIGTERM. `ready` gets its address once it answers."""
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                ready(f"http://{HOST}:{opened.getsockname()[1]}")

    # uvicorn finishes what runs and then raises the signal again: the end is a clean one
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=SHUTDOWN_SECONDS)
    Server(config).run(sockets=[opened])


@contextmanager
def private_uploads() -> Iterator[None]:
    """Keep dropped pictures in a folder that only this user can read, and delete it at the end."""
    with TemporaryDirectory(prefix="mmedit-play-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        yield


def application(playground: Playground, port: int) -> Any:
    """Return the page as an ASGI application."""
    import gradio as gr
    from fastapi import FastAPI
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from mmedit.play.events import connect
    from mmedit.play.layout import build, theme
    from mmedit.play.render import stylesheet

    blocks, page = build(playground)
    connect(blocks, page, playground)
    blocks.queue(max_size=32)
    app = FastAPI(openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=NAMES)
    app.add_middleware(Policy)
    return gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        server_name=HOST,
        server_port=port,
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=MAX_UPLOAD,
        ssr_mode=False,
        mcp_server=False,
        theme=theme(),
        css=stylesheet(),
    )


class Policy:
    """Adds `POLICY` to every response."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""

        async def send_with_policy(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                headers = [
                    *message.get("headers", []),
                    (b"content-security-policy", POLICY.encode()),
                    (b"referrer-policy", b"no-referrer"),
                    (b"x-content-type-options", b"nosniff"),
                ]
                message = {**message, "headers": headers}
            await send(message)

        await self.app(scope, receive, send_with_policy)
