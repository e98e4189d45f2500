"""UltraEdit's normaliser and closed form against the published code (golden kind `ultraedit`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from golden_files import GoldenCase, golden_cases, golden_files, read_golden_json, under
from torch import Tensor

from mmedit.editors.closed_form.normaliser import Normaliser
from mmedit.editors.closed_form.solves import ultraedit_delta
from mmedit.errors import EditError

CASES = golden_cases("ultraedit")
SITES: dict[str, dict[str, int]] = read_golden_json(golden_files("ultraedit/cases.json")[0])[
    "sites"
]
KEYS = {site: "shape_{in}_{out}".format(**shape) for site, shape in SITES.items()}
of_every_case = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


@dataclass(frozen=True)
class Turn:
    """The golden tensors of one turn, and the statistics after it by shape, right and published."""

    facts: dict[str, Any]
    tensors: dict[str, Tensor]
    right: dict[str, Normaliser]
    published: dict[str, Normaliser]

    def delta(self, site: str, normaliser: Normaliser, lr: float, *, lost: int = 0) -> Tensor:
        """The shift in float64, with the gradients of the last `lost` tokens replaced by zeros."""
        h, g = (self.tensors[f"{site}.{name}"].double() for name in "hg")
        g = torch.cat([g[: len(g) - lost], torch.zeros_like(g[len(g) - lost :])])
        return ultraedit_delta(h, g, normaliser, lr).weight()

    @property
    def lost(self) -> int:
        """Number of tokens whose gradients the published code does not read."""
        read = self.facts["gradient_files_read_by_the_published_code"]
        return sum(self.facts["tokens_per_mini_batch"][read:])


def turns(case: GoldenCase) -> Iterator[Turn]:
    """Statistics go on from turn to turn: mini-batch by mini-batch, site by site."""
    right = {KEYS[site]: Normaliser.empty(sum(shape.values())) for site, shape in SITES.items()}
    published = dict(right)
    for number, facts in enumerate(case.facts["turns"]):
        tensors = under(f"turn_{number}", case.tensors)
        sizes = facts["tokens_per_mini_batch"]
        blocks = {
            site: torch.cat([tensors[f"{site}.h"], tensors[f"{site}.g"]], dim=-1).split(sizes)
            for site in SITES
        }
        for batch in range(len(sizes)):
            for site, key in KEYS.items():
                z = blocks[site][batch]
                right = {**right, key: right[key].with_rows(z)}
                published = {**published, key: published_with_rows(published[key], z)}
        yield Turn(facts, tensors, right, published)


def published_with_rows(statistics: Normaliser, z: Tensor) -> Normaliser:
    """The published fault: a block of m tokens adds m, not m - 1, times its unbiased variance."""
    if len(z) == 1:
        return replace(statistics.with_rows(z), squares=torch.full_like(statistics.mean, torch.nan))
    merged = statistics.with_rows(z)
    return replace(merged, squares=merged.squares + z.double().var(0))


def assert_relative(found: Tensor, expected: Tensor, tolerance: float) -> None:
    atol = tolerance * expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


@of_every_case
def test_statistics_are_exact(case: GoldenCase):
    for turn in turns(case):
        for key, found in turn.right.items():
            expected = under(f"right.{key}", turn.tensors)
            assert_relative(found.mean, expected["mean_float64"], 1e-9)
            assert_relative(found.squares, expected["squares_float64"], 1e-9)
            assert_relative(found.std, expected["std_float64"], 1e-9)


@of_every_case
def test_statistics_differ_from_the_published_ones_by_its_fault_alone(case: GoldenCase):
    for turn in turns(case):
        for key, found in turn.published.items():
            expected = under(f"published.{key}", turn.tensors)
            assert found.count == expected["n"].item() == turn.right[key].count
            assert_relative(turn.right[key].mean.float(), expected["mean"], 1e-5)
            if expected["std"].isnan().all():
                assert found.std.isnan().all()
                assert turn.right[key].std.isfinite().all()
            else:
                assert_relative(found.squares.float(), expected["var"], 1e-5)
                assert_relative(found.std.float(), expected["std"], 1e-5)


@of_every_case
def test_ultraedit_in_float64_is_the_formula(case: GoldenCase):
    for turn in turns(case):
        for site, key in KEYS.items():
            found = turn.delta(site, turn.right[key], case.facts["lr"])
            assert_relative(found, turn.tensors[f"{site}.right_shift_float64"], 1e-9)


@of_every_case
def test_ultraedit_has_the_published_shifts_under_the_published_statistics(case: GoldenCase):
    """`port_shift` loses no gradient; `published_shift` loses those of a last, smaller batch."""
    for turn in turns(case):
        for site, key in KEYS.items():
            for name, lost in (("port_shift", 0), ("published_shift", turn.lost)):
                expected = turn.tensors[f"{site}.{name}"]
                if expected.isnan().all():
                    with pytest.raises(EditError, match="not finite"):
                        turn.delta(site, turn.published[key], case.facts["lr"], lost=lost)
                else:
                    found = turn.delta(site, turn.published[key], case.facts["lr"], lost=lost)
                    assert_relative(found.float(), expected, 2e-5)


@of_every_case
def test_ultraedit_in_float32_is_finite(case: GoldenCase):
    for turn in turns(case):
        for site, key in KEYS.items():
            h, g = turn.tensors[f"{site}.h"], turn.tensors[f"{site}.g"]
            delta = ultraedit_delta(h, g, turn.right[key], case.facts["lr"])
            assert delta.u.dtype == torch.float32
            assert_relative(
                delta.weight().double(), turn.tensors[f"{site}.right_shift_float64"], 2e-5
            )
