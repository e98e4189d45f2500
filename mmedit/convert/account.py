"""The account of a checkpoint's tensors: each one is used, or dropped for a reason."""

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
"""Regular expressions of whole names, and why the tensors that they match are not needed."""

SHOWN = 8
"""Number of names in an error. In a wrong file, all names are wrong."""
ON_REQUEST = "dropped on request (--drop)"


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """The tensors of one source, by their original names."""

    role: str
    """The option that named the source: `--vision`."""
    source: str
    tensors: Mapping[str, Tensor]
    sha256: str | None = None
    """The file's hash; None if the source is not a file."""
    dropped: Mapping[str, str] = field(default_factory=dict)
    """Names that were left out when the source was read, with the reason."""

    def __str__(self) -> str:
        return f"{self.role} {self.source}"

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor. Raises ModelError if it is missing."""
        if name not in self.tensors:
            raise ModelError(f"{self} has no tensor {name}; it contains {listed(self.tensors)}")
        return tuple(self.tensors[name].shape)


@dataclass(frozen=True, kw_only=True)
class Account:
    """The number of used tensors of one source, and its dropped ones."""

    role: str
    source: str
    sha256: str | None
    used: int
    dropped: Mapping[str, str]
    """Names of dropped tensors, with the reason."""


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """A finished conversion; `conversion.json` in its folder says the same."""

    folder: Path
    model_type: str
    image_size: int
    dtype: str
    accounts: tuple[Account, ...]
    filled: Mapping[str, str]
    """Weights that no source contains, with what they are and why."""
    versions: Mapping[str, str]


def account(
    checkpoint: Checkpoint, expected: Shapes, drops: Drops, *, also_drop: Sequence[str] = ()
) -> Account:
    """Compare a source with the tensors that are expected of it, and return its account.

    `also_drop` are shell patterns of names that are neither expected nor known. Raises ModelError
    that names the tensors that are missing, mis-shaped, not floating point, not finite, or extra.
    """
    rest = {
        name: _reason(name, drops, also_drop) for name in checkpoint.tensors if name not in expected
    }
    extra = [name for name, reason in rest.items() if reason is None]
    problems = [
        f"{fault}: {listed(names)}"
        for fault, names in {**_faults(checkpoint.tensors, expected), "extra": extra}.items()
        if names
    ]
    if problems:
        advice = " To leave out a tensor that is not needed: --drop NAME." if extra else ""
        raise ModelError(f"{checkpoint} does not fit. {'. '.join(problems)}.{advice}")
    return Account(
        role=checkpoint.role,
        source=checkpoint.source,
        sha256=checkpoint.sha256,
        used=len(expected),
        dropped={**checkpoint.dropped, **{name: str(reason) for name, reason in rest.items()}},
    )


def _faults(tensors: Mapping[str, Tensor], expected: Shapes) -> dict[str, list[str]]:
    """Return the expected tensors that are faulty, by fault."""
    found = {name: tensors[name] for name in expected if name in tensors}
    return {
        "missing": [name for name in expected if name not in tensors],
        "of another shape": [
            f"{name} (found {list(tensor.shape)}, expected {list(expected[name])})"
            for name, tensor in found.items()
            if tuple(tensor.shape) != expected[name]
        ],
        "not floating point": [
            f"{name} ({tensor.dtype})"
            for name, tensor in found.items()
            if not tensor.is_floating_point()
        ],
        "NaN or infinite": [
            name for name, tensor in found.items() if not bool(tensor.float().isfinite().all())
        ],
    }


def agreed_size(checkpoint: Checkpoint, axes: Mapping[str, int]) -> int:
    """Return the size that most tensors have.

    `axes` are regular expressions of whole names, with the axis that has the size. The majority
    counts, so that an error names the one tensor that differs. Raises ModelError.
    """
    sizes = Counter(
        tensor.shape[axis]
        for pattern, axis in axes.items()
        for name, tensor in checkpoint.tensors.items()
        if re.fullmatch(pattern, name) and tensor.ndim > axis
    )
    if not sizes:
        example = re.sub(r"\(?\\d\+\)?", "N", next(iter(axes))).replace(".*", "*").replace("\\", "")
        raise ModelError(
            f"{checkpoint} has no tensor like {example}; it contains {listed(checkpoint.tensors)}"
        )
    return sizes.most_common(1)[0][0]


def numbers(checkpoint: Checkpoint, pattern: str) -> list[int]:
    """Return the distinct first groups of the names that begin with a pattern, sorted."""
    found = (re.match(pattern, name) for name in checkpoint.tensors)
    return sorted({int(match[1]) for match in found if match})


def listed(names: Iterable[str]) -> str:
    """Return the first names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (", ".join(names[:SHOWN]) + more) if names else "nothing"


def _reason(name: str, drops: Drops, also_drop: Sequence[str]) -> str | None:
    for pattern, reason in drops:
        if re.fullmatch(pattern, name):
            return reason
    return ON_REQUEST if any(fnmatchcase(name, pattern) for pattern in also_drop) else None
