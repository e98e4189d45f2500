"""Pieces of work on the cores that torch leaves free."""

import threading

import pytest
import tiny
import torch

from mmedit.cases import Example
from mmedit.vlm import pieces
from mmedit.vlm.loading import load_vlm
from mmedit.vlm.pieces import pieces_at_once, run_all, use_one_thread


@pytest.fixture
def two_cores(monkeypatch):
    """A machine with two cores, whose user has said nothing of threads."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(pieces.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("two_cores")
def test_a_second_piece_runs_only_where_torch_leaves_a_core_free():
    assert pieces_at_once() == 1
    use_one_thread()
    assert torch.get_num_threads() == 1
    assert pieces_at_once() == 2


@pytest.mark.usefixtures("two_cores")
def test_the_threads_that_the_user_has_chosen_stay(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    use_one_thread()
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    assert pieces_at_once() == 1


@pytest.mark.usefixtures("two_cores")
def test_results_are_in_the_order_of_the_pieces_and_two_run_at_once():
    use_one_thread()
    both = threading.Barrier(2, timeout=60)

    def run(piece: int) -> tuple[int, bool]:
        both.wait()
        return piece, torch.is_grad_enabled()

    with torch.no_grad():
        assert run_all(run, range(6)) == [(piece, False) for piece in range(6)]


@pytest.mark.usefixtures("two_cores")
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_is_that_of_the_first_piece_that_fails_and_later_ones_do_not_begin(error):
    use_one_thread()
    begun = []

    def run(piece: int) -> int:
        begun.append(piece)
        if piece >= 3:
            raise error(piece)
        return piece

    with pytest.raises(error, match="3"):
        run_all(run, range(1000))
    assert len(begun) < 1000


@pytest.mark.usefixtures("two_cores")
def test_images_have_the_same_features_bit_for_bit_when_groups_run_at_once(tiny_folder):
    use_one_thread()
    images = [tiny.random_image(seed) for seed in range(11)]
    examples = [Example(prompt="what", target="blue", image=image) for image in images]
    at_once = load_vlm(tiny_folder).frozen.image_features(examples)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces.os, "cpu_count", lambda: 1)
        one_by_one = load_vlm(tiny_folder).frozen.image_features(examples)
    for found, expected in zip(at_once, one_by_one, strict=True):
        assert found is not None
        assert expected is not None
        assert torch.equal(found, expected)
