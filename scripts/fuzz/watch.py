"""Try one input, and tell whether mmedit took it, refused it, or has a fault."""

from __future__ import annotations

import itertools
import shutil
import signal
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from hypothesis import strategies as st
from hypothesis.errors import HypothesisException, StopTest

from mmedit.errors import MmeditError

LONGEST_MESSAGE = 4000
"""Characters of an error message. A longer one repeats the input, and nobody reads it."""


class SilentSkip(AssertionError):
    """The input was taken, but not as it was written."""


class Hang(BaseException):
    """An input took too long. No `except Exception` may catch it."""


class Refused(Exception):
    """The command line refused the input with a message and exit code 2."""


@dataclass(frozen=True)
class Kind:
    """One kind of inputs."""

    share: int
    """Its part of all inputs, relative to the other kinds."""
    attempt: Callable[[st.DataObject, Path], object]
    """Draws one input, and gives it to mmedit; the folder is empty, and for this input alone.
    Returns the input as text for the report, or raises what mmedit raised.
    """


@dataclass(frozen=True)
class Fault:
    """An input that mmedit does not handle."""

    kind: str
    what: str
    number: int
    """Number of the input within its kind."""
    error: str

    def __str__(self) -> str:
        return (
            f"{self.kind} {self.number}, {self.what}: {self.error.strip().splitlines()[-1][:300]}"
        )

    def as_json(self) -> dict[str, Any]:
        """Return the fault as JSON."""
        return vars(self)


@dataclass
class Watch:
    """The results of all inputs of a kind."""

    kind: str
    folder: Path
    seconds: int
    """Time limit of one input."""
    counts: Counter[str] = field(default_factory=Counter)
    faults: list[Fault] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    """Messages of refused inputs."""
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def one(self, attempt: Callable[[], object]) -> None:
        """Try one input and count the result."""
        signal.signal(signal.SIGALRM, _hang)
        signal.alarm(self.seconds)
        try:
            attempt()
        except (HypothesisException, StopTest):  # no input could be drawn
            raise
        except (MmeditError, Refused) as error:
            self._refused(str(error))
        except SilentSkip:
            self._fault("silent skip")
        except Hang:
            self._fault("hang")
        except Exception:  # noqa: BLE001  # any other exception is what is looked for
            self._fault("traceback")
        else:
            self._count("taken")
        finally:
            signal.alarm(0)

    def fresh_folder(self) -> Path:
        """Return an empty folder, and delete the one before."""
        shutil.rmtree(self.folder, ignore_errors=True)
        fresh = self.folder / str(next(self._numbers))
        fresh.mkdir(parents=True)
        return fresh

    def summary(self) -> str:
        """Write the counts."""
        named = ("taken", "refused", "traceback", "hang", "silent skip")
        return ", ".join(f"{self.counts[name]:,} {name}" for name in named if self.counts[name])

    def _refused(self, message: str) -> None:
        if not message.strip() or len(message) > LONGEST_MESSAGE or "Traceback" in message:
            self._note("traceback", f"a message of {len(message)} characters: {message[:300]}")
        else:
            self._count("refused")
            self.messages.append(message.strip())

    def _count(self, what: str) -> None:
        self.counts["inputs"] += 1
        self.counts[what] += 1

    def _fault(self, what: str) -> None:
        self._note(what, traceback.format_exc())

    def _note(self, what: str, error: str) -> None:
        self._count(what)
        self.faults.append(Fault(self.kind, what, self.counts["inputs"], error))


def _hang(number: int, frame: FrameType | None) -> None:
    raise Hang


def require(fine: bool, what: str) -> None:
    """Raise SilentSkip unless what mmedit took is what was written."""
    if not fine:
        raise SilentSkip(what)
