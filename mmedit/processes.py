"""The processes of `accelerate launch`, or the one there is without it."""

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


def is_main_process() -> bool:
    """Whether this is the process that speaks and writes, of those of `accelerate launch`."""
    return _processes().is_main_process


def number_of_processes() -> int:
    """How many `accelerate launch` has started; 1 without it."""
    return _processes().num_processes


def process_number() -> int:
    """This process's, from 0, which is the main one's."""
    return _processes().process_index


def gathered(mine: Value | Failure) -> list[Value]:
    """What every process has, by number. Must be called by all. Raises RunError in all where one
    has failed (see `attempted`).
    """
    if number_of_processes() == 1:
        return [_sound(mine)]
    return [_sound(value) for value in gather_object([mine])]


def attempted(make: Callable[[], Value]) -> Value | Failure:
    """What is made, or why it could not be: an error in one process must reach all others, which
    would wait for it.
    """
    try:
        return make()
    except MmeditError as error:
        if number_of_processes() == 1:
            raise
        return Failure(str(error))


def from_main(make: Callable[[], Value]) -> Value:
    """What the main process makes, in all of them. Raises RunError in all where it cannot."""
    made = [attempted(make) if is_main_process() else None]
    if number_of_processes() > 1:
        broadcast_object_list(made)
    return _sound(cast("Value", made[0]))


def _sound(value: Value | Failure) -> Value:
    if isinstance(value, Failure):
        raise RunError(value.reason)
    return value


@dataclass(frozen=True)
class Failure:
    """Why a process could not do its part."""

    reason: str


def _processes() -> PartialState:
    # Unless it is told that they are on CPUs, each of them takes itself to be alone.
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def leave(code: int) -> NoReturn:
    """End this process of several at once, when all is written: taking gloo's threads down as an
    interpreter does at its end aborts now and then, and would end the others as failed.
    """
    if code and not is_main_process():
        time.sleep(SPEAKING_SECONDS)  # the first that fails ends all, and the main one is to speak
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
