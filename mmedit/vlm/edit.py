"""An edit as a value: what an editor added to a VLM, with the requests it was made of.

    edited = vlm.with_edit(edit)         edited.edits == (edit,)

A VLM lists its edits in the order in which they were added. Leaving one out takes it out: the
others are added to the base model again, which costs no forward.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from mmedit.cases import Example
from mmedit.delta_files import as_tensors, from_tensors, kept_in
from mmedit.deltas import Delta, Sum, compose_all
from mmedit.errors import EditError, shortened
from mmedit.vlm.identity import Identity

MERGED, NAMELESS, STACK = "merged", "deltas", "stack"
"""Names of edits that no editor made."""
LATEST = "latest."
"""Beginning of the names of kept tensors of which later edits need the newest alone."""


class Change(ABC):
    """The addition of an edit to a VLM: deltas of weights, or the state of a wrapper."""

    kind: ClassVar[str]
    """Name of this kind of change in files."""

    @abstractmethod
    def added_to(self, vlm: Any, edit: Edit) -> Any:
        """Return the VLM with this change, and with `edit` at the end of its `edits`."""

    @property
    def deltas(self) -> Mapping[str, Delta] | None:
        """The deltas by site; None if the change is not one of weights."""
        return None

    @property
    def is_separate(self) -> bool:
        """Whether each row of a batch has an edit of its own (`Editor.apply_each`)."""
        return False

    def merged_with(self, later: Change) -> Change | None:
        """Return one change that adds what this one and then a later one add, in less memory than
        both; None if there is none. For changes that are not of weights (`VLM.merged`).
        """
        return None

    @property
    def editor(self) -> Any:
        """The fitted editor without which the change means nothing; None if there is no such."""
        return None

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that a file keeps, by name."""
        return {}

    def notes(self) -> dict[str, Any]:
        """Return what a file keeps besides tensors and requests, as plain JSON."""
        return {}


@final
class DeltaChange(Change):
    """Deltas of weights, by site."""

    kind = "deltas"

    def __init__(
        self, deltas: Mapping[str, Delta], *, kept: Mapping[str, Tensor] | None = None
    ) -> None:
        self._deltas = dict(deltas)
        self.kept = dict(kept or {})
        """Tensors that later edits of the method must know, by name: rows (AlphaEdit: the keys of
        this edit), or a state that replaces the one before (LoRA: the adapter; `LATEST`).
        """

    @classmethod
    def of_tensors(cls, path: Path, tensors: Mapping[str, Tensor]) -> DeltaChange:
        """Return the change that gave these `tensors`; `path` is the file for errors. Raises
        DataError.
        """
        return cls(from_tensors(path, tensors), kept=kept_in(tensors))

    def added_to(self, vlm: Any, edit: Edit) -> Any:
        there = {site: moved(delta, vlm.device) for site, delta in self._deltas.items()}
        return vlm.with_deltas(there, edit=edit)

    @property
    def deltas(self) -> Mapping[str, Delta]:
        return self._deltas

    @property
    def is_separate(self) -> bool:
        return any(delta.edits is not None for delta in self._deltas.values())

    def tensors(self) -> dict[str, Tensor]:
        return as_tensors(self._deltas, self.kept)


def kept_of(edits: Sequence[Edit], name: str) -> list[Tensor]:
    """Return the tensors of this name that edits of weights keep for later ones, oldest first."""
    changes = [part.change for edit in edits for part in edit.parts]
    return [c.kept[name] for c in changes if isinstance(c, DeltaChange) and name in c.kept]


@final
class SeparateChange(Change):
    """A mark that a wrapper answers each row under an edit of its own, so none can be taken out."""

    kind = "separate"

    @property
    def is_separate(self) -> bool:
        return True

    def added_to(self, vlm: Any, edit: Edit) -> Any:
        raise EditError(f"the edit {edit.name!r} {MADE_APART}")


