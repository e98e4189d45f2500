"""Hold mmedit to its annotations, shapes included, while tests run (see conftest.py)."""

from collections.abc import Callable
from typing import Any

from beartype import beartype

STAND_INS_ALLOWED = {"Blip2Family.__init__"}
"""Tests pass stand-ins of a processor to these."""


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function held to its annotations by beartype.

    Functions inside functions are left as they are: they are made anew in every call, and to
    prepare their checks takes longer than to run them.
    """
    name = function.__qualname__
    return function if name in STAND_INS_ALLOWED or "<locals>" in name else beartype(function)
