"""On a tiny random BLIP-2: deltas, captured gradients, and the number of computations."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from closeness import assert_close, moved
from tiny import (
    IMAGES,
    MIXED,
    SEEN,
    TEXT_ONLY,
    adapter_of,
    assert_identical,
    assert_same,
    of_text,
    random_image,
)
from torch import Tensor, nn

from mmedit.adapters.base import Stage
from mmedit.adapters.blip2 import Blip2Adapter
from mmedit.cache import TensorCache
from mmedit.cases import Example
from mmedit.deltas import LowRank, linear_at
from mmedit.errors import SiteError
from mmedit.metrics.multiclass_log_probs import answer_nll
from mmedit.vlm.frozen import GROUP
from mmedit.vlm.interface import VLM
from mmedit.vlm.loading import load_vlm
from mmedit.vlm.network import NetworkVLM
from mmedit.vlm.outputs import Captured, Predictions

every_stage = pytest.mark.parametrize("where", ["language", "bridge", "vision"])


# deltas


def low_rank(vlm: VLM, sites: Sequence[str], *, edits: int | None = None, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    lead = () if edits is None else (edits,)
    return {
        site: LowRank(
            *(torch.randn(*lead, 2, n, generator=generator) * 0.3 for n in vlm.shape(site))
        )
        for site in sites
    }


@every_stage
def test_deltas_anywhere_change_the_answers_to_images(tiny_vlm: NetworkVLM, where: Stage):
    before = tiny_vlm.predict(SEEN)
    after = tiny_vlm.with_deltas(low_rank(tiny_vlm, tiny_vlm.sites(where))).predict(SEEN)
    for row in range(len(SEEN)):
        assert moved(of_text(after, row), of_text(before, row))
    assert_identical(tiny_vlm.predict(SEEN), before)


@pytest.mark.parametrize("where", ["bridge", "vision"])
def test_deltas_before_the_language_model_leave_texts_without_image_alone(
    tiny_vlm: NetworkVLM, where: Stage
):
    edited = tiny_vlm.with_deltas(low_rank(tiny_vlm, tiny_vlm.sites(where)))
    assert_identical(edited.predict([TEXT_ONLY]), tiny_vlm.predict([TEXT_ONLY]))


@every_stage
def test_separate_edits_answer_their_own_rows_in_a_mixed_batch(tiny_vlm: NetworkVLM, where: Stage):
    edited = tiny_vlm.with_deltas(low_rank(tiny_vlm, tiny_vlm.sites(where), edits=3))
    together = edited.predict(MIXED)
    for row, example in enumerate(MIXED):
        assert_same(together[[row]], edited.select([row]).predict([example]))
    generated = [
        edited.select([row]).generate([example], max_new_tokens=5)[0]
        for row, example in enumerate(MIXED)
    ]
    assert edited.generate(MIXED, max_new_tokens=5) == generated


@every_stage
def test_separate_edits_for_another_number_of_rows_are_an_error(tiny_vlm: NetworkVLM, where: Stage):
    edited = tiny_vlm.with_deltas(low_rank(tiny_vlm, tiny_vlm.sites(where), edits=2))
    with pytest.raises(SiteError, match=r"2 separate edits .*cannot answer 3 rows.*select\(rows\)"):
        edited.predict(MIXED)


def test_weight_at_a_site_is_the_networks_with_the_deltas_it_carries(tiny_vlm: NetworkVLM):
    (site, *_) = tiny_vlm.sites("language")
    deltas = low_rank(tiny_vlm, [site])
    before = tiny_vlm.weight(site)
    torch.testing.assert_close(
        tiny_vlm.with_deltas(deltas).weight(site), before + deltas[site].weight()
    )
    before.zero_()
    assert tiny_vlm.weight(site).abs().max() > 0


def test_unknown_site_is_an_error_that_tells_the_nearest(tiny_vlm: NetworkVLM):
    site = tiny_vlm.sites("language")[-1]
    wrong = site.replace("layers", "layer")
    for call in (tiny_vlm.shape, tiny_vlm.weight, lambda name: tiny_vlm.capture(SEEN, [name])):
        with pytest.raises(SiteError) as raised:
            call(wrong)
        text = f"the network has no Linear named {wrong!r}. Did you mean {site!r}?"
        assert str(raised.value) == text


def test_delta_of_the_wrong_shape_is_an_error_before_anything_runs(tiny_vlm: NetworkVLM):
    fc1, fc2, *_ = tiny_vlm.sites("language")
    with pytest.raises(SiteError) as raised:
        tiny_vlm.with_deltas({fc1: low_rank(tiny_vlm, [fc2])[fc2]})
    assert str(raised.value) == f"the delta for {fc1} is (32, 64), the weight there (64, 32)"


# Captured inputs and gradients


def plain_gradients(vlm: NetworkVLM, examples: Sequence[Example], sites: Sequence[str]):
    """Return gradients of a copied network's weights, of the sum of the rows' answer NLLs."""
    network = deepcopy(vlm.adapter.network)
    copied = NetworkVLM(Blip2Adapter(network, adapter_of(vlm).processor))
    weights = [linear_at(network, site).weight.requires_grad_() for site in sites]
    nll = torch.stack([plain_nll(copied, example) for example in examples])
    return dict(zip(sites, torch.autograd.grad(nll.sum(), weights), strict=True)), nll.detach()


def plain_nll(vlm: NetworkVLM, example: Example) -> Tensor:
    """Return the NLL of transformers' own forward, for one example with image."""
    images = {0: vlm.adapter.see(example)}
    inputs = vlm.adapter.inputs([example], images, padding_side="right")
    images = adapter_of(vlm).processor.image_processor(images=[example.image], return_tensors="pt")
    logits = vlm.adapter.network(
        pixel_values=images["pixel_values"],
        input_ids=inputs.input_ids,
        attention_mask=inputs.attention_mask,
    ).logits
    (nll,) = answer_nll(logits[:, :-1], inputs.input_ids[:, 1:], inputs.is_answer[:, 1:])
    return nll


