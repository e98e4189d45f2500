"""Real processes: several of `accelerate launch` on CPUs, and some that are killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
SECONDS = 240
"""After which processes are taken to hang."""


def environment() -> dict[str, str]:
    """One thread each, as results of several threads differ in last digits."""
    paths = os.pathsep.join([str(TESTS.parents[1]), str(TESTS)])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}


def launch(*arguments: object, processes: int = 2, succeeds: bool = True) -> tuple[str, str]:
    """What the processes print: stdout and stderr."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    # `--cpu --num_processes 2` would start one
    command = (
        "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes),
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
        "--main_process_port", port, *map(str, arguments),
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
    assert (started.returncode == 0) == succeeds, err
    return out, err
