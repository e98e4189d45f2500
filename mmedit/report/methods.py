"""The methods that `mmedit compare` names: read from run folders, and paired."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmedit.errors import DataError, UnknownNameError
from mmedit.records.schema import Record, RunManifest
from mmedit.report.checkpoints import last_shared
from mmedit.report.runs import SEQUENTIAL, Origin, RunRecords, orders_of, read_one
from mmedit.report.scores import by_editor, is_base


@dataclass(frozen=True)
class Method:
    """One side of a comparison: the records of one editor in one run."""

    run: Path
    editor: str
    origin: Origin
    records: list[Record]
    mode: Mapping[str, Any] = field(default_factory=dict)
    """The mode of the run, with its settings."""

    @property
    def label(self) -> str:
        """The editor with its run."""
        return f"{self.editor} in {self.run}"


def matched_methods(
    first: str, second: str, *, across_modes: bool = False
) -> list[tuple[Method, Method]]:
    """Pair the methods of two runs: one method each, or the methods with the same label.

    Two sequences are compared at the last checkpoint that both have reached. Raises DataError if
    the pairs are not clear, and for runs of different modes unless `across_modes`.
    """
    one, other = _read(first), _read(second)
    if not across_modes:
        _require_one_mode(one.run.manifest, other.run.manifest, first, second)
    pairs = _pairs(one, other)
    if not pairs:
        known = [f"{side.run.path}:{editor}" for side in (one, other) for editor in side.editors]
        raise DataError(
            f"cannot tell which methods of {first} and {second} to compare; write RUN:EDITOR. "
            f"Known: {', '.join(known)}"
        )
    return [_compared(one.run, a, other.run, b) for a, b in pairs]


@dataclass(frozen=True)
class _Side:
    run: RunRecords
    editors: list[str]


def _read(argument: str) -> _Side:
    """Read RUN or RUN:EDITOR: all editors of a run except the base model, or the one named, which
    may be "base".
    """
    path, _, named = argument.rpartition(":")
    if _is_there(argument) or not path:
        path, named = argument, ""
    run = read_one(Path(path))
    if named and named not in run.rows:
        raise UnknownNameError(f"editor in {path}", named, run.rows)
    methods = [editor for editor in run.rows if not is_base(editor)]
    return _Side(run, [named] if named else methods or list(run.rows))


def _is_there(path: str) -> bool:
    try:
        return Path(path).exists()
    except OSError:  # too long a name, or no permission: reading it says so
        return False


def _pairs(one: _Side, other: _Side) -> list[tuple[str, str]]:
    if len(one.editors) == len(other.editors) == 1:
        return [(one.editors[0], other.editors[0])]
    same = one.run.path.resolve() == other.run.path.resolve()
    return [] if same else [(editor, editor) for editor in one.editors if editor in other.editors]


def _require_one_mode(one: RunManifest, other: RunManifest, first: str, second: str) -> None:
    if one.run.mode != other.run.mode:
        raise DataError(
            f"the edits of {first} were made in mode {_shown(one.run.mode)}, those of {second} in "
            f"mode {_shown(other.run.mode)}; compare runs of one mode, or add --across-modes"
        )


def _shown(mode: Mapping[str, Any]) -> str:
    settings = {key: value for key, value in mode.items() if key != "kind"}
    return f"{mode['kind']} {json.dumps(settings)}" if settings else str(mode["kind"])


def _compared(one: RunRecords, a: str, other: RunRecords, b: str) -> tuple[Method, Method]:
    """Return two methods with the records that are compared: each edit once."""
    first, second = _method(one, a), _method(other, b)
    are_sequences = first.mode == second.mode and first.mode["kind"] == SEQUENTIAL
    if are_sequences and not (is_base(a) and is_base(b)):
        first, second = _at_shared_checkpoint(first, second, orders_of(one.manifest))
    return _tested(first), _tested(second)


def _at_shared_checkpoint(first: Method, second: Method, orders: int) -> tuple[Method, Method]:
    """Cut two methods of a sequence to the last checkpoint that both have reached."""
    sides = {f"{first.editor} (A)": first, f"{second.editor} (B)": second}  # A may be "base", too
    shared = last_shared({label: side.records for label, side in sides.items()}, orders)
    rows = {} if shared is None else shared.rows
    for label, side in sides.items():
        if label not in rows:
            raise DataError(f"{side.label} has not reached a checkpoint yet; let the run go on")
    a, b = (replace(side, records=rows[label]) for label, side in sides.items())
    return a, b


def _method(run: RunRecords, editor: str) -> Method:
    return Method(run.path, editor, run.origin, list(run.rows[editor]), run.manifest.run.mode)


def _tested(method: Method) -> Method:
    found = by_editor(method.records).get(method.editor)
    if not found:
        raise DataError(f"{method.label} has no finished test yet; let the run go on")
    return replace(method, records=found)
