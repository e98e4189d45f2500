"""Sizes of changes of weights."""

import pytest
import torch

from mmedit.deltas import Delta, Dense, LowRank, Sum
from mmedit.edits.site_changes import changes_of, frobenius


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


LOW = LowRank(random(3, 7, seed=0), random(3, 5, seed=1))
OTHER = LowRank(random(2, 7, seed=2), random(2, 5, seed=3))
FULL = Dense(random(7, 5, seed=4))


@pytest.mark.parametrize(
    "delta", [LOW, FULL, Sum((LOW, OTHER)), Sum((LOW, FULL)), Sum((FULL, LOW))]
)
def test_the_norm_is_that_of_the_whole_matrix(delta: Delta):
    assert frobenius(delta) == pytest.approx(float(delta.weight().norm()), rel=1e-6)


def test_the_norm_of_a_low_rank_change_never_makes_the_matrix(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(LowRank, "weight", lambda _: pytest.fail("made the matrix"))
    assert frobenius(Sum((LOW, OTHER))) > 0


def test_changes_that_cancel_have_no_norm():
    assert frobenius(Sum((LOW, LowRank(-LOW.u, LOW.v)))) == pytest.approx(0, abs=1e-6)


def test_every_site_is_described():
    low, full, both = changes_of({"a": LOW, "b": FULL, "c": Sum((LOW, FULL))})
    assert (low.site, low.kind, low.rank, low.parameters) == ("a", "low rank", 3, 36)
    assert (full.kind, full.rank, full.parameters) == ("dense", None, 35)
    assert (both.kind, both.rank) == ("sum", None)
