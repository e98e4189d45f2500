"""How a VLM is asked is read from its processor and its text format."""

from __future__ import annotations

import pytest

from mmedit.adapters.protocol import image_size


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({"size": {"height": 224, "width": 224}}, "224x224"),
        ({"size": {"shortest_edge": 336}, "do_center_crop": True, "crop_size": 336}, "336x336"),
        (
            {
                "size": {"shortest_edge": 300},
                "do_center_crop": True,
                "crop_size": {"height": 224, "width": 320},
            },
            "320x224",
        ),
        ({"size": {"shortest_edge": 336}}, "by the image's own size"),
        ({"size": {"height": None, "width": None, "longest_edge": 9}}, "by the image's own size"),
        ({}, "by the image's own size"),
    ],
)
def test_the_image_size_is_the_one_that_the_vlm_sees(settings, size):
    assert image_size(settings) == size


def test_the_embedded_vlm_is_asked_as_mmedit_asks_blip2(vlm):
    assert vlm.protocol == {
        "image_size": "64x64",
        "text": "{image}{prompt} {answer}",
        "bos": False,
    }
