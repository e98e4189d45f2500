"""The real annotation files, where they lie beside the repository."""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "data"


def shared_data(name: str) -> Path:
    """The folder; the test is skipped where it is missing."""
    folder = FOLDER / name
    if not folder.is_dir():
        pytest.skip(f"the real {name} files are not in {FOLDER}")
    return folder
