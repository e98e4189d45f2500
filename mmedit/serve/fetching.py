"""Images from the web, for a server that was told to fetch them.

A request chooses the address, so the server could be made to read what only it can reach (the
machine itself, its network, a cloud's metadata). Hence only public addresses are asked, the address
that was checked is the one that is connected to, and no redirect is followed.
"""

from __future__ import annotations

import ipaddress
import socket
import time
from urllib.parse import urlsplit

from mmedit.errors import shortened
from mmedit.serve.refusals import Refusal

SECONDS = 20.0
"""Longest time of fetching one image."""


def fetched(url: str, *, most_bytes: int) -> bytes:
    """Return what is at a public address. Raises Refusal."""
    import httpx2

    parts = _parts(url)
    host = parts.hostname or ""
    address = public_address(host, parts.port or (443 if parts.scheme == "https" else 80))
    shown = f"[{address}]" if ":" in address else address
    port = f":{parts.port}" if parts.port else ""
    target = parts._replace(netloc=f"{shown}{port}", fragment="").geturl()
    headers = {"Host": f"{host}{port}", "User-Agent": "mmedit", "Accept": "image/*"}
    until = time.monotonic() + SECONDS
    try:
        with (
            httpx2.Client(timeout=SECONDS / 2, follow_redirects=False, trust_env=False) as client,
            client.stream(
                "GET", target, headers=headers, extensions={"sni_hostname": host}
            ) as response,
        ):
            if response.status_code != 200:
                raise _refused(url, f"answered with status {response.status_code}")
            content = bytearray()
            for chunk in response.iter_bytes(65536):
                content += chunk
                if len(content) > most_bytes:
                    raise _refused(url, f"holds more than {most_bytes:,} bytes")
                if time.monotonic() > until:
                    raise _refused(url, f"took longer than {SECONDS:g} s")
            return bytes(content)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise _refused(url, f"cannot be fetched ({type(error).__name__})") from None


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


def _parts(url: str):
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
