"""Images from the web, for a server that was told to fetch them.

A request chooses the address, so the server could be made to read what only it can reach (the
machine itself, its network, a cloud's metadata). Hence only public addresses are asked, the address
that was checked is the one that is connected to, and no redirect is followed.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from ssl import SSLContext
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

from mmedit.errors import shortened
from mmedit.serve.refusals import Refusal

if TYPE_CHECKING:
    import httpx2

SECONDS = 20.0
"""Longest time of fetching one image, from the search for its host to its last byte."""
RESOLVING = ThreadPoolExecutor(32, "mmedit-resolve")
"""Threads that ask for the addresses of hosts, which cannot be broken off: slow names hold up no
other work.
"""


async def fetched(url: str, *, most_bytes: int) -> bytes:
    """Return what is at a public address. Raises Refusal."""
    import httpx2

    parts = _parts(url)
    try:
        # One limit for all: a host that sends single bytes passes every limit between two of them.
        async with asyncio.timeout(SECONDS):
            address = await _resolved(parts)
            tls = await asyncio.get_running_loop().run_in_executor(None, _tls)
            async with (
                httpx2.AsyncClient(
                    timeout=None, follow_redirects=False, trust_env=False, verify=tls
                ) as client,
                _answer(client, parts, address) as response,
            ):
                if response.status_code != 200:
                    raise _refused(url, f"answered with status {response.status_code}")
                return await _body(url, response, most_bytes)
    except TimeoutError:
        raise _refused(url, f"took longer than {SECONDS:g} s") from None
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise _refused(url, f"cannot be fetched ({type(error).__name__})") from None


async def _resolved(parts: SplitResult) -> str:
    port = parts.port or (443 if parts.scheme == "https" else 80)
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(RESOLVING, public_address, parts.hostname or "", port)


def _answer(client: httpx2.AsyncClient, parts: SplitResult, address: str):
    """Return the open answer of the host at exactly this address."""
    shown = f"[{address}]" if ":" in address else address
    port = f":{parts.port}" if parts.port else ""
    host = parts.hostname or ""
    named = f"[{host}]" if ":" in host else host
    return client.stream(
        "GET",
        parts._replace(netloc=f"{shown}{port}", fragment="").geturl(),
        headers={
            "Host": f"{named}{port}",
            "User-Agent": "mmedit",
            "Accept": "image/*",
            "Accept-Encoding": "identity",
        },
        extensions={"sni_hostname": host},
    )


async def _body(url: str, response: httpx2.Response, most_bytes: int) -> bytes:
    """Return the bytes as they are sent: unpacked, a few of them could be any number."""
    content = bytearray()
    async for chunk in response.aiter_raw():
        content += chunk
        if len(content) > most_bytes:
            raise _refused(url, f"holds more than {most_bytes:,} bytes")
    return bytes(content)


@cache
def _tls() -> SSLContext:
    import httpx2

    return httpx2.create_ssl_context(trust_env=False)


def public_address(host: str, port: int) -> str:
    """Return an address of a host that is public, as all others of it are too. Raises Refusal."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise _refused(host, "is not the name of a host that can be found") from None
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    if not addresses or not all(address.is_global for address in addresses):
        raise _refused(host, "is not a public address; this server fetches no others")
    return str(addresses[0])


def _parts(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise _refused(url, "is not a valid address") from None
    if not parts.hostname or parts.username or parts.password:
        raise _refused(url, "is not a valid address")
    return parts


def _refused(what: str, fault: str) -> Refusal:
    return Refusal(
        400,
        f"the image at {shortened(what)} {fault}; send it as a data URI",
        code="invalid_image_url",
        param="messages",
    )
