from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import jaxtyping
import pytest

if TYPE_CHECKING:
    from mmedit.vlm import NetworkVLM

TYPES_CHECKED = tuple(
    f"mmedit.{name}" for name in ("adapters", "deltas", "features", "images", "metrics", "vlm")
)
"""Where tensors are. Not `editors`: beartype cannot check the `Self` of `Editor.load`."""

# Before mmedit is first imported: who calls it from now on is held to the shapes it asks for.
jaxtyping.install_import_hook(TYPES_CHECKED, "typechecker.check")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random BLIP-2 with OPT, saved."""
    import tiny

    return tiny.save_model(tmp_path_factory.mktemp("tiny-blip2"))


@pytest.fixture
def tiny_vlm(tiny_folder: Path) -> NetworkVLM:
    """That model with nothing cached yet."""
    from mmedit.vlm import load_vlm

    return load_vlm(tiny_folder)


@pytest.fixture(scope="session")
def vlm() -> NetworkVLM:
    """The embedded VLM; its cache of image features is shared by all tests."""
    from mmedit.vlm import load_vlm

    return load_vlm("embedded")
