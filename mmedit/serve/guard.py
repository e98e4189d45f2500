"""Checks that every request passes before a route sees it: the name that it is addressed to, the
key, the type of its body, the number of open requests, and the time that it may take in all.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any, final
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse

from mmedit.serve.limits import Limits
from mmedit.serve.refusals import Refusal, too_busy, too_slow

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

GRACE = 10.0
"""Time that a client has for reading an answer to its end, beside `Limits.seconds`, in seconds."""
UNTIMED = "/v1/edits"
"""Making an edit takes as long as it takes."""


@final
class Guard:
    """Refuses what no route should see. A layer around the application."""

    def __init__(
        self, app: App, *, limits: Limits, api_key: str | None, hosts: Collection[str] = ()
    ) -> None:
        self._app = app
        self._hosts = frozenset(name.lower() for name in hosts)
        self._limits = limits
        self._key = None if api_key is None else api_key.encode()
        self._open = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            return await self._app(scope, receive, send)
        try:
            headers = Headers(scope=scope)
            self._require_host(headers.get("host", ""))
            self._require_allowed(headers, scope["method"])
        except Refusal as refusal:
            return await refused(refusal)(scope, receive, send)
        self._open += 1
        try:
            await self._within_time(scope, receive, send)
        finally:
            self._open -= 1

    def _require_host(self, host: str) -> None:
        """Raise Refusal for a request that is addressed to another name than the server's."""
        if self._hosts and _name_of(host) not in self._hosts:
            raise Refusal(
                403,
                f"the request is addressed to {host[:60]!r}; expected one of "
                f"{', '.join(sorted(self._hosts))}: use one of them, or start the server with "
                "--api-key",
                code="host_not_allowed",
            )

    def _require_allowed(self, headers: Headers, method: str) -> None:
        """Raise Refusal for a wrong key, a body of another type or too large, or too many."""
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = key.strip().encode() if scheme.lower() == "bearer" else b""
        if self._key is not None and not hmac.compare_digest(given, self._key):
            raise Refusal(
                401,
                "the API key is missing or wrong; expected the header Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if method != "POST":
            return
        # A page in a browser may send other types to any address without asking.
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Refusal(
                415, f"the body is of type {kind[:60]!r}; expected Content-Type: application/json"
            )
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._limits.body_bytes:
            raise too_large(self._limits)
        if self._open >= self._limits.waiting:
            raise too_busy(self._open)

    async def _within_time(self, scope: Message, receive: Receive, send: Send) -> None:
        has_begun = False

        async def noted(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        untimed = scope["path"].startswith(UNTIMED)
        try:
            async with asyncio.timeout(None if untimed else self._limits.seconds + GRACE):
                await self._app(scope, receive, noted)
        except TimeoutError:  # a client that reads too slowly: its connection is closed
            if not has_begun:
                await refused(too_slow(self._limits.seconds))(scope, receive, send)


def _name_of(host: str) -> str:
    """Return the name in a Host header, without its port; "" for one that is not valid."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def refused(refusal: Refusal) -> JSONResponse:
    """Return the answer that says an error."""
    return JSONResponse(refusal.body, refusal.status, refusal.headers)


def too_large(limits: Limits) -> Refusal:
    """Return the error for a body that is too large."""
    return Refusal(
        413,
        f"the body is larger than the {limits.body_bytes:,} bytes that this server takes; send a "
        "smaller image",
        code="body_too_large",
    )
