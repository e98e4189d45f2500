"""Running the application: its socket, and its end."""

from __future__ import annotations

import errno
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from mmedit.errors import ServeError
from mmedit.serve.guard import GRACE
from mmedit.serve.limits import Limits

SIGNALS = (signal.SIGINT, signal.SIGTERM)
LOOPBACK = ("127.", "::1", "localhost")


@contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """Give a socket at an address that nobody listens at yet: clients are refused until `serve`.
    Raises ServeError.
    """
    with _bound(host, port) as found:
        yield found


def _bound(host: str, port: int) -> socket.socket:
    found = None
    try:
        [(family, kind, protocol, _, address), *_] = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        if found is not None:
            found.close()
        advice = "choose another --host"
        if error.errno == errno.EADDRINUSE:
            advice = "another program uses it; choose another --port"
        elif error.errno == errno.EACCES:
            advice = "ports below 1024 are for the system; choose another --port"
        raise ServeError(
            f"cannot listen at {host}, port {port}: {error.strerror}; {advice}"
        ) from None
    return found


def is_local(host: str) -> bool:
    """Return whether only programs of this machine reach an address."""
    return host.startswith(LOOPBACK)


def address_of(listening: socket.socket) -> str:
    """Return the address that clients use."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def serve(app: Any, listening: socket.socket, limits: Limits, on_ready: Callable[[], None]) -> None:
    """Serve until SIGTERM or Ctrl+C. Then what was asked is finished, and nothing new is taken."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        limit_concurrency=4 * limits.waiting,
        timeout_graceful_shutdown=int(limits.seconds + GRACE) + 1,
    )
    with _ends_quietly():
        _Server(config, on_ready).run(sockets=[listening])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        except OSError as error:  # another program took the port in the meantime
            raise ServeError(f"cannot listen: {error.strerror}; choose another --port") from None
        if self.started:
            self._on_ready()


@contextmanager
def _ends_quietly() -> Iterator[None]:
    """Ignore the signal that uvicorn raises once more after it has stopped: the end was asked for,
    so the exit code is 0.
    """
    earlier = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
