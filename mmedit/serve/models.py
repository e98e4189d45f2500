"""The models that a server offers: the base model, and every edit or stack by its name."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import final

from mmedit.edits.routing import is_routable, routed
from mmedit.serve.refusals import Refusal, unknown_model
from mmedit.vlm.edit import Edit
from mmedit.vlm.interface import VLM


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Model:
    """One name that clients may ask, and the edits behind it."""

    name: str
    base: VLM
    created: int
    """Time of its making, in seconds since 1970."""
    edit: Edit | None = None
    """The edit or stack; None for the base model."""
    folder: Path | None = None
    """Folder of an edit that clients may delete; None for all others."""

    @property
    def parts(self) -> tuple[Edit, ...]:
        """The single edits, in order."""
        return self.edit.parts if self.edit else ()

    @cached_property
    def is_routable(self) -> bool:
        """Whether its questions can be answered in one batch with those of other edits."""
        return is_routable(self.parts)

    @cached_property
    def wrapped(self) -> VLM:
        """The VLM of an edit that cannot be routed. Edits of weights are kept once, by `routed`."""
        return self.edited()

    def edited(self) -> VLM:
        """Return the base model with its edits. Raises EditError if they are of another VLM."""
        return self.base.with_edit(self.edit) if self.edit else self.base


def vlm_of(models: Sequence[Model]) -> VLM:
    """Return the VLM that answers row i under model i. Models that cannot be routed are alone."""
    if not models[0].is_routable:
        return models[0].wrapped
    return routed(models[0].base, [[model.edit] if model.edit else [] for model in models])


@final
class Models:
    """All models by name. Several threads read it, and edits are added while it is read."""

    def __init__(self, base: Model) -> None:
        self.base = base
        self._by_name = {base.name: base}
        self._reserved: set[str] = set()
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """Return all names, the base model's first."""
        with self._lock:
            return list(self._by_name)

    def all(self) -> list[Model]:
        """Return all models, the base model first."""
        with self._lock:
            return list(self._by_name.values())

    def get(self, name: str) -> Model:
        """Return a model by its name. Raises Refusal."""
        with self._lock:
            if (model := self._by_name.get(name)) is not None:
                return model
        raise unknown_model(name, self.names())

    def add(self, model: Model) -> None:
        """Offer a model from now on. Raises Refusal if its name is taken."""
        with self._lock:
            if model.name in self._by_name:
                raise _taken(model.name)
            self._by_name[model.name] = model

    @contextmanager
    def reserved(self, name: str) -> Iterator[None]:
        """Keep a name for a model that is being made. Raises Refusal if it is taken."""
        with self._lock:
            if name in self._by_name or name in self._reserved:
                raise _taken(name)
            self._reserved.add(name)
        try:
            yield
        finally:
            with self._lock:
                self._reserved.discard(name)

    def remove(self, name: str) -> None:
        """Offer a model no longer. Questions that are being answered are finished."""
        with self._lock:
            self._by_name.pop(name, None)


def _taken(name: str) -> Refusal:
    return Refusal(
        409,
        f"a model named {name!r} exists already; choose another name, or delete it first",
        code="name_taken",
        param="name",
    )
