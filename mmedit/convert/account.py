"""The account of a checkpoint's tensors: each is used, or dropped for a reason that is told."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from torch import Tensor

from mmedit.errors import ModelError

Shapes = Mapping[str, tuple[int, ...]]
Drops = Sequence[tuple[str, str]]
"""Regular expressions of whole names, and why what they match is not needed."""

SHOWN = 8
"""Names that an error tells; of a wrong file all would be wrong."""
ON_REQUEST = "dropped on request (--drop)"


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """What a source holds: tensors by their original names."""

    role: str
    """What it was given as: `--vision`."""
    source: str
    tensors: Mapping[str, Tensor]
    sha256: str | None = None
    """Of the file; None where it is no file."""
    dropped: Mapping[str, str] = field(default_factory=dict)
    """What was set aside when it was read, with the reason."""

    def __str__(self) -> str:
        return f"{self.role} {self.source}"

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor that must be there. Raises ModelError."""
        if name not in self.tensors:
            raise ModelError(f"{self} has no tensor {name}; it holds {listed(self.tensors)}")
        return tuple(self.tensors[name].shape)


@dataclass(frozen=True, kw_only=True)
class Account:
    """What became of one source."""

    role: str
    source: str
    sha256: str | None
    used: int
    dropped: Mapping[str, str]
    """Names with reasons."""


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """A finished conversion; `conversion.json` in its folder says the same."""

    folder: Path
    model_type: str
    image_size: int
    dtype: str
    accounts: tuple[Account, ...]
    filled: Mapping[str, str]
    """Weights that no source holds, with what they are and why."""
    versions: Mapping[str, str]


def account(
    checkpoint: Checkpoint, wanted: Shapes, drops: Drops, *, also_drop: Sequence[str] = ()
) -> Account:
    """Compare a source with what is wanted of it. `also_drop`: shell patterns of names that are
    neither wanted nor known.

    Raises ModelError that names the tensors that are missing, mis-shaped, no floating point, not
    finite, or extra.
    """
    tensors = checkpoint.tensors
    missing = [name for name in wanted if name not in tensors]
    misshaped = [
        f"{name} (found {list(tensors[name].shape)}, wanted {list(shape)})"
        for name, shape in wanted.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    coded = [
        f"{name} ({tensors[name].dtype})"
        for name in wanted
        if name in tensors and not tensors[name].is_floating_point()
    ]
    endless = [
        name
        for name in wanted
        if name in tensors and not bool(tensors[name].float().isfinite().all())
    ]
    rest = {name: _reason(name, drops, also_drop) for name in tensors if name not in wanted}
    extra = [name for name, reason in rest.items() if reason is None]
    problems = [
        f"{what}: {listed(names)}"
        for what, names in (
            ("missing", missing),
            ("of another shape", misshaped),
            ("not floating point", coded),
            ("NaN or infinite", endless),
            ("extra", extra),
        )
        if names
    ]
    if problems:
        advice = " What is not needed may be left out: --drop NAME." if extra else ""
        raise ModelError(f"{checkpoint} does not fit. {'. '.join(problems)}.{advice}")
    return Account(
        role=checkpoint.role,
        source=checkpoint.source,
        sha256=checkpoint.sha256,
        used=len(wanted),
        dropped={**checkpoint.dropped, **{name: str(reason) for name, reason in rest.items()}},
    )


def agreed_size(checkpoint: Checkpoint, axes: Mapping[str, int]) -> int:
    """The size that most tensors have; `axes`: regular expressions of whole names, and the axis
    that has it. By vote, so that the odd tensor is the one called mis-shaped. Raises ModelError.
    """
    sizes = Counter(
        tensor.shape[axis]
        for pattern, axis in axes.items()
        for name, tensor in checkpoint.tensors.items()
        if re.fullmatch(pattern, name) and tensor.ndim > axis
    )
    if not sizes:
        wanted = re.sub(r"\(?\\d\+\)?", "N", next(iter(axes))).replace(".*", "*").replace("\\", "")
        raise ModelError(
            f"{checkpoint} has no tensor like {wanted}; it holds {listed(checkpoint.tensors)}"
        )
    return sizes.most_common(1)[0][0]


def numbers(checkpoint: Checkpoint, pattern: str) -> list[int]:
    """Sorted and distinct: the first group of the names that begin so."""
    found = (re.match(pattern, name) for name in checkpoint.tensors)
    return sorted({int(match[1]) for match in found if match})


def listed(names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (", ".join(names[:SHOWN]) + more) if names else "nothing"


def _reason(name: str, drops: Drops, also_drop: Sequence[str]) -> str | None:
    for pattern, reason in drops:
        if re.fullmatch(pattern, name):
            return reason
    return ON_REQUEST if any(fnmatchcase(name, pattern) for pattern in also_drop) else None
