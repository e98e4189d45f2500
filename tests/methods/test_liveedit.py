"""What LiveEdit does beside the published code; how it compares with that: test_liveedit_golden."""

from __future__ import annotations

import torch

from mmedit.cases import Example
from mmedit.methods.liveedit import about_same_image
from mmedit.methods.liveedit.config import LiveEditConfig
from mmedit.methods.liveedit.routing import apart_loss

APART = torch.eye(2, dtype=torch.bool)
"""Two edits about two images."""


def test_images_of_other_edits_are_to_be_farther_than_the_learnt_image():
    near, far, learnt = 4.0, -3.0, 1.0
    found = torch.tensor([[near, far, learnt], [near, near, learnt]])
    told = torch.tensor([[far, learnt], [near, learnt]])  # without the edit's own image
    expected = -told.softmax(1)[:, 1].log().mean()
    torch.testing.assert_close(apart_loss(found, APART), expected)


def test_an_edits_own_image_may_be_as_near_as_it_is():
    found = torch.tensor([[2.0, -1.0, 0.5], [-1.0, 2.0, 0.5]], requires_grad=True)
    apart_loss(found, APART).backward()
    assert found.grad is not None
    assert found.grad.diagonal().tolist() == [0, 0]
    assert found.grad[0, 1] > 0 > found.grad[0, 2]


def test_two_edits_of_one_image_are_not_kept_apart():
    first, other = (Example(prompt="what?", target="x", image=f"{name}.png") for name in "ab")
    same = about_same_image([first, other, first])
    assert same.tolist() == [[True, False, True], [False, True, False], [True, False, True]]
    found = torch.zeros(3, 4, requires_grad=True)
    apart_loss(found, same).backward()
    assert found.grad is not None
    assert (found.grad[:, :3] != 0).tolist() == (~same).tolist()


def test_the_published_losses_alone_are_the_default():
    assert LiveEditConfig().routing_weights["hard_apart"] == 0
    weights = LiveEditConfig(c_soft=2, c_hard=3, c_apart=4).routing_weights
    assert weights == {
        "soft_relative": 2,
        "soft_absolute": 2,
        "hard_neighbour": 3,
        "hard_prototype": 3,
        "hard_apart": 4,
    }
