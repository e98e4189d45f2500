"""Docstrings and messages are plain sentences: words that made them riddles stay away."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "mmedit").rglob("*.py"))
RIDDLES = ("Of ", "Where ", "What ", "There ", "In words")
NOT_IMPERATIVE = (
    *("A ", "An ", "The ", "All ", "Every ", "Each ", "Some ", "One ", "Those ", "That ", "Which "),
    *("Whether ", "How ", "Why ", "With ", "From ", "By ", "At ", "To ", "If ", "As ", "For "),
)
MESSAGES = ("was wanted", "were wanted", "is none", "is no ")


def documented(tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            if text := ast.get_docstring(node):
                yield node, text
            for first, second in zip(node.body, node.body[1:], strict=False):
                if isinstance(first, ast.Assign | ast.AnnAssign):
                    match second:
                        case ast.Expr(ast.Constant(str(text))):
                            yield second, text


def is_attribute(node: ast.AST) -> bool:
    return not isinstance(node, ast.FunctionDef) or any(
        "property" in ast.unparse(decorator) for decorator in node.decorator_list
    )


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_docstrings_are_sentences_and_messages_are_plain(file: Path):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node, text in documented(tree):
        line = getattr(node, "lineno", 1)
        assert not text.startswith(RIDDLES), f"line {line}: {text[:60]!r}"
        if not is_attribute(node):
            assert not text.startswith(NOT_IMPERATIVE), f"line {line}: {text[:60]!r}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and node.exc is not None:
            message = ast.unparse(node.exc)
            assert not any(words in message for words in MESSAGES), f"line {node.lineno}: {message}"


def test_no_text_of_the_project_names_a_folder_beside_it():
    texts = [*FILES, *ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("notebooks/*.ipynb")]
    for file in texts:
        assert "../shared" not in file.read_text(encoding="utf-8"), file
