"""The edited model of a tab as a transformers folder or a PEFT adapter, checked once written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmedit.cases import EditCase
from mmedit.errors import EditError, UnknownNameError
from mmedit.play.session import Session

if TYPE_CHECKING:
    from mmedit.export.check import Check
    from mmedit.export.report import Export

FORMS = {"transformers": "transformers folder", "peft": "PEFT LoRA adapter"}
"""The forms of an export, each with its title."""
LOCALITY_QUESTIONS = 20


def export(session: Session, cases: Sequence[EditCase], out: Path, form: object) -> Export:
    """Write the edited model of a session to a new folder, open it, and compare its answers.

    A transformers folder is opened beside the loaded network, so memory must hold two. Raises
    EditError, UnknownNameError, and what `mmedit.export` raises.
    """
    if form not in FORMS:
        raise UnknownNameError("form of an export", str(form), FORMS)
    if not session.held:
        raise EditError("The edited model holds no edit. Make an edit first, then export it.")
    from mmedit.export.adapter import export_peft
    from mmedit.export.check import locality_questions
    from mmedit.export.folder import export_transformers

    write = export_peft if form == "peft" else export_transformers
    return write(lambda: session.vlm, out, locality_questions(cases, LOCALITY_QUESTIONS))


def report(made: Export, path: Path) -> str:
    """Return what was written and what was seen when it was opened, as sentences."""
    checks = " ".join(map(_checked, made.checks))
    return f"Exported as a {FORMS[made.form]} to {path} ({_size(made.size)}). {checks}"


def _checked(check: Check) -> str:
    edit = "the edit is kept" if check.is_kept else f"{len(check.lost)} requests are lost"
    return (
        f"Opened in {check.opened_in}: {edit}, {len(check.changed)} of the other answers changed, "
        f"largest difference of a logit {check.largest_logit_difference:.1e}."
    )


def _size(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
