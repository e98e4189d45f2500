"""Where files lie: those of the package, and those that a name may stand for."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def config_folder() -> Path:
    """`configs/`: inside the installed package, else beside it in a checkout."""
    package = Path(str(resources.files("mmedit")))
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def is_hub_id(name: str) -> bool:
    """Whether a name may be one of the Hugging Face hub, owner/name."""
    return bool(HUB_ID.fullmatch(name))
