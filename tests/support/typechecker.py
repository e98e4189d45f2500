"""What holds mmedit to its annotations, shapes included, while tests run: see conftest.py."""

from collections.abc import Callable
from typing import Any

from beartype import beartype

STAND_INS_ALLOWED = {"Blip2Family.__init__"}
"""Tests hand in something that is as a processor, but none."""


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """beartype, but where tests use stand-ins."""
    return function if function.__qualname__ in STAND_INS_ALLOWED else beartype(function)