@every_stage
def test_captured_x_and_delta_are_those_of_the_real_weight_gradient(
    tiny_vlm: NetworkVLM, where: Stage
):
    sites = tiny_vlm.sites(where)
    captured = tiny_vlm.capture(SEEN, sites)
    gradients, nll = plain_gradients(tiny_vlm, SEEN, sites)
    assert_close(captured.nll, nll)
    for site in sites:
        outer = torch.einsum("bto,bti->oi", captured.delta[site], captured.x[site])
        assert_close(outer, gradients[site], passes=2)


@every_stage
def test_captured_gradient_of_an_edited_vlm_is_that_of_its_edited_weights(
    tiny_vlm: NetworkVLM, where: Stage
):
    sites = tiny_vlm.sites(where)
    deltas = low_rank(tiny_vlm, sites)
    captured = tiny_vlm.with_deltas(deltas).capture(SEEN, sites)
    network = deepcopy(tiny_vlm.adapter.network)
    for site, delta in deltas.items():
        linear_at(network, site).weight.data += delta.weight()
    changed = NetworkVLM(Blip2Adapter(network, adapter_of(tiny_vlm).processor))
    expected = changed.capture(SEEN, sites)
    for site in sites:
        assert_close(captured.x[site], expected.x[site])
        assert_close(captured.delta[site], expected.delta[site], passes=2)


def reached(captured: Captured, site: str, row: int) -> tuple[Tensor, Tensor]:
    """Return x and delta of the tokens that the loss reaches."""
    kept = captured.delta[site][row].abs().amax(-1) > 0
    return captured.x[site][row][kept], captured.delta[site][row][kept]


@every_stage
@pytest.mark.parametrize("side", ["left", "right"])
def test_captured_rows_do_not_depend_on_the_rest_of_the_batch(tiny_vlm, where: Stage, side):
    sites = tiny_vlm.sites(where)
    rows = MIXED if where == "language" else SEEN
    together = NetworkVLM(tiny_vlm.adapter, padding_side=side).capture(rows, sites)
    for row, example in enumerate(rows):
        alone = tiny_vlm.capture([example], sites)
        assert_close(together.nll[row], alone.nll[0])
        for site in sites:
            found, expected = reached(together, site, row), reached(alone, site, 0)
            for one, other, passes in zip(found, expected, (1, 2), strict=True):
                assert_close(one, other, passes=passes)


def test_captured_answer_to_a_text_at_an_image_site_is_an_error(tiny_vlm: NetworkVLM):
    (site, *_) = tiny_vlm.sites("bridge")
    with pytest.raises(SiteError, match=rf"{site} acts on images, and '.*Albania\?' has none"):
        tiny_vlm.capture(MIXED, [site])


def test_capturing_leaves_no_gradient_and_no_hook(tiny_vlm: NetworkVLM):
    sites = [site for where in ("language", "bridge", "vision") for site in tiny_vlm.sites(where)]
    tiny_vlm.capture(SEEN, sites)
    network = tiny_vlm.adapter.network
    assert not any(p.requires_grad or p.grad is not None for p in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())


# The number of computations


@contextmanager
def counting(module: nn.Module) -> Iterator[list[int]]:
    """Give a list that gets the batch size of every pass through a module."""
    sizes: list[int] = []
    hook = module.register_forward_hook(lambda _, inputs, output: sizes.append(len(output[0])))
    yield sizes
    hook.remove()


def test_every_distinct_image_is_seen_once_over_all_calls(tiny_vlm: NetworkVLM):
    edited = tiny_vlm.with_deltas(low_rank(tiny_vlm, tiny_vlm.sites("language")))
    with counting(tiny_vlm.adapter.network.vision_model) as seen:
        for vlm in (tiny_vlm, edited):
            vlm.predict(SEEN)
            vlm.predict([Example(prompt="what?", target="no", image=IMAGES[1].copy())])
            vlm.generate(MIXED, max_new_tokens=2)
            vlm.capture(SEEN, vlm.sites("language"))
            vlm.represent(SEEN)
    assert len({id(example.image) for example in SEEN}) == tiny_vlm.features.misses == 2
    assert seen == [GROUP]
    with counting(tiny_vlm.adapter.network.vision_model) as seen:
        tiny_vlm.predict([Example(prompt="what?", target="no", image=IMAGES[2])])
    assert seen == [GROUP]


