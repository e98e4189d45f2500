"""Waiting, in a client's task, for what the engine's thread does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import final

from starlette.requests import ClientDisconnect, Request

BODY_SECONDS = 30.0
"""Longest time in which a client sends the body of its request."""


@final
class Bell:
    """Rung from any thread, heard in the task that made it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()

    def ring(self) -> None:
        """Wake the task. It does nothing where the loop has ended."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._event.set)

    async def heard(self) -> None:
        """Wait for the next ring, or for one that nobody has heard."""
        await self._event.wait()
        self._event.clear()


async def until(is_ready: Callable[[], bool], bell: Bell, request: Request) -> None:
    """Wait until something is ready; the bell rings when that may have changed.

    Raises ClientDisconnect as soon as the client has gone.
    """
    gone = asyncio.create_task(_gone(request))
    try:
        while not is_ready():
            rung = asyncio.create_task(bell.heard())
            try:
                await asyncio.wait({gone, rung}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                rung.cancel()
            if gone.done() and not is_ready():
                raise ClientDisconnect
    finally:
        gone.cancel()
        with suppress(asyncio.CancelledError):
            await gone


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
