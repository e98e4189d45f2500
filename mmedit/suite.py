"""Whole tables of runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmedit.cases import EditCase, image_name


def save_images(cases: Sequence[EditCase], folder: Path) -> dict[str, Path]:
    """A file for every image of the cases, by its name in the records: images made in memory are
    written as PNG.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, Path] = {}
    for example in (e for case in cases for asked in case.probes.values() for e in asked):
        name = image_name(example)
        if name is None or example.image is None:
            continue
        if isinstance(example.image, Path):
            files[name] = example.image
        else:
            files[name] = folder / f"{name}.png"
            example.image.save(files[name])
    return files