MADE_APART = (
    "was made by apply_each: every row of a batch is answered under an edit of its own. Make the "
    "edits one by one with editor.apply to keep them, or to take one out"
)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One question as it was answered before and after an edit, when the edit was made."""

    prompt: str
    target: str
    """The answer that the edit asks for; "" for an unrelated question."""
    before: str
    after: str
    has_image: bool = False
    answers: tuple[str, ...] = ()
    """Further answers that are right."""


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Edit:
    """One edit, or a stack of them (`parts`)."""

    name: str
    """Its name: `VLM.without(name)` takes it out."""
    method: str
    """Name of the method, as in `mmedit.methods.EDITORS`."""
    label: str
    """Name of the editor that made it, as in tables."""
    requests: tuple[Example, ...] = ()
    """The requests that were edited in together."""
    change: Change
    config: Mapping[str, Any] = field(default_factory=dict)
    """The editor's settings, as plain JSON."""
    seconds: float | None = None
    """Duration of making it, in seconds."""
    made: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    """Date and time of making it, in UTC."""
    on: tuple[str, ...] = ()
    """Names of the edits that the VLM held before."""
    seen: tuple[Seen, ...] = ()
    """Questions with their answers before and after, as far as they were asked."""
    vlm_name: str = ""
    """The name that its VLM was loaded by."""
    source: Any = None
    """The base model, or its `Identity` for an edit that was loaded; None: of any VLM."""
    of: tuple[Edit, ...] = ()
    """The edits of a stack, in order."""

    @property
    def parts(self) -> tuple[Edit, ...]:
        """The single edits in their order; of a single one, itself."""
        return self.of or (self,)

    @property
    def deltas(self) -> Mapping[str, Delta] | None:
        """The sum of its changes of weights, by site; None if a part is not one."""
        total: Mapping[str, Delta] = {}
        for part in self.parts:
            if (found := part.change.deltas) is None:
                return None
            total = compose_all(total, found)
        return total

    @property
    def identity(self) -> Identity | None:
        """The identity of its base model. Reads all weights once, unless the edit was loaded."""
        return self.source if isinstance(self.source, Identity | None) else self.source.identity

    def named(self, name: str) -> Edit:
        """Return the edit under another name. Raises EditError if it cannot be one."""
        require_name(name)
        return replace(self, name=name)

    def require_fits(self, vlm: Any) -> None:
        """Raise EditError, which says what differs, if this is an edit of another VLM."""
        source = self.source
        if source is None or getattr(source, "frozen", None) is vlm.frozen:
            return
        there: Identity = self.identity or vlm.identity
        if differs := vlm.identity.described(there):
            raise EditError(
                f"the edit {shortened(self.name)} was made on {differs}. Load that VLM"
                f"{f' ({self.vlm_name})' if self.vlm_name else ''}, or make the edit on this one"
            )

    def __repr__(self) -> str:
        count = len(self.requests)
        requests = "1 request" if count == 1 else f"{count} requests"
        parts = f", {len(self.of)} edits" if self.of else ""
        return f"<Edit {self.name!r} by {self.label}: {requests}{parts}>"


def require_name(name: object) -> None:
    """Raise EditError unless `name` can be the name of an edit: a short text without slashes,
    control characters and "+" (which joins the names of a stack).
    """
    if not (
        isinstance(name, str)
        and name.strip() == name != ""
        and len(name) <= 100
        and name.isprintable()
        and not set("/\\+") & set(name)
        and name not in (".", "..")
    ):
        raise EditError(
            f"{shortened(name)} cannot be the name of an edit; expected 1 to 100 printable "
            "characters without /, \\ and +"
        )


