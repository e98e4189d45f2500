"""Where the files that come with the package lie."""

from __future__ import annotations

from importlib import resources
from pathlib import Path


def config_folder() -> Path:
    """`configs/`: inside the installed package, else beside it in a checkout."""
    package = Path(str(resources.files("mmedit")))
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"
