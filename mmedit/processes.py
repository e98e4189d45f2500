"""The processes of `accelerate launch`; without it there is one."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn, TypeVar, cast

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, parse_flag_from_env

from mmedit.errors import MmeditError, RunError

Value = TypeVar("Value")
SPEAKING_SECONDS = 5.0
"""Time for the main process to print its error before another one ends them all, in seconds."""


def is_main_process() -> bool:
    """Return whether this is the main process, the only one that prints and writes files."""
    return _processes().is_main_process


def number_of_processes() -> int:
    """Return how many processes `accelerate launch` has started; 1 without it."""
    return _processes().num_processes


def process_number() -> int:
    """Return the number of this process; the main process has 0."""
    return _processes().process_index


def gather(mine: Value | Failure) -> list[Value]:
    """Return the values of all processes, in order of their numbers. All must call it.

    Raises RunError in all of them if one has failed (see `attempt`).
    """
    if number_of_processes() == 1:
        return [_sound(mine)]
    return [_sound(value) for value in gather_object([mine])]


def attempt(make: Callable[[], Value]) -> Value | Failure:
    """Call `make` and return its value, or the reason why it failed.

    The reason can be sent to the other processes, which would otherwise wait for this one. Without
    other processes the error is raised.
    """
    try:
        return make()
    except MmeditError as error:
        if number_of_processes() == 1:
            raise
        return Failure(str(error))


def on_main(make: Callable[[], Value]) -> Value:
    """Call `make` on the main process and return its value in all. All must call it.

    Raises RunError in all of them if it fails.
    """
    made = [attempt(make) if is_main_process() else None]
    if number_of_processes() > 1:
        broadcast_object_list(made)
    return _sound(cast("Value", made[0]))


def _sound(value: Value | Failure) -> Value:
    if isinstance(value, Failure):
        raise RunError(value.reason)
    return value


@dataclass(frozen=True)
class Failure:
    """The reason why a process could not do its part."""

    reason: str


def _processes() -> PartialState:
    # Without `cpu` a process on a CPU does not see the others.
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def leave(code: int) -> NoReturn:
    """End this process, one of several, at once. Everything must be written before.

    An ordinary end of the interpreter stops gloo's threads, which aborts now and then; the other
    processes would then end as failed.
    """
    if code and not is_main_process():
        time.sleep(SPEAKING_SECONDS)  # the first process that fails ends all of them
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