def stack(name: str, edits: Sequence[Edit]) -> Edit:
    """Return edits as one, which adds them in their order. One edit alone keeps what it says."""
    require_name(name)
    parts = tuple(part for edit in edits for part in edit.parts)
    if not parts:
        raise EditError("no edit was given; a stack needs at least one")
    if len(parts) == 1:
        return parts[0].named(name)
    labels = tuple(dict.fromkeys(part.label for part in parts))
    return Edit(
        name=name,
        method=STACK,
        label=" + ".join(labels),
        requests=tuple(request for part in parts for request in part.requests),
        change=DeltaChange({}),
        made=parts[-1].made,
        vlm_name=parts[0].vlm_name,
        source=parts[0].source,
        of=parts,
    )


def nameless(change: DeltaChange) -> Edit:
    """Return the edit that stands for deltas which no editor made, or whose editors are lost."""
    return Edit(name=NAMELESS, method=NAMELESS, label="deltas", change=change)


def separate(label: str, method: str, requests: Sequence[Example]) -> Edit:
    """Return the edit that stands for separate edits of a wrapper."""
    return Edit(
        name=method, method=method, label=label, requests=tuple(requests), change=SeparateChange()
    )


def merged(edits: Sequence[Edit], deltas: Mapping[str, Delta]) -> tuple[Edit, ...]:
    """Return one edit of `deltas` in place of all edits of weights, before the others. Neighbours
    among these become one where that saves memory (`Change.merged_with`).
    """
    weights = [edit for edit in edits if edit.change.deltas is not None]
    if len(weights) > 1:
        one = as_one(weights, DeltaChange(deltas, kept=all_kept(weights)))
        edits = (one, *(edit for edit in edits if edit.change.deltas is None))
    found: list[Edit] = []
    for edit in edits:
        both = found[-1].change.merged_with(edit.change) if found else None
        found.append(edit if both is None else as_one([found.pop(), edit], both))
    return named_apart(found)


def as_one(edits: Sequence[Edit], change: Change) -> Edit:
    """Return the edit that stands for several ones, which no longer exist apart."""
    return replace(
        edits[-1],
        name=MERGED,
        # joined as tuples: a loop over all requests so far would be felt in a long sequence
        requests=sum((edit.requests for edit in edits), ()),
        change=change,
        seconds=None,
        on=(),
        seen=(),
    )


def all_kept(edits: Sequence[Edit]) -> dict[str, Tensor]:
    """Return what edits keep for later ones by name: rows joined, of a state the newest."""
    changes = [edit.change for edit in edits if isinstance(edit.change, DeltaChange)]
    names = dict.fromkeys(name for change in changes for name in change.kept)
    found = {name: kept_of(edits, name) for name in names}
    return {
        name: rows[-1] if name.startswith(LATEST) else torch.cat([r.to(rows[0]) for r in rows])
        for name, rows in found.items()
    }


def with_own_name(edits: Sequence[Edit], edit: Edit) -> tuple[Edit, ...]:
    """Return the edits with one more. If its name is taken, it gets the next number: "ft-2"."""
    return (*edits, with_free_name({known.name for known in edits}, edit))


def named_apart(edits: Sequence[Edit]) -> tuple[Edit, ...]:
    """Return the edits with unique names: a later one with a taken name gets the next number."""
    named: list[Edit] = []
    taken: set[str] = set()
    for edit in edits:
        named.append(with_free_name(taken, edit))
        taken.add(named[-1].name)
    return tuple(named)


def with_free_name(taken: Set[str], edit: Edit) -> Edit:
    """Return the edit with a name that is not taken: its own one, or with the next number."""
    name, number = edit.name, 2
    while name in taken:
        name, number = f"{edit.name}-{number}", number + 1
    return edit if name == edit.name else replace(edit, name=name)


def moved(delta: Delta, device: torch.device) -> Delta:
    """Return a delta on a device; one that is there already stays as it is."""
    if isinstance(delta, Sum):
        return Sum(tuple(moved(part, device) for part in delta.parts))
    tensors = delta.tensors()
    if all(tensor.device == device for tensor in tensors.values()):
        return delta
    return delta.of_tensors({name: tensor.to(device) for name, tensor in tensors.items()})
