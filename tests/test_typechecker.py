"""The tests hold mmedit to its annotations: a wrong shape or type is a TypeError in every kind of
function, in a package that was imported under the hook.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch
import typechecker

MODULE = """
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from elsewhere import Unknown


def same(first: Float[Tensor, "rows"], second: Float[Tensor, "rows"]) -> Float[Tensor, "rows"]:
    return first[:1] if len(first) == 3 else second


def counted(number: int, other: Unknown) -> Iterator[int]:
    yield number


def all_of(them: Sequence[Unknown]) -> None: ...


@dataclass
class Held:
    number: int


class Some:
    def method(self, number: int) -> int:
        return number

    @property
    def wrong(self) -> int:
        return "text"

    @staticmethod
    def still(number: int) -> int:
        return number
"""


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    folder = tmp_path_factory.mktemp("checked")
    (Path(folder) / "held_to_it.py").write_text(MODULE)
    before = list(sys.meta_path)
    sys.path.insert(0, str(folder))
    typechecker.install(["held_to_it"])
    try:
        yield import_module("held_to_it")
    finally:
        sys.meta_path[:] = before
        sys.path.remove(str(folder))


@pytest.mark.parametrize(
    "call",
    [
        lambda module: module.same(torch.ones(2), torch.ones(4)),  # one name, two sizes
        lambda module: module.same(torch.ones(2, 2), torch.ones(2, 2)),
        lambda module: module.same(torch.ones(3), torch.ones(3)),  # what is returned
        lambda module: module.same(torch.ones(2).long(), torch.ones(2).long()),
        lambda module: list(module.counted("text", None)),
        lambda module: module.all_of(3),
        lambda module: module.Held("text"),
        lambda module: module.Some().method("text"),
        lambda module: module.Some().wrong,
        lambda module: module.Some.still("text"),
    ],
)
def test_what_does_not_fit_its_annotation_is_a_type_error(checked: ModuleType, call):
    with pytest.raises(TypeError):
        call(checked)


def test_the_first_calls_of_every_test_are_checked(checked: ModuleType):
    for _ in range(2):
        typechecker.begin_test()
        for _ in range(typechecker.CHECKED_CALLS):
            with pytest.raises(TypeError):
                checked.Some.still("text")
        assert checked.Some.still("text") == "text"


def test_what_fits_passes(checked: ModuleType):
    assert len(checked.same(torch.ones(2), torch.ones(2))) == 2
    assert list(checked.counted(3, "anything")) == [3]
    assert checked.Held(3).number == checked.Some().method(3) == checked.Some.still(3)
