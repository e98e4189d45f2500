"""Hold mmedit to its annotations, shapes included, while tests run (see conftest.py).

jaxtyping's own import hook checks the arguments of every call twice and binds them in between, and
prepares all functions when their module is imported: a third of the time of all tests. This one
checks them once, prepares a function when it is first called, and checks the first calls of a
function in each test: a test calls some of them ten thousand times.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from functools import wraps
from hashlib import sha256
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, get_type_hints

from beartype import BeartypeConf, beartype
from jaxtyping import jaxtyped

Function = Callable[..., Any]
CHECKER = beartype(conf=BeartypeConf(violation_type=TypeError))
VERSION = sha256(Path(__file__).read_bytes()).hexdigest()[:8]
"""Of this file: what it compiles changes with it."""
CHECKED_CALLS = 20
"""Calls of a function that are checked in each test."""
STAND_INS_ALLOWED = {"Blip2Family.__init__"}
"""Tests pass stand-ins of a processor to these."""


def install(packages: Sequence[str]) -> None:
    """Check what is called in these packages, which were not imported yet."""
    sys.meta_path.insert(0, _Finder(tuple(packages)))


def begin_test() -> None:
    """Check the first calls of every function again."""
    global _tests
    _tests += 1


_tests = 0


def check(made: Any) -> Any:
    """Return the function, or the dataclass, held to its annotations."""
    if isinstance(made, type):
        if is_dataclass(made) and "__init__" in vars(made):
            made.__init__ = _checked(made.__init__)
        return made
    return made if made.__qualname__ in STAND_INS_ALLOWED else _checked(made)


def _checked(function: Function) -> Function:
    prepared: Function | None = None
    test = calls = 0

    @wraps(function)
    def call(*given: Any, **named: Any) -> Any:
        nonlocal prepared, test, calls
        if test != _tests:
            test, calls = _tests, 0
        if calls == CHECKED_CALLS:
            return function(*given, **named)
        calls += 1
        if prepared is None:
            prepared = _prepared(function)
        with jaxtyped("context"):  # names of axes mean one size within a call
            return prepared(*given, **named)

    return call


def _prepared(function: Any) -> Function:
    if inspect.isgeneratorfunction(function):  # it runs after the context above
        return jaxtyped(function, typechecker=CHECKER)
    own = FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__,
        function.__closure__,
    )  # fmt: skip
    own.__kwdefaults__, own.__qualname__ = function.__kwdefaults__, function.__qualname__
    own.__module__ = function.__module__
    hints = function.__annotations__.items()
    own.__annotations__ = {name: _resolved(hint, function.__globals__) for name, hint in hints}
    return CHECKER(own)


def _resolved(hint: Any, names: dict[str, Any]) -> Any:
    """Return what an annotation says, with Any for names that only a type checker imports."""
    try:
        known = _Known(names)
        return get_type_hints(_Annotated(hint), names, known, include_extras=True)["it"]
    except (AttributeError, TypeError):  # a part of an unknown name, such as Unknown[int]
        return Any


class _Known(dict[str, Any]):
    """Names of a module and of Python, and Any for all others."""

    def __missing__(self, name: str) -> Any:
        return getattr(builtins, name, Any)


class _Annotated:
    def __init__(self, hint: Any) -> None:
        self.__annotations__ = {"it": hint}


class _Decorated(ast.NodeTransformer):
    """Puts `check` on the functions and classes of a module, inside their other decorators.

    Functions inside functions are left as they are: they are made anew in every call.
    """

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.decorator_list.append(_named(node))
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        node.decorator_list.insert(0, _named(node))
        self.generic_visit(node)
        return node


def _named(node: ast.stmt) -> ast.expr:
    name = ast.parse("__import__('typechecker').check", mode="eval").body
    for part in ast.walk(name):
        ast.copy_location(part, node)
    return name


class _Loader(SourceFileLoader):
    """Keeps compiled modules beside those that Python itself makes, under names of their own."""

    def source_to_code(self, data: Any, path: Any, *, _optimize: int = -1) -> CodeType:
        tree = _Decorated().visit(ast.parse(data, path))
        return compile(tree, path, "exec", dont_inherit=True, optimize=_optimize)

    def get_data(self, path: str) -> bytes:
        return super().get_data(_own(path))

    def set_data(self, path: str, data: bytes, *, _mode: int = 0o666) -> None:
        super().set_data(_own(path), data, _mode=_mode)


def _own(path: str) -> str:
    name = f"checked-{VERSION}.pyc"
    return path.removesuffix("pyc") + name if path.endswith(".pyc") else path


class _Finder(PathFinder):
    def __init__(self, packages: tuple[str, ...]) -> None:
        self.packages = packages

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if not any(name == one or name.startswith(f"{one}.") for one in self.packages):
            return None
        found = PathFinder.find_spec(name, path, target)
        if found is not None and isinstance(found.loader, SourceFileLoader):
            found.loader = _Loader(found.loader.name, found.loader.path)
        return found
