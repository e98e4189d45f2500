"""Real processes: `mmedit` in one of its own, several as `accelerate launch` starts them, and some
that are killed.

Importing torch and transformers takes longer than most of what is tested here. So most processes
are forks of one that has imported everything (`warm`) and has done nothing else; `launch` starts
new interpreters through accelerate's own launcher.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
SECONDS = 240
"""After this time a process is taken to hang."""


def environment() -> dict[str, str]:
    """Return this environment with one thread: with several, results differ in last digits."""
    paths = os.pathsep.join([str(TESTS.parents[1]), str(TESTS)])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}


def free_port() -> str:
    """Return a port of this machine that no process listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


# Forks


@dataclass(frozen=True)
class Started:
    """A process and the files that it prints into."""

    process: BaseProcess
    out: Path
    err: Path

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def is_running(self) -> bool:
        """Return whether the process has not ended yet."""
        return self.process.is_alive()

    def kill(self) -> None:
        """Kill the process and wait for its end."""
        os.kill(self.pid, signal.SIGKILL)
        self.process.join()

    def finish(self) -> int:
        """Wait for the end of the process and return its exit code."""
        self.process.join(SECONDS)
        if self.is_running():
            self.kill()
            pytest.fail(f"a process hangs: {self.err.read_text()}")
        assert self.process.exitcode is not None
        return self.process.exitcode


def start(folder: Path, *arguments: object, **variables: str) -> Started:
    """Start `python ARGUMENTS` with these environment variables in a fork of the warm process; it
    prints into files in `folder`. The first argument is "-m", before a module, or a script.
    """
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["warm"])
    with pytest.MonkeyPatch.context() as changed:  # of the warm process, when it is first needed
        for name in ("PYTHONPATH", "OMP_NUM_THREADS"):
            changed.setenv(name, environment()[name])
        folder.mkdir(parents=True, exist_ok=True)
        number = len(list(folder.glob("*.out")))
        out, err = folder / f"{number}.out", folder / f"{number}.err"
        given = [str(argument) for argument in arguments]
        process = server.Process(target=_run, args=(given, variables, out, err))
        out.touch()
        process.start()
    return Started(process, out, err)


def start_several(folder: Path, *arguments: object, processes: int) -> list[Started]:
    """Start `python ARGUMENTS` several times, with what accelerate's launcher tells each."""
    shared = {
        "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes),
        "ACCELERATE_USE_CPU": "true", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(),
    }  # fmt: skip
    return [
        start(folder, *arguments, RANK=str(rank), LOCAL_RANK=str(rank), **shared)
        for rank in range(processes)
    ]


def finished_all(started: Sequence[Started]) -> str:
    """Wait for all processes and return what they print. An error in one ends the test."""
    codes = [one.finish() for one in started]
    assert codes == [0] * len(started), "\n".join(one.err.read_text() for one in started)
    return "".join(one.out.read_text() for one in started)


def _run(arguments: list[str], variables: Mapping[str, str], out: Path, err: Path) -> None:
    for descriptor, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT, 0o644), descriptor)
    os.environ.update(variables)
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


# Launches


def launch(*arguments: object, processes: int = 2) -> tuple[str, str]:
    """Run `python ARGUMENTS` several times by accelerate's launcher; return stdout and stderr."""
    # `--cpu --num_processes 2` would start one
    command = (
        "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes),
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
        "--main_process_port", free_port(), *map(str, arguments),
    )  # fmt: skip
    started = subprocess.Popen(
        [sys.executable, *command],
        env=environment() | {"ACCELERATE_USE_CPU": "true"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = started.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(started.pid, signal.SIGKILL)
        _, err = started.communicate()
        pytest.fail(f"{processes} processes hang: {err}")
    assert started.returncode == 0, err
    return out, err
