"""Names of this machine, for servers that only its own programs may ask."""

from __future__ import annotations

from ipaddress import ip_address

NAMES = ("127.0.0.1", "localhost", "::1")
"""Names that a request to this machine may be addressed to. Another one is an attack by DNS: a name
that first led a browser to a page, and then leads the requests of this page to this machine.
"""


def is_loopback(address: str) -> bool:
    """Return whether only programs of this machine reach an IP address."""
    return ip_address(address.partition("%")[0]).is_loopback
