"""Grids: lists of values by setting, and the points that they make.

    --grid lr=1e-4,1e-3 --grid editor.steps=10,20         4 points
    --grid grid.yaml                                      the same as a file:

        lr: [1e-4, 1e-3]
        points:                                           settings that go together
          - {where: vision, steps: 10}
          - {where: language, steps: 20}

Every value of a list is combined with those of the other lists, and with every one of `points`.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from mmedit.catalog import names, read_yaml
from mmedit.config_checks import PARTS
from mmedit.errors import ConfigError, shortened
from mmedit.settings import Values, number_or_same, read_yaml_text

Point = tuple[str, ...]
"""The settings of one point as `--set` takes them, for example ("editor.lr=0.001",)."""
TOGETHER = "points"
"""Key of the settings that go together."""
MAX_GRID = 100_000
"""Most points that a grid may have."""
MAX_POINTS = 1_000
"""Most points that a search may measure."""
MAX_NAME = 100
"""Longest name of a point's folder, in characters."""


def read_grid(written: Sequence[str]) -> Values:
    """Return a grid as it is written after `--grid`: setting=value,value or the name of a YAML
    file.

    Raises ConfigError for a fault, and for a setting that is given twice.
    """
    grid: Values = {}
    for text in written:
        key, equals, values = text.partition("=")
        if equals and key.strip():
            found = {key.strip(): read_yaml_text(f"[{values}]", f"--grid {shortened(text)}")}
        elif Path(text).is_file():
            found = read_yaml(Path(text))
        else:
            raise ConfigError(
                f"--grid {shortened(text)} is neither of the form setting=value,value, for example "
                "lr=1e-4,1e-3, nor a YAML file"
            )
        if twice := [key for key in found if key in grid]:
            raise ConfigError(f"--grid {twice[0]} is given twice; write all its values in one list")
        grid |= found
    return grid


def points_of(grid: Mapping[str, Any], editor: str) -> tuple[Point, ...]:
    """Return all points of a grid of settings of `editor`, each once, the last list fastest.

    Raises ConfigError for a list that is empty or not a list, and for a setting that is given twice
    or is not of this editor. Whether the editor has the setting is not checked.
    """
    if not isinstance(grid, Mapping) or not grid:
        raise ConfigError(
            f"the grid is {shortened(grid)}; expected a list of values by setting, for example "
            '{"lr": [1e-4, 1e-3]}'
        )
    axes = [_axis(str(key), values, editor) for key, values in grid.items()]
    if (size := math.prod(map(len, axes))) > MAX_GRID:
        raise ConfigError(
            f"the grid has {size:,} points; expected at most {MAX_GRID:,}: shorten its lists"
        )
    points = [tuple(text for part in parts for text in part) for parts in product(*axes)]
    for point in points:
        keys = [key_of(text) for text in point]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise ConfigError(f"the grid sets {twice[0]} twice; take it out of one of its lists")
    return tuple(dict.fromkeys(points))


def subset(points: Sequence[Point], number: int | None, seed: int) -> tuple[Point, ...]:
    """Return `number` points drawn by the seed, in the order of the grid; None: all of them.

    A larger number gives the same points and others. Raises ConfigError if there are too many.
    """
    if (size := min(number or len(points), len(points))) > MAX_POINTS:
        raise ConfigError(
            f"{size:,} points are to be measured; expected at most {MAX_POINTS:,}: choose fewer "
            "with --points N, or shorten the lists of the grid"
        )
    drawn = np.random.default_rng([seed, len(points)]).permutation(len(points))[:number]
    return tuple(points[place] for place in sorted(drawn))


def key_of(setting: str) -> str:
    """Return the name of a setting in a table: without value, and without "editor."."""
    return setting.partition("=")[0].removeprefix("editor.")


def settings_of(point: Point) -> dict[str, str]:
    """Return the values of a point as they are written, by the name of the setting."""
    return {key_of(setting): setting.partition("=")[2] for setting in point}


def label_of(point: Point) -> str:
    """Write a point for people, for example "lr=0.001, steps=10"."""
    return ", ".join(f"{key}={value}" for key, value in settings_of(point).items())


def folder_name(point: Point) -> str:
    """Return the name of a point's folder: its settings, cut off with a hash if they are long or
    have characters that a file name should not have.
    """
    text = label_of(point).replace(", ", ",")
    name = re.sub(r"[^\w.,=+-]+", "_", text)
    if name == text and len(name) <= MAX_NAME:
        return name
    return f"{name[:MAX_NAME]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _axis(key: str, values: Any, editor: str) -> list[Point]:
    """Return what each value of a list sets."""
    if not isinstance(values, list | tuple) or not values:
        raise ConfigError(
            f"--grid {key}: the values are {shortened(values)}; expected a list of at least one"
        )
    if key != TOGETHER:
        name = _full_key(key, editor)
        return [(f"{name}={_written(value)}",) for value in values]
    for value in values:
        if not isinstance(value, Mapping) or not value:
            raise ConfigError(
                f"--grid {TOGETHER}: found {shortened(value)}; expected settings that go together, "
                "for example {lr: 1e-3, steps: 10}"
            )
    return [
        tuple(f"{_full_key(str(one), editor)}={_written(value[one])}" for one in value)
        for value in values
    ]


def _full_key(key: str, editor: str) -> str:
    """Return a key with its part: "editor.lr" for "lr" and for "ft.lr"."""
    part, dot, rest = key.partition(".")
    if key.startswith(f"{editor}."):
        return f"editor.{key.removeprefix(f'{editor}.')}"
    if part == "editor" and dot:
        return key
    if part in PARTS and dot:
        raise ConfigError(
            f"--grid {key}: a search is about settings of the editor; set {key} for all points "
            f"with --set {key}=VALUE"
        )
    if part in names("editor") and rest:
        raise ConfigError(f"--grid {key} is for --editor {part}; here the editor is {editor}")
    return f"editor.{key}"


def _written(value: Any) -> str:
    """Write a value so that `--set` reads it as it is; 1e-3 and 0.001 are written alike."""
    value = number_or_same(value)
    if isinstance(value, str) and re.fullmatch(r"[\w./-]+", value):  # a word, unless it is "null"
        read = number_or_same(read_yaml_text(value, f"--grid {value}"))
        return value if read == value else json.dumps(value)
    return json.dumps(value, ensure_ascii=False, default=str)
