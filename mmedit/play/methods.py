"""The editing methods that the page offers: those that need no training, and fitted editors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmedit.config import load_editor
from mmedit.editors.base import Editor
from mmedit.editors.saved import DESCRIPTION, read_description
from mmedit.errors import EditorError, MmeditError, UnknownNameError
from mmedit.settings import Overrides
from mmedit.vlm.interface import VLM

READY: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "ft": ("FT-M: fine-tuning on the new answer", {}),
    "ft-l": ("FT-L: fine-tuning, the baseline of ROME", {}),
    "ike": ("IKE: the new fact as text before the question", {"k": 0}),
}
"""Methods that need no training, each with its title and the settings that make it so."""
LEARNING: Mapping[str, str] = {"mend": "MEND", "ke": "KE", "serac": "SERAC"}
"""Methods that must be fitted first."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """One choice of the list of methods."""

    title: str
    """Text in the list."""
    name: str
    """The name of an editor, or the folder of a fitted one."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    advice: str = ""
    """Reason why the method cannot edit yet, and what to do; "" if it can."""

    def editor(self, vlm: VLM) -> Editor[Any]:
        """Return the editor. Raises EditorError if it must be fitted first."""
        if self.advice:
            raise EditorError(self.advice)
        return load_editor(self.name, vlm, **self.settings)


def list_methods(
    vlm: str, *, editors_dir: Path, given: Sequence[str] = (), overrides: Overrides | None = None
) -> tuple[Method, ...]:
    """Return the methods that can edit, then those that must be fitted first.

    `given` are fitted editors by folder or hub id. The folders in `editors_dir` are looked through
    for further ones; only their descriptions are read.
    """
    settings = overrides or Overrides()
    ready = [
        Method(title=title, name=name, settings={**fixed, **settings.of(name)})
        for name, (title, fixed) in READY.items()
    ]
    fitted = [*map(_given, given), *_found(editors_dir)]
    learnt = {method for _, method in fitted}
    missing = [
        Method(title=f"{label}: must be fitted first", name=name, advice=_advice(name, label, vlm))
        for name, label in LEARNING.items()
        if name not in learnt
    ]
    return (*ready, *(method for method, _ in _distinct(fitted)), *missing)


def method_named(title: object, methods: Sequence[Method]) -> Method:
    """Return the method with this title. Raises UnknownNameError."""
    for method in methods:
        if method.title == title:
            return method
    raise UnknownNameError("method", str(title), [method.title for method in methods])


def _given(name: str) -> tuple[Method, str]:
    """Return an editor that the user named, and the name of its method."""
    path = Path(name).expanduser()
    kind = read_description(path).method if path.is_dir() else ""
    title = f"{LEARNING.get(kind, kind.upper())}: fitted ({name})" if kind else f"fitted: {name}"
    return Method(title=title, name=name), kind


def _found(directory: Path) -> Iterator[tuple[Method, str]]:
    """Yield the fitted editors in the folders of a folder; one that is damaged is left out."""
    if not directory.is_dir():
        return
    for folder in sorted(directory.iterdir()):
        if not (folder / DESCRIPTION).is_file():
            continue
        try:
            yield _given(str(folder))
        except MmeditError:
            continue


def _distinct(fitted: Sequence[tuple[Method, str]]) -> list[tuple[Method, str]]:
    return list({method.name: (method, kind) for method, kind in fitted}.values())


def _advice(name: str, label: str, vlm: str) -> str:
    return (
        f"{label} learns to edit before it edits, and no fitted {label} was found. Fit it once, "
        f"then it is in this list: mmedit fit --editor {name} --vlm {vlm} --out editors/{name}"
    )