def test_under_an_edit_of_the_bridge_only_the_bridge_runs_again(tiny_vlm: NetworkVLM):
    edited = tiny_vlm.with_deltas(low_rank(tiny_vlm, tiny_vlm.sites("bridge")))
    network = tiny_vlm.adapter.network
    with counting(network.vision_model) as seen, counting(network.language_projection) as bridged:
        edited.predict(SEEN)
        edited.generate(MIXED, max_new_tokens=2)
        tiny_vlm.capture(SEEN, tiny_vlm.sites("bridge"))
    assert seen == [GROUP]
    assert len(bridged) == 3


def test_under_an_edit_of_vision_nothing_about_images_is_cached(tiny_vlm: NetworkVLM):
    tiny_vlm.predict(SEEN)
    edited = tiny_vlm.with_deltas(low_rank(tiny_vlm, tiny_vlm.sites("vision")))
    with counting(tiny_vlm.adapter.network.vision_model) as seen:
        edited.predict(SEEN)
        edited.predict(SEEN)
    assert sum(seen) == 2 * len(SEEN)
    assert_identical(edited.predict(SEEN), edited.predict(SEEN))


def test_cached_features_give_the_same_answer_bit_for_bit(tiny_vlm: NetworkVLM):
    first = tiny_vlm.predict(SEEN)
    for where in ("bridge", "vision"):  # edited features are never taken for the base model's
        tiny_vlm.with_deltas(low_rank(tiny_vlm, tiny_vlm.sites(where))).predict(SEEN)
    assert torch.equal(tiny_vlm.predict(SEEN).logits, first.logits)


def test_features_on_disk_spare_the_next_process_the_vision_tower(tiny_folder, tmp_path):
    first = load_vlm(tiny_folder, features=TensorCache(directory=tmp_path)).predict(SEEN)
    again = load_vlm(tiny_folder, features=TensorCache(directory=tmp_path))
    with counting(again.adapter.network.vision_model) as seen:
        assert torch.equal(again.predict(SEEN).logits, first.logits)
    assert seen == []


def with_other_pixels(folder: Path) -> Path:
    """Return a folder with the same weights and another image processing."""
    other = shutil.copytree(folder, folder.with_name("other-pixels"))
    (file,) = other.glob("*processor_config.json")
    settings = json.loads(file.read_text())
    settings["image_processor"]["image_mean"] = [0.1, 0.2, 0.3]
    file.write_text(json.dumps(settings))
    return other


def test_a_shared_cache_never_gives_one_models_features_to_another(tmp_path: Path):
    first = tiny.save_model(tmp_path / "first")
    others = [with_other_pixels(first), tiny.save_model(tmp_path / "second", seed=1)]
    on_disk, in_memory = TensorCache(directory=tmp_path / "cache"), TensorCache()
    for shared in (on_disk, in_memory):
        load_vlm(first, features=shared).predict(SEEN)
        for other in others:
            wanted = load_vlm(other).predict(SEEN).logits
            assert torch.equal(load_vlm(other, features=shared).predict(SEEN).logits, wanted)


def test_new_images_go_through_vision_in_groups_of_one_size(tiny_vlm: NetworkVLM):
    """The last group is filled up, so features do not depend on how many images are new."""
    many = [replace(SEEN[0], image=random_image(seed)) for seed in range(5)]
    with counting(tiny_vlm.adapter.network.vision_model) as seen:
        together = tiny_vlm.predict(many)
    assert seen == [GROUP, GROUP]
    for row, example in enumerate(many):
        assert_same(together[[row]], tiny_vlm.predict([example]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_features_do_not_depend_on_the_images_beside_them(tiny_folder: Path, dtype: str):
    many = [replace(SEEN[0], image=random_image(seed)) for seed in range(6)]
    orders = ([0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [3], [2, 3, 5])
    features = []
    for order in orders:
        frozen = load_vlm(tiny_folder, dtype=dtype).frozen
        found = frozen.image_features([many[place] for place in order])
        features.append(dict(zip(order, found, strict=True)))
    for each in features[1:]:
        for place, found in each.items():
            assert torch.equal(found, features[0][place])


def test_image_in_memory_and_in_a_file_give_the_same_answer(tiny_vlm: NetworkVLM, tmp_path):
    path = tmp_path / "image.png"
    random_image(7).save(path)
    answers: list[Predictions] = [
        tiny_vlm.predict([Example(prompt="a photo of", target="no", image=image)])
        for image in (path, random_image(7))
    ]
    assert torch.equal(answers[0].logits, answers[1].logits)
