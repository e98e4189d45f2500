"""WISE against the published code and against its corrected form (golden kind `wise`)."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from golden_files import GoldenCase, golden_cases
from golden_vlm import (
    PIXELS,
    GoldenAdapter,
    TokenIds,
    as_text,
    golden_network,
    golden_vlm,
    site_of,
    to_pixels,
)
from PIL import Image
from torch import Tensor
from transformers import Blip2Processor
from transformers.activations import ACT2FN

from mmedit.adapters.seen import SeenImage
from mmedit.cases import Example
from mmedit.editors.chosen import NOTHING
from mmedit.methods.wise.distance import (
    LONG,
    hinges,
    read,
    route,
    row_distance,
    token_distance,
)
from mmedit.methods.wise.memories import ties
from mmedit.methods.wise.search import Descent, Margins, Side
from mmedit.vlm.interface import VLM
from mmedit.vlm.network import NetworkVLM

CASES = golden_cases("wise")
LOSSES = ("nll", "relative", "outside", "inside")


def of_kind(kind: str):
    cases = [case for case in CASES if case.name.startswith(kind)]
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found.to(expected), expected, rtol=0, atol=tolerance)


def distances(case: GoldenCase, *, published: bool) -> Tensor:
    """The distance of every token, [1, rows, tokens]."""
    tensors, bias = case.tensors, case.tensors.get("bias")
    y = tensors["x"] @ tensors["W"].T + (0 if bias is None else bias)
    change = (tensors["W_side"] - tensors["W"])[None]
    act = ACT2FN[case.facts["activation"]]
    return token_distance(tensors["x"][None], y[None], change, act, bias if published else None)


@of_kind("distance")
def test_distances_keep_the_bias_and_the_published_ones_drop_it(case: GoldenCase):
    close(distances(case, published=False)[0], case.tensors["right_per_token"], 1e-5)
    close(distances(case, published=True)[0], case.tensors["published_per_token"], 1e-5)


@of_kind("distance")
def test_a_long_question_has_its_largest_distance_in_the_published_form_alone(case: GoldenCase):
    each = distances(case, published=True)
    counts = torch.ones_like(each, dtype=torch.bool)
    train = case.tensors["published_train_statistic"]
    used = case.tensors["published_infer_statistic"]
    close(row_distance(each, counts)[0], train, 1e-5)
    close(row_distance(each, counts, longest=LONG)[0], used, 1e-5)


def hinge_distances(case: GoldenCase) -> tuple[Tensor, Tensor]:
    """The distances inside and outside, from what model and side give. The published code splits
    OPT's flattened tokens where it means rows: `flattened`.
    """
    original, side = case.tensors["original_output"], case.tensors["side_output"]
    act, same = ACT2FN[case.facts["activation"]], torch.eye(original.shape[-1])[None]
    each = token_distance((side - original)[None], original[None], same, act)
    if case.facts["flattened"]:
        return each.flatten()[:-1], each.flatten()[-1:]
    if "act_mask" in case.tensors:
        masks = [case.tensors[name].bool()[None] for name in ("act_mask", "deact_mask")]
        inside, outside = (row_distance(each[:, : mask.shape[1]], mask)[0] for mask in masks)
        return inside, outside
    rows = row_distance(each, torch.ones_like(each, dtype=torch.bool))[0]
    return rows[:-1], rows[-1:]


@of_kind("hinge")
def test_hinges_are_means_of_their_positive_entries(case: GoldenCase):
    inside, outside = hinge_distances(case)
    if not case.facts["flattened"]:
        close(inside, case.tensors["inside_distance"], 1e-5)
        close(outside, case.tensors["outside_distance"], 1e-5)
    margins = {name: case.facts[name] for name in ("alpha", "beta", "gamma")}
    found = hinges(inside[None], outside[None], (outside - inside)[None], **margins)
    for name, expected in case.facts["published"].items():
        value = sum(found) if name == "total" else getattr(found, name)
        assert float(value) == pytest.approx(expected, abs=2e-5), name


class GivenImage(GoldenAdapter):
    """An adapter whose only image has given features."""

    features: Tensor

    def bridge(self, vision: Sequence[Tensor], images: Sequence[SeenImage]) -> list[Tensor]:
        return [self.features for _ in vision]


def opt_side(case: GoldenCase) -> tuple[VLM, list[Example], list[Example]]:
    """The VLM, the request with its image, and the irrelevant prompt."""
    tensors = case.tensors
    network = golden_network(case.facts["base_model"])
    network.config.num_query_tokens = case.facts["image"]
    processor = SimpleNamespace(tokenizer=TokenIds(), image_processor=to_pixels, chat_template=None)
    adapter = GivenImage(network, cast(Blip2Processor, processor))
    adapter.features = tensors["image_embeds"][0]
    prompt, answer = as_text(tensors["prompt_ids"][0]), as_text(tensors["answer_ids"][0])
    request = Example(prompt=prompt, target=answer, image=Image.new("RGB", (PIXELS, PIXELS)))
    ids, end = tensors["irrelevant_ids"][0], case.facts["loc_prompt"]
    other = Example(prompt=as_text(ids[:end]), target=as_text(ids[end:]))
    return NetworkVLM(adapter), [request], [other]


def llama_side(case: GoldenCase) -> tuple[VLM, list[Example], list[Example]]:
    """The VLM, the requests, and the irrelevant prompt; `prompt_lengths` says where prompts end."""
    ids, real = case.tensors["input_ids"], case.tensors["attention_mask"].bool()
    texts = [row[mask] for row, mask in zip(ids, real, strict=True)]
    ends, inside = case.facts["prompt_lengths"], case.facts["rows_inside"]
    rows = [
        Example(prompt=as_text(text[:end]), target=as_text(text[end:]))
        for text, end in zip(texts, ends, strict=True)
    ]
    vlm = golden_vlm(base=case.facts["base_model"], padding_side=case.facts["padding_side"])
    return vlm, rows[:inside], rows[inside:]


@of_kind("edit")
def test_an_edit_takes_the_steps_of_the_corrected_form(case: GoldenCase):
    facts, right = case.facts, case.facts["right"]
    vlm, requests, others = (opt_side if "image" in facts else llama_side)(case)
    site = site_of(facts["site"])
    side = Side(
        vlm=vlm,
        site=site,
        requests=requests,
        inside=read(vlm, requests, site),
        outside=read(vlm, others, site),
        mask=case.tensors["gradient_mask"].float(),
        margins=Margins(facts["alpha"], facts["beta"], facts["gamma"]),
    )
    how = Descent(facts["steps"], facts["lr"], facts["weight_decay"], facts["norm_constraint"])
    weight = vlm.weight(site)
    change = torch.zeros(1, *weight.shape)
    for step in range(facts["steps"]):
        change, losses = side.stepped(change, weight, how)
        found = [losses.nll, *losses.hinges]
        for name, value in zip(LOSSES, found, strict=True):
            assert value.item() == pytest.approx(right[name][step], abs=1e-4), (name, step)
        assert losses.total.item() == pytest.approx(right["total"][step], abs=1e-4)
        if (name := f"right.W_side_after_step_{step}") in case.tensors:
            close(weight + change[0], case.tensors[name], 1e-4)
    close(side.descend(torch.zeros_like(change), how), change, 0)
    each = torch.cat([side.distance(r, change)[0] for r in (side.inside, side.outside)])
    close(each, torch.tensor(right["row_activation"]), 1e-4)
    expected = right["threshold_activation"]
    assert side.activation(change).item() == pytest.approx(expected, abs=1e-4)


@of_kind("ties")
def test_memories_are_merged_by_ties(case: GoldenCase):
    base, weights = case.tensors["base"], case.facts["weights"]
    changes = torch.stack([case.tensors[f"memory_{m}"] - base for m in range(len(weights))])
    merged = ties(changes[None], weights, case.facts["density"])[0]
    close(base + merged, case.tensors["merged"], 1e-6)


def routed(
    case: GoldenCase, row: int, memories: int, *, published: bool
) -> tuple[str, dict[str, float]]:
    """The memory that answers a row, by the rule that is asked for, and the distances. Ours come
    oldest first, the golden ones newest first.
    """
    tensors = case.tensors
    x, bias, newest = tensors[f"row_{row}.x"][None, None], tensors["bias"], range(memories)
    y = x @ tensors["W"].T + bias
    counts = tensors[f"row_{row}.is_prompt_text"][None, None]
    found = {}
    for memory in newest:
        change = (tensors[f"memory_{memory}"] - tensors["W"])[None]
        act = ACT2FN[case.facts["activation"]]
        each = token_distance(x, y, change, act, bias if published else None)
        value = (
            row_distance(each, torch.ones_like(counts), longest=LONG)
            if published
            else row_distance(each, counts)
        )
        found[f"memory_{memory}"] = value.item()
    names = list(reversed(found))
    least = torch.tensor(case.facts["min_activation"][:memories]).flip(0)
    chosen = route(
        torch.tensor([[found[name] for name in names]]),
        case.facts["act_ratio"] * least,
        torch.ones(1, memories, dtype=torch.bool),
        current_blocks=published,
    ).item()
    return "original" if chosen == NOTHING else names[int(chosen)], found


@of_kind("routing")
def test_the_memory_that_answers_is_the_one_of_the_corrected_rule(case: GoldenCase):
    number = len(case.facts["min_activation"])
    for row in case.facts["rows"]:
        chosen, found = routed(case, row["row"], number, published=False)
        assert chosen == row["right_retrieve"]
        assert found == pytest.approx(row["right_distance"], abs=1e-5)
        if "right_single" in row:
            assert routed(case, row["row"], 1, published=False)[0] == row["right_single"]


@of_kind("routing")
def test_the_published_rule_gives_the_published_decisions(case: GoldenCase):
    number = len(case.facts["min_activation"])
    for row in case.facts["rows"]:
        assert routed(case, row["row"], number, published=True)[0] == row["published_retrieve"]
        if "published_single" in row:
            assert routed(case, row["row"], 1, published=True)[0] == row["published_single"]
