"""The feed-forward block that neurons stand beside."""

from __future__ import annotations

from typing import NamedTuple


class Block(NamedTuple):
    """Two Linears of one feed-forward block."""

    reads: str
    """A Linear that takes the input of the block."""
    site: str
    """The Linear that gives its output."""
