"""What LiveEdit does beside the published code; how it compares with that: test_liveedit_golden."""

from __future__ import annotations

import torch

from mmedit.methods.liveedit.config import LiveEditConfig
from mmedit.methods.liveedit.routing import apart_loss


def test_images_of_other_edits_are_to_be_farther_than_the_learnt_image():
    near, far, learnt = 4.0, -3.0, 1.0
    found = torch.tensor([[near, far, learnt], [near, near, learnt]])
    told = torch.tensor([[far, learnt], [near, learnt]])  # without the edit's own image
    expected = -told.softmax(1)[:, 1].log().mean()
    torch.testing.assert_close(apart_loss(found), expected)


def test_an_edits_own_image_may_be_as_near_as_it_is():
    found = torch.tensor([[2.0, -1.0, 0.5], [-1.0, 2.0, 0.5]], requires_grad=True)
    apart_loss(found).backward()
    assert found.grad is not None
    assert found.grad.diagonal().tolist() == [0, 0]
    assert found.grad[0, 1] > 0 > found.grad[0, 2]


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
