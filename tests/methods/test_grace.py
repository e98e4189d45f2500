"""GRACE beyond what every editor promises."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmedit.cases import EditCase, Example
from mmedit.datasets.easyvqa import cases as easyvqa
from mmedit.editors.codebook import Expand, nearest, placed, placed_each
from mmedit.editors.entries import Entries
from mmedit.editors.fitting import Fitting
from mmedit.editors.memory import MemoryVLM
from mmedit.errors import DataError, EditError, EditorError
from mmedit.methods.grace import GRACE, GRACEConfig
from mmedit.vlm.interface import VLM
from mmedit.vlm.network import NetworkVLM

ITALY, FRANCE = (
    Example(prompt=f"what is the capital of {country}?", target=city)
    for country, city in (("Italy", "Lusaka"), ("France", "Quito"))
)


@pytest.fixture(scope="module")
def train() -> list[EditCase]:
    return list(easyvqa.EasyVQA().load("train", limit=20))


@pytest.fixture(scope="module")
def grace(vlm: NetworkVLM, train: list[EditCase]) -> GRACE:
    return GRACE(GRACEConfig(layer=2, steps=5)).fit(vlm, Fitting(train))


def some_edits(number: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Edits whose keys are near each other, with one of two answers."""
    return {
        "key": torch.randn(number, 2, generator=generator),
        "value": torch.randn(number, 3, generator=generator),
        "label": torch.randint(2, (number, 1), generator=generator),
    }


def one(stored: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    return {name: tensor[row : row + 1] for name, tensor in stored.items()}


def memory(vlm: VLM) -> MemoryVLM:
    assert isinstance(vlm, MemoryVLM)
    return vlm


def seen(entries: Entries, row: int, rows: int) -> set[tuple[float, ...]]:
    """What one row sees, entry by entry, in any order."""
    names = ("key", "value", "radius", "label")
    columns = [entries[name].flatten(1) if entries[name].ndim > 1 else entries[name].unsqueeze(1)
               for name in names]  # fmt: skip
    table = torch.cat([column.double() for column in columns], 1)
    return {
        tuple(round(n, 5) for n in entry) for entry in table[entries.seen_by(rows)[row]].tolist()
    }


@pytest.mark.parametrize("expand", ["coverage", "moving_average"])
def test_separate_edits_are_placed_as_each_would_be_alone(expand: Expand):
    sizes = set()
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        book = Entries(tensors={})
        earlier, new = some_edits(4, generator), some_edits(6, generator)
        for row in range(4):
            book = placed(book, one(earlier, row), radius=0.4, expand=expand)
        each = placed_each(book, new, radius=0.4, expand=expand)
        for row in range(6):
            alone = placed(book, one(new, row), radius=0.4, expand=expand)
            assert seen(each, row, 6) == seen(alone, 0, 1)
            changed = len(seen(alone, 0, 1) - seen(book, 0, 1))
            sizes.add((len(alone) - len(book), changed))
    # a new entry; one that split another; one that was taken in
    assert sizes == {(1, 1), (1, 2), (0, 1)}


@pytest.mark.parametrize("expand", ["coverage", "moving_average"])
def test_separate_edits_follow_separate_edits(expand: Expand):
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        rounds = [some_edits(3, generator) for _ in range(4)]
        each = Entries(tensors={})
        alone = [Entries(tensors={}) for _ in range(3)]
        for new in rounds:
            each = placed_each(each, new, radius=0.5, expand=expand)
            for row in range(3):
                alone[row] = placed(alone[row], one(new, row), radius=0.5, expand=expand)
        for row in range(3):
            assert seen(each, row, 3) == seen(alone[row], 0, 1)


def test_an_edit_with_another_answer_inside_a_ball_halves_both_radii():
    keys = torch.tensor([[0.0, 0.0], [0.6, 0.0]])
    book = Entries(tensors={})
    for row in range(2):
        new = {
            "key": keys[row : row + 1],
            "value": torch.zeros(1, 1),
            "label": torch.tensor([[row]]),
        }
        book = placed(book, new, radius=1.0, expand="coverage")
    torch.testing.assert_close(book["radius"].float(), torch.tensor([0.3, 0.3]), rtol=0, atol=2e-5)
    between = nearest(keys, torch.tensor([[0.3, 0.0]]), book.seen_by(1))
    assert float(between.distance) > float(book["radius"][0])  # the balls do not touch


def test_the_radius_is_in_units_of_the_usual_distance(vlm, train, grace):
    book = memory(grace.apply(vlm, [ITALY])).entries
    assert float(book["radius"]) == pytest.approx(float(grace.learnt))
    wide = GRACE(GRACEConfig(layer=2, steps=5, epsilon=3.0)).fit(vlm, Fitting(train))
    book = memory(wide.apply(vlm, [ITALY])).entries
    assert float(book["radius"]) == pytest.approx(3 * float(grace.learnt))


def test_the_answer_asked_for_changes_no_decision(vlm, grace):
    edited = memory(grace.apply(vlm, [ITALY]))
    asked = [Example(prompt=ITALY.prompt, target=target) for target in ("x", "Santo Domingo")]
    for example in asked:
        assert edited.chosen([example]).keys() == {vlm.value_sites[2]}


@pytest.mark.parametrize("scale", [torch.tensor(-1.0), torch.tensor(0.0), torch.ones(2)])
def test_a_saved_editor_with_a_bad_scale_is_refused(grace, scale, tmp_path):
    grace.with_learnt(scale, grace.origin).save(tmp_path / "editor")
    with pytest.raises(EditorError, match="positive number"):
        GRACE.load(tmp_path / "editor")


def test_an_edit_of_all_rows_after_separate_ones_is_refused(vlm, grace):
    each = grace.apply_each(vlm, [ITALY, FRANCE])
    with pytest.raises(EditError, match="make it first"):
        grace.apply(each, [ITALY])


def test_a_fit_needs_two_different_prompts(vlm, train):
    for cases in (train[:1], [train[0]] * 2):
        with pytest.raises(DataError, match="at least 2 different"):
            GRACE(GRACEConfig(layer=2)).fit(vlm, Fitting(cases))
