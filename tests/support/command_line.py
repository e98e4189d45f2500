"""What the command line gave (fixture `mmedit_`)."""

from __future__ import annotations

from collections.abc import Callable


class Result:
    """Exit code, and what was printed with runs of white space as one space."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


Mmedit = Callable[..., Result]
