"""Running the application: its socket, and its end."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from mmedit.errors import ServeError
from mmedit.loopback import is_loopback
from mmedit.serve.guard import GRACE
from mmedit.serve.limits import Limits
from mmedit.serve.waiting import BODY_SECONDS

SIGNALS = (signal.SIGINT, signal.SIGTERM)


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


def is_local(listening: socket.socket) -> bool:
    """Return whether only programs of this machine reach a socket."""
    return is_loopback(listening.getsockname()[0])


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
        http=Connection,
        timeout_graceful_shutdown=int(limits.seconds + GRACE) + 1,
    )
    with _ends_quietly():
        _Server(config, on_ready).run(sockets=[listening])


class Connection(H11Protocol):
    """A connection that is closed where no request comes over it within `BODY_SECONDS`: every open
    one takes a file of the process. The number of open requests is the Guard's to limit: a limit of
    uvicorn's would count connections, and idle ones would keep all others out.
    """

    _closing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._wait_for_request()

    def on_response_complete(self) -> None:
        """Begin to wait for the next request. Uvicorn waits for its first byte only."""
        super().on_response_complete()
        self._wait_for_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        if self._closing is not None:
            self._closing.cancel()
        super().connection_lost(exc)

    def _wait_for_request(self) -> None:
        if self._closing is not None:
            self._closing.cancel()
        self._closing = self.loop.call_later(BODY_SECONDS, self._close_if_idle)

    def _close_if_idle(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()


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
