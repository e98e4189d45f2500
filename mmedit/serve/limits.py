"""Limits of one server, and how it batches."""

from __future__ import annotations

from dataclasses import dataclass

MEGABYTE = 2**20


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits that keep one client from taking the server away from the others."""

    batch: int = 16
    """Most requests that are answered together."""
    wait: float = 0.005
    """Longest time that a request waits for others to be answered with, in seconds."""
    waiting: int = 128
    """Most requests that are open: being read, waiting, or being answered."""
    new_tokens: int = 256
    """Most tokens of one answer, and their number where a request does not say."""
    seconds: float = 120.0
    """Longest time from a request to the end of its answer, in seconds."""
    body_bytes: int = 16 * MEGABYTE
    """Largest body of a request, in bytes."""
    pixels: int = 16_000_000
    """Most pixels of an image."""
