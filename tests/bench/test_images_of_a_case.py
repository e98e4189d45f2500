"""The images of a case go through the frozen stages together, however its probes are batched."""

from __future__ import annotations

import tiny

from mmedit.bench.protocol import NoEdit, evaluate
from mmedit.cases import EditCase, Example, Probe
from mmedit.vlm.frozen import GROUP
from mmedit.vlm.network import NetworkVLM


def test_one_example_at_a_time_costs_one_group_of_images_per_case(tiny_vlm: NetworkVLM):
    request, other, elsewhere = (
        Example(prompt="a photo of", target="blue", image=image) for image in tiny.IMAGES
    )
    probes = {Probe.IMAGE_GENERALITY: (other,), Probe.IMAGE_LOCALITY: (elsewhere,)}
    case = EditCase(id="first", request=request, probes=probes)
    sizes: list[int] = []
    vision = tiny_vlm.adapter.network.vision_model
    hook = vision.register_forward_hook(lambda _, inputs, output: sizes.append(len(output[0])))
    list(evaluate(tiny_vlm, NoEdit(), [case], batch_size=1))
    hook.remove()
    assert tiny_vlm.features.misses == len(tiny.IMAGES)
    assert sizes == [GROUP]
