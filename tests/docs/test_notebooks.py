"""The notebooks run from top to bottom, each with names of its own. They run in this process: a
kernel for each of them would import torch and transformers five times.
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
DISPLAYS = ("_repr_html_", "_repr_png_", "__repr__")
SMALLER = {
    "02_what_else_changed": {
        '"easyvqa", "test", limit=20': '"easyvqa", "test", limit=4',
        '"easyvqa-caption", "test", limit=20': '"easyvqa-caption", "test", limit=4',
    },
    "03_compare_editors": {
        '"steps": 20': '"steps": 3', "limit=100": "limit=20", "limit=16": "limit=8",
    },
    "04_sequential": {"limit=20": "limit=12"},
    "06_where_is_it_stored": {
        "limit=200": "limit=40",
        'layers=[layer], tokens="text"': 'layers=[layer], tokens="text", value={"steps": 2}',
        '"alphaedit", vlm, tokens="text"': '"alphaedit", vlm, tokens="text", value={"steps": 2}',
    },
}  # fmt: skip
"""Numbers of cases and steps, and those that the test runs with: the same lines run."""

every_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)


def cells(notebook: Path, kind: str) -> list[str]:
    read = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in read if cell["cell_type"] == kind]


def run(cell: str, names: dict[str, object]) -> object:
    """Run a cell and return the value of its last line, if that is an expression."""
    parsed = ast.parse(cell)
    last = parsed.body[-1]
    if not isinstance(last, ast.Expr):
        exec(compile(parsed, "cell", "exec"), names)
        return None
    exec(compile(ast.Module(parsed.body[:-1], []), "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names)


def show(value: object) -> None:
    """Make what a notebook shows of a value."""
    for name in DISPLAYS:
        if method := getattr(type(value), name, None):
            method(value)


@every_notebook
def test_a_notebook_runs(notebook: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    module = ModuleType("notebook")  # classes look for the module that they are defined in
    monkeypatch.setitem(sys.modules, "notebook", module)
    code = cells(notebook, "code")
    for written, smaller in SMALLER.get(notebook.stem, {}).items():
        assert sum(cell.count(written) for cell in code) == 1, written
        code = [cell.replace(written, smaller) for cell in code]
    for cell in code:
        show(run(cell, vars(module)))


@every_notebook
def test_a_notebook_shells_out_to_nothing(notebook: Path):
    for cell in cells(notebook, "code"):
        assert not [line for line in cell.splitlines() if line.lstrip().startswith(("!", "%"))]


@every_notebook
def test_the_text_of_a_notebook_has_real_line_breaks(notebook: Path):
    assert not [cell for cell in cells(notebook, "markdown") if r"\n" in cell]


def test_notebooks_are_saved_with_what_they_show():
    assert len(NOTEBOOKS) >= 5
    for notebook in NOTEBOOKS:
        read = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        assert any(cell["outputs"] for cell in read if cell["cell_type"] == "code"), notebook.name
        kinds = [output["output_type"] for cell in read for output in cell.get("outputs", ())]
        assert "error" not in kinds, notebook.name
