from __future__ import annotations

import atexit
import gc
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import typechecker
from command_line import Mmedit, Result

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.scheduler import Scheduling

    from mmedit.vlm.network import NetworkVLM

TYPES_CHECKED = tuple(
    f"mmedit.{name}" for name in ("adapters", "cache", "deltas", "images", "metrics", "vlm")
)
"""Where tensors are. Not editors and methods: beartype cannot check the `Self` of `Editor.load`."""

GROUPS = (
    (r"test_notebooks\.py::.*\[(.+)\]", r"notebook \1"),
    # one launch at a time, all from one warm process
    (
        r"test_(bench_processes|distributed|training_checkpoints)\.py|::test_a_killed_sequence",
        "processes",
    ),
    (r"test_promises\.py::.*\[(.+)\]", r"promises of \1"),
    (
        r"(test_(?:families|cli|play_page|speed_programs|compiled|results_stay|server|shell)\.py)",
        r"\1",
    ),
    (r"(test_(?:suite|easyvqa|\w+_reuse|serac|intervals|checkpoints|modes|run)\.py)", r"\1"),
    (r"(.+\.py)", r"\1"),
)
"""Tests of one group share what their fixtures make, so one process runs them. The groups of the
first rows take longest and begin first.
"""

NUMERIC = re.compile(
    r"tests/(adapters/|vlm/test_(placement|vlm)\.py|metrics/|methods/test_\w+_golden\.py|test_deltas\.py)"
)
"""Tests that compare numbers which different processors compute a little differently."""

# Before torch is first imported: there is a test process for every core.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What mmedit makes for a user goes to a folder that is gone after the tests.
os.environ["MMEDIT_HOME"] = tempfile.mkdtemp(prefix="mmedit-tests-")
atexit.register(shutil.rmtree, os.environ["MMEDIT_HOME"], ignore_errors=True)
# Before mmedit is first imported: who calls it from now on is held to the shapes it asks for.
typechecker.install(TYPES_CHECKED)


def row_and_group(nodeid: str) -> tuple[int, str]:
    """Return the row of GROUPS that a test belongs to, and its group."""
    for row, (pattern, name) in enumerate(GROUPS):
        if found := re.search(pattern, nodeid):
            return row, found.expand(name)
    return len(GROUPS), nodeid.split("::")[0]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: row_and_group(item.nodeid)[0])
    for item in items:
        if NUMERIC.search(item.nodeid):
            item.add_marker("numeric")


def pytest_collectstart() -> None:
    gc.disable()  # while all is imported, hardly anything is garbage


def pytest_collection_finish() -> None:
    """Leave what was imported out of every later garbage collection: it stays to the end, and to
    look through a million objects takes half a second.
    """
    gc.enable()
    gc.collect()
    gc.freeze()


def pytest_runtest_setup() -> None:
    typechecker.begin_test()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling | None:
    if config.getoption("dist") != "loadscope":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return row_and_group(nodeid)[1]

    return ByGroup(config, log)


@pytest.fixture
def mmedit_(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Mmedit:
    """Runs the command line in this process, on a wide terminal."""
    from mmedit import cli

    def call(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["mmedit", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        shown = capsys.readouterr()
        return Result(code, " ".join(shown.out.split()), " ".join(shown.err.split()))

    return call


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random BLIP-2 with OPT, saved."""
    import tiny

    return tiny.save_model(tmp_path_factory.mktemp("tiny-blip2"))


@pytest.fixture(scope="session")
def tiny_loaded(tiny_folder: Path) -> NetworkVLM:
    from mmedit.vlm.loading import load_vlm

    return load_vlm(tiny_folder)


@pytest.fixture
def tiny_vlm(tiny_loaded: NetworkVLM) -> NetworkVLM:
    """That model with nothing cached yet. All tests share its network, which none may change."""
    from mmedit.vlm.network import NetworkVLM

    return NetworkVLM(tiny_loaded.adapter)


@pytest.fixture(scope="session")
def vlm() -> NetworkVLM:
    """The embedded VLM; its cache of image features is shared by all tests."""
    from mmedit.vlm.loading import load_vlm

    return load_vlm("embedded")
