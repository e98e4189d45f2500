from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import jaxtyping
import pytest
from command_line import Mmedit, Result

if TYPE_CHECKING:
    from mmedit.vlm.network import NetworkVLM

TYPES_CHECKED = tuple(
    f"mmedit.{name}" for name in ("adapters", "cache", "deltas", "images", "metrics", "vlm")
)
"""Where tensors are. Not editors and methods: beartype cannot check the `Self` of `Editor.load`."""

# Before torch is first imported: there is a test process for every core.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Before mmedit is first imported: who calls it from now on is held to the shapes it asks for.
jaxtyping.install_import_hook(TYPES_CHECKED, "typechecker.check")


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


@pytest.fixture
def tiny_vlm(tiny_folder: Path) -> NetworkVLM:
    """That model with nothing cached yet."""
    from mmedit.vlm.loading import load_vlm

    return load_vlm(tiny_folder)


@pytest.fixture(scope="session")
def vlm() -> NetworkVLM:
    """The embedded VLM; its cache of image features is shared by all tests."""
    from mmedit.vlm.loading import load_vlm

    return load_vlm("embedded")
