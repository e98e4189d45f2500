"""Finds and reads golden numbers: what other code gave on small inputs (tests/golden/README.md)."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, eq=False, kw_only=True)
class GoldenCase:
    """What `cases.json` says of one case, and its tensors `<name>.*` without that prefix."""

    name: str
    facts: dict[str, Any]
    tensors: dict[str, Tensor]


def golden_folder() -> Path:
    """$MMEDIT_GOLDEN; else ../shared/golden beside the repository, where it exists; else ours."""
    named = os.environ.get("MMEDIT_GOLDEN")
    if named:
        if not Path(named).is_dir():
            raise FileNotFoundError(f"MMEDIT_GOLDEN={named} is no folder")
        return Path(named)
    shared = REPOSITORY.parent / "shared" / "golden"
    return shared if shared.is_dir() else REPOSITORY / "tests" / "golden"


def golden_files(pattern: str) -> list[Path]:
    """The golden files that match, sorted. None at all is an error: a test over nothing passes."""
    found = sorted(golden_folder().glob(pattern))
    if not found:
        raise FileNotFoundError(f"no golden file {pattern} in {golden_folder()}")
    return found


def golden_cases(kind: str) -> list[GoldenCase]:
    """The cases of a kind, from `<kind>/cases.json` and `<kind>/tensors.safetensors`."""
    (path,) = golden_files(f"{kind}/cases.json")
    tensors = load_file(path.with_name("tensors.safetensors"))
    cases = [
        GoldenCase(name=facts["name"], facts=facts, tensors=under(facts["name"], tensors))
        for facts in read_golden_json(path)["cases"]
    ]
    if not cases:
        raise ValueError(f"no case in {path}")
    return cases


def read_golden_json(path: Path) -> Any:
    """The file's content; non-finite numbers are written as "nan", "inf" and "-inf" there."""
    return _with_floats(json.loads(path.read_text(encoding="utf-8")))


def _with_floats(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_floats(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_floats(item) for item in value]
    return float(value) if value in ("nan", "inf", "-inf") else value


def under(name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors `<name>.*`, without that prefix. None at all is an error."""
    mine = {
        key.removeprefix(f"{name}."): tensor
        for key, tensor in tensors.items()
        if key.startswith(f"{name}.")
    }
    if not mine:
        raise ValueError(f"no golden tensor {name}.*")
    return mine
