from __future__ import annotations

from pathlib import Path

from tiny import random_image

from mmedit.cases import EditCase, Example, Probe


def test_repr_of_an_example_names_its_image_in_a_few_words():
    example = Example(prompt="which color?", target="red", image=Path("pictures/a/7.png"))
    assert repr(example) == "Example('which color?' -> 'red', image 7.png)"
    in_memory = Example(prompt="which color?", target="red", image=random_image(0), context="New")
    assert repr(in_memory) == (
        "Example('which color?' -> 'red', image of 40 x 30 pixels, context of 3 characters)"
    )
    assert repr(Example(prompt="a", target="b")) == "Example('a' -> 'b')"


def test_repr_of_a_case_counts_its_probes():
    request = Example(prompt="which color?", target="red")
    case = EditCase(id="7", request=request, probes={Probe.TEXT_LOCALITY: (request, request)})
    assert repr(case) == (
        "EditCase('7', Example('which color?' -> 'red'), probes: reliability 1, text_locality 2)"
    )
