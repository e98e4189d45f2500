"""The edits of one browser tab. A session is a value: an action returns another one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from mmedit.cases import EditCase, Example
from mmedit.errors import EditError

if TYPE_CHECKING:
    from mmedit.vlm.edit import Edit
    from mmedit.vlm.interface import VLM

LONGEST_LABEL = 90
"""Most characters of an edit in the list."""


@dataclass(frozen=True, eq=False)
class Session:
    """The edits that were made or loaded in one tab, and those that are taken out."""

    base: VLM
    edits: tuple[Edit, ...] = ()
    """All edits of the tab in order, also those that are taken out."""
    taken_out: frozenset[str] = frozenset()
    """Names of the edits that the edited model does not hold at present."""
    case: EditCase | None = None
    """The case whose probes the page shows."""
    asked: Example | None = None
    """The question whose answers the page shows."""

    @cached_property
    def vlm(self) -> VLM:
        """The edited model: the base model with every edit that is not taken out, in order."""
        vlm = self.base
        for edit in self.held:
            vlm = vlm.with_edit(edit)
        return vlm

    @property
    def held(self) -> tuple[Edit, ...]:
        """The edits that the edited model holds, in order."""
        return tuple(edit for edit in self.edits if edit.name not in self.taken_out)

    def next_name(self, stem: str = "edit") -> str:
        """Return a name that no edit of the session has: the stem and a number.

        >>> Session(base=None).next_name()
        'edit-1'
        """
        taken = {edit.name for edit in self.edits}
        numbers = range(1, len(taken) + 2)
        return next(name for n in numbers if (name := f"{stem}-{n}") not in taken)

    def asking(self, example: Example) -> Session:
        """Return the session whose page shows the answers to this question."""
        return replace(self, asked=example)

    def adding(self, edits: Sequence[Edit], *, case: EditCase | None = None) -> Session:
        """Return the session with further edits, and with the case whose probes are to be shown.

        An edit whose name is taken gets another name. Raises EditError if an edit belongs to
        another VLM.
        """
        session = self
        for edit in edits:
            names = {one.name for one in session.edits}
            fresh = edit.name and edit.name not in names
            named = edit if fresh else edit.named(session.next_name(edit.name or "edit"))
            session = replace(session, edits=(*session.edits, named))
        if case is not None:
            session = replace(session, case=case, asked=case.request)
        _ = session.vlm  # an edit that does not fit is refused now, not when the page is shown
        return session

    def holding(self, names: Collection[str]) -> Session:
        """Return the session whose edited model holds the edits with these names alone."""
        unknown = set(names) - {edit.name for edit in self.edits}
        if unknown:
            raise EditError(
                f"this tab has no edit named {min(unknown)!r}; the page was loaded anew, or the "
                "server was restarted: load the page again"
            )
        out = frozenset(edit.name for edit in self.edits if edit.name not in names)
        return replace(self, taken_out=out)

    def undone(self) -> Session:
        """Return the session with its last held edit taken out. Raises EditError without one."""
        if not self.held:
            raise EditError("the edited model holds no edit, so nothing can be undone")
        return replace(self, taken_out=self.taken_out | {self.held[-1].name})


def label_of(edit: Edit) -> str:
    """Return an edit as one line of the list: its name, its method, its first fact."""
    if not edit.requests:
        return f"{edit.name} ({edit.label})"
    first = edit.requests[0]
    further = f" and {len(edit.requests) - 1} more" if len(edit.requests) > 1 else ""
    text = f"{edit.name} ({edit.label}): {first.prompt} → {first.target}"
    if len(text) > LONGEST_LABEL:
        text = f"{text[: LONGEST_LABEL - 1]}…"
    return text + further
