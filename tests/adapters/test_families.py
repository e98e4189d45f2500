"""On tiny random models of every family, mmedit gives the inputs and outputs of transformers, and
edits work at every stage.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_families
import torch
from closeness import assert_close, moved
from tiny import assert_identical, assert_same, of_text, random_image
from torch import Tensor, nn

from mmedit.adapters.base import STAGES, Stage
from mmedit.adapters.inputs import PaddingSide
from mmedit.cache import TensorCache
from mmedit.cases import EditCase, Example, Probe
from mmedit.deltas import LowRank, linear_at
from mmedit.editors.fitting import Fitting
from mmedit.errors import ImageError, ModelError, SiteError
from mmedit.methods.ft import FT, FTConfig
from mmedit.methods.ke import KE, KEConfig
from mmedit.methods.serac import SERAC, SERACConfig
from mmedit.metrics.multiclass_log_probs import answer_nll
from mmedit.neurons import Neurons
from mmedit.training.settings import TrainingConfig
from mmedit.vlm.loading import load_vlm
from mmedit.vlm.network import NetworkVLM

IMAGES = (
    random_image(0, width=40, height=30),
    random_image(1, width=30, height=64),
    random_image(2, width=64, height=64),
)
"""Images of three shapes, for which some families make different numbers of tokens."""
SEEN = (
    Example(prompt="what color is the shape?", target="blue", image=IMAGES[0]),
    Example(prompt="a photo of", target="a small teal triangle", image=IMAGES[1]),
    Example(prompt="is there a red circle in the image?", target="no", image=IMAGES[2]),
)
TEXT_ONLY = Example(prompt="what is the capital of Albania?", target="Tirana")
MIXED = (SEEN[0], TEXT_ONLY, *SEEN[1:])
WITHOUT_TEMPLATE = ("paligemma", "instructblip")
BRIDGE_WITHOUT_LINEAR = ("gemma3",)
VISION_WITHOUT_LINEAR = ("photo",)

every_stage = pytest.mark.parametrize("where", ["language", "bridge", "vision"])


@pytest.fixture(scope="module", params=tiny_families.FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_families.save_family(family, tmp_path_factory.mktemp(family))


@pytest.fixture(scope="module")
def loaded(folder: Path) -> NetworkVLM:
    return load_vlm(folder)


@pytest.fixture
def vlm(loaded: NetworkVLM) -> NetworkVLM:
    """The same network in every test of a family, with nothing cached yet."""
    return NetworkVLM(loaded.adapter)


def stages_without_linear(family: str) -> tuple[Stage, ...]:
    bridge: tuple[Stage, ...] = ("bridge",) if family in BRIDGE_WITHOUT_LINEAR else ()
    return (*bridge, "vision") if family in VISION_WITHOUT_LINEAR else bridge


def sites_or_skip(vlm: NetworkVLM, where: Stage, family: str) -> tuple[str, ...]:
    sites = vlm.sites(where)
    if not sites:
        assert where in stages_without_linear(family)
        pytest.skip(f"{where} of {family} has no Linear, so there is nothing to edit")
    return sites


# The inputs and outputs of transformers


def official_prompt(vlm: NetworkVLM, example: Example, family: str) -> dict[str, Tensor]:
    """Return the processor's own inputs for a prompt, with image or without."""
    processor = vlm.adapter.processor
    if family not in WITHOUT_TEMPLATE:
        return processor.apply_chat_template(
            [user_turn(example)], add_generation_prompt=True, **AS_TENSORS
        )
    if family == "paligemma" and example.image is not None:
        made = processor(images=[example.image], text=[f"<image>{example.prompt}"])
        return {name: torch.as_tensor(np.asarray(made[name])) for name in made if name != "labels"}
    text = f"<bos>{example.prompt}\n" if family == "paligemma" else example.prompt
    (ids,) = processor.tokenizer([text], add_special_tokens=family != "paligemma")["input_ids"]
    if example.image is None:
        made = {"input_ids": torch.tensor([ids])}
        if family == "paligemma":
            made["token_type_ids"] = torch.zeros_like(made["input_ids"])
        return made
    return dict(processor(images=[example.image], text=[example.prompt], **TENSORS))


TENSORS: dict[str, Any] = {"return_tensors": "pt"}
AS_TENSORS: dict[str, Any] = {"tokenize": True, "return_dict": True, **TENSORS}


def user_turn(example: Example) -> dict[str, Any]:
    image = [] if example.image is None else [{"type": "image", "image": example.image}]
    return {"role": "user", "content": [*image, {"type": "text", "text": example.prompt}]}


def answered(vlm: NetworkVLM, example: Example, family: str) -> dict[str, Tensor]:
    """Return the processor's inputs, with the answer's tokens after them."""
    inputs = dict(official_prompt(vlm, example, family))
    form = vlm.adapter.image_format if example.image is not None else vlm.adapter.text_format
    answer = ids_of(vlm, form.lead + example.target)
    for name, fill in (("input_ids", None), ("attention_mask", 1), ("token_type_ids", None)):
        if name not in inputs:
            continue
        kind = int(family == "paligemma") if name == "token_type_ids" else fill
        more = torch.tensor([answer]) if kind is None else torch.full((1, len(answer)), kind)
        inputs[name] = torch.cat([inputs[name], more], dim=1)
    if "mm_token_type_ids" in inputs:
        zeros = torch.zeros(1, len(answer), dtype=torch.long)
        inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], zeros], dim=1)
    return inputs


def plain_logits(
    vlm: NetworkVLM, example: Example, family: str, network: nn.Module | None = None
) -> Tensor:
    """Return the logits of transformers' own forward, [sequence, vocab]."""
    model: Any = network or vlm.adapter.network
    if family == "instructblip" and example.image is None:
        model = model.language_model
    return model(**answered(vlm, example, family)).logits[0]


def ids_of(vlm: NetworkVLM, text: str) -> list[int]:
    return vlm.adapter.tokenizer(text, add_special_tokens=False)["input_ids"]


def with_padding(vlm: NetworkVLM, side: PaddingSide) -> NetworkVLM:
    return NetworkVLM(vlm.adapter, deltas=vlm.deltas, padding_side=side)


# Prompts and predictions


@pytest.mark.parametrize("example", MIXED, ids=["image", "text", "caption", "third"])
def test_a_prompt_has_the_tokens_that_the_processor_gives_it(vlm, family: str, example: Example):
    images = {} if example.image is None else {0: vlm.adapter.see(example)}
    asked = vlm.adapter.inputs([example], images, padding_side="right", with_target=False)
    assert torch.equal(asked.input_ids, official_prompt(vlm, example, family)["input_ids"])


def test_an_answer_stands_where_the_chat_template_puts_it(vlm: NetworkVLM, family: str):
    if family in (*WITHOUT_TEMPLATE, "llava_onevision", "fast_vlm"):
        pytest.skip(f"the template of {family}, if any, starts answers otherwise than prompts end")
    example = SEEN[1]
    answer = {"role": "assistant", "content": [{"type": "text", "text": example.target}]}
    conversation = [user_turn(example), answer]
    whole = vlm.adapter.processor.apply_chat_template(conversation, **AS_TENSORS)["input_ids"]
    images = {0: vlm.adapter.see(example)}
    asked = vlm.adapter.inputs([example], images, padding_side="right").input_ids
    assert torch.equal(whole[:, : asked.shape[1]], asked)


@torch.no_grad()
@pytest.mark.parametrize("example", MIXED, ids=["image", "text", "caption", "third"])
def test_logits_are_those_of_transformers_about_the_next_token(vlm, family: str, example: Example):
    predictions = vlm.predict([example])
    ids = answered(vlm, example, family)["input_ids"][0]
    plain = plain_logits(vlm, example, family)
    n = int(predictions.is_answer.sum())
    found = predictions.logits[predictions.is_answer]
    assert_close(found, plain[-n - 1 : -1])
    assert torch.equal(predictions.target[predictions.is_answer], ids[-n:])


@pytest.mark.parametrize("side", ["left", "right"])
def test_answer_mask_covers_the_answer_and_nothing_else(vlm: NetworkVLM, side: PaddingSide):
    predictions = with_padding(vlm, side).predict(MIXED)
    for row, example in enumerate(MIXED):
        form = vlm.adapter.text_format if example.image is None else vlm.adapter.image_format
        answer = predictions.target[row][predictions.is_answer[row]].tolist()
        assert answer == ids_of(vlm, form.lead + example.target)
        text = predictions.target[row][predictions.is_text[row]].tolist()
        assert text[-len(answer) :] == answer
        said = vlm.adapter.tokenizer.decode(text[: -len(answer)]).strip()
        assert example.prompt.endswith(said)
        assert len(said) >= len(example.prompt) - len("what")  # a first token without one before


def test_padding_side_batch_size_and_other_rows_change_nothing(vlm: NetworkVLM):
    left, right = (with_padding(vlm, side).predict(MIXED) for side in ("left", "right"))
    assert_same(left, right)
    for row, example in enumerate(MIXED):
        assert_same(right[[row]], vlm.predict([example]))
        assert_same(right[[row]], vlm.predict([example, TEXT_ONLY])[[0]])


def test_a_context_changes_no_token_of_prompt_and_answer(vlm: NetworkVLM):
    in_context = [replace(example, context="New Fact: yes no\nPrompt: ") for example in MIXED]
    before, after = vlm.predict(MIXED), vlm.predict(in_context)
    for row in range(len(MIXED)):
        first, second = (p.target[row][p.is_text[row]] for p in (before, after))
        assert torch.equal(first, second[-len(first) :])
        assert moved(of_text(after, row)[-len(first) :], of_text(before, row))


@torch.no_grad()
def test_generation_is_the_greedy_one_of_transformers(vlm: NetworkVLM, family: str):
    wanted = [official_generation(vlm, example, family, vlm.adapter.network) for example in MIXED]
    assert vlm.generate(MIXED, max_new_tokens=6) == wanted
    assert [vlm.generate([example], max_new_tokens=6)[0] for example in MIXED] == wanted


def official_generation(vlm: NetworkVLM, example: Example, family: str, network: nn.Module) -> str:
    model: Any = network
    inputs = official_prompt(vlm, example, family)
    if family == "instructblip" and example.image is None:
        model = model.language_model
    ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    skip = inputs["input_ids"].shape[1] if ids.shape[1] > 6 else 0
    (text,) = vlm.adapter.decode(ids[:, skip:])
    return text


def test_the_image_token_in_a_prompt_is_an_error(vlm: NetworkVLM):
    token = vlm.adapter.tokenizer.convert_ids_to_tokens(vlm.adapter.image_token)
    with pytest.raises(ModelError, match="stands for the image; leave it out"):
        vlm.predict([replace(SEEN[0], prompt=f"what is {token}?")])


def test_several_images_in_one_example_are_an_error():
    with pytest.raises(ImageError, match="2 images were given; an example has one image or none"):
        Example(prompt="what differs?", target="no", image=list(IMAGES[:2]))  # pyright: ignore


# Image features


@contextmanager
def counting(vlm: NetworkVLM) -> Iterator[list[int]]:
    """Give a list that gets one entry for every pass through the vision tower."""
    passes: list[int] = []
    tower = vlm.adapter.network.get_encoder(modality="image")
    hook = tower.register_forward_hook(lambda *_: passes.append(1))
    yield passes
    hook.remove()


def groups(vlm: NetworkVLM, family: str) -> int:
    """Images go through vision together if they have one shape, and where it reads the question,
    one question.
    """
    if family == "instructblip":
        return len({example.prompt for example in SEEN})
    return len({vlm.adapter.see(example).shapes for example in SEEN})


def test_features_that_were_looked_up_give_the_same_answer_bit_for_bit(vlm, folder, tmp_path):
    on_disk = NetworkVLM(vlm.adapter, features=TensorCache(directory=tmp_path))
    first = on_disk.predict(SEEN).logits
    again = load_vlm(folder, features=TensorCache(directory=tmp_path))
    with counting(again) as passes:
        assert torch.equal(again.predict(SEEN).logits, first)
    assert passes == []
    assert torch.equal(vlm.predict(SEEN).logits, first)
    assert torch.equal(vlm.predict(SEEN).logits, first)


def test_every_image_goes_through_vision_once(vlm: NetworkVLM, family: str):
    with counting(vlm) as passes:
        for _ in range(2):
            vlm.predict(SEEN)
            vlm.generate(MIXED, max_new_tokens=2)
            vlm.capture(SEEN, vlm.sites("language"))
    assert len(passes) == groups(vlm, family)


def test_another_prompt_needs_no_vision_but_the_bridge_of_instructblip(vlm, family: str):
    vlm.predict(SEEN)
    with counting(vlm) as passes:
        vlm.predict([replace(example, prompt="another question?") for example in SEEN])
    assert len(passes) == (1 if family == "instructblip" else 0)


@torch.no_grad()
def test_vision_and_bridge_one_after_the_other_are_both_at_once(vlm: NetworkVLM, family: str):
    if family in BRIDGE_WITHOUT_LINEAR:
        assert vlm.sites("bridge") == ()
    images = [vlm.adapter.see(example) for example in SEEN]
    both = vlm.adapter.encode(images)
    split = vlm.adapter.bridge(vlm.adapter.vision(images), images)
    for one, other in zip(both, split, strict=True):
        assert torch.equal(one, other)


# Edits


def low_rank(vlm: NetworkVLM, sites: Sequence[str], *, edits: int | None = None):
    generator = torch.Generator().manual_seed(0)
    lead = () if edits is None else (edits,)
    return {
        site: LowRank(
            *(torch.randn(*lead, 2, n, generator=generator) * 0.3 for n in vlm.shape(site))
        )
        for site in sites
    }


def rewritten(vlm: NetworkVLM, deltas: dict[str, LowRank]) -> nn.Module:
    """Return a copy of the network with the edit in its weights."""
    network = deepcopy(vlm.adapter.network)
    for site, delta in deltas.items():
        linear_at(network, site).weight.data += delta.weight()
    return network


@torch.no_grad()
@every_stage
def test_an_edit_answers_as_the_edited_weights_do(vlm: NetworkVLM, family: str, where: Stage):
    deltas = low_rank(vlm, sites_or_skip(vlm, where, family))
    edited, network = vlm.with_deltas(deltas), rewritten(vlm, deltas)
    before = vlm.predict(SEEN)
    after = edited.predict(SEEN)
    for row, example in enumerate(SEEN):
        n = int(after.is_answer[row].sum())
        plain = plain_logits(vlm, example, family, network)[-n - 1 : -1]
        found = after.logits[row][after.is_answer[row]]
        assert_close(found, plain)
        assert moved(found, before.logits[row][before.is_answer[row]])
    said = [official_generation(vlm, example, family, network) for example in SEEN]
    assert edited.generate(SEEN, max_new_tokens=6) == said
    assert torch.equal(vlm.predict(SEEN).logits, before.logits)


@every_stage
def test_separate_edits_answer_their_own_rows(vlm: NetworkVLM, family: str, where: Stage):
    sites = sites_or_skip(vlm, where, family)
    edited = vlm.with_deltas(low_rank(vlm, sites, edits=len(MIXED)))
    before, together = vlm.predict(MIXED), edited.predict(MIXED)
    generated = edited.generate(MIXED, max_new_tokens=4)
    for row, example in enumerate(MIXED):
        alone = edited.select([row])
        assert_same(together[[row]], alone.predict([example]))
        assert generated[row] == alone.generate([example], max_new_tokens=4)[0]
        reached = example.image is not None or where == "language"
        assert moved(of_text(together, row), of_text(before, row)) == reached


@every_stage
def test_captured_x_and_delta_are_those_of_the_real_weight_gradient(vlm, family, where: Stage):
    sites = sites_or_skip(vlm, where, family)
    captured = vlm.capture(SEEN, sites)
    network = deepcopy(vlm.adapter.network)
    weights = [linear_at(network, site).weight.requires_grad_() for site in sites]
    losses = []
    for example in SEEN:
        n = int(vlm.predict([example]).is_answer.sum())
        logits = plain_logits(vlm, example, family, network)[-n - 1 : -1]
        target = answered(vlm, example, family)["input_ids"][:, -n:]
        losses.append(answer_nll(logits[None], target, torch.ones_like(target).bool())[0])
    gradients = torch.autograd.grad(torch.stack(losses).sum(), weights)
    assert_close(captured.nll, torch.stack(losses).detach())
    for site, gradient in zip(sites, gradients, strict=True):
        outer = torch.einsum("bto,bti->oi", captured.delta[site], captured.x[site])
        assert gradient.any()
        assert_close(outer, gradient, passes=2)


def test_under_an_edit_of_the_bridge_vision_is_looked_up(vlm: NetworkVLM, family: str):
    edited = vlm.with_deltas(low_rank(vlm, sites_or_skip(vlm, "bridge", family)))
    with counting(vlm) as passes:
        edited.predict(SEEN)
        edited.predict(SEEN)
        edited.generate(MIXED, max_new_tokens=2)
    assert len(passes) == len({vlm.adapter.see(example).shapes for example in SEEN})
    again = vlm.with_deltas(low_rank(vlm, sites_or_skip(vlm, "vision", family)))
    with counting(vlm) as passes:
        again.predict(SEEN)
        again.predict(SEEN)
    assert len(passes) == 2


@pytest.mark.parametrize("where", ["bridge", "vision"])
def test_an_edit_of_the_image_stages_leaves_texts_alone(vlm, family: str, where: Stage):
    edited = vlm.with_deltas(low_rank(vlm, sites_or_skip(vlm, where, family)))
    assert_identical(edited.predict([TEXT_ONLY]), vlm.predict([TEXT_ONLY]))


def test_an_edit_of_a_stage_without_sites_is_an_error(vlm: NetworkVLM, family: str):
    without = stages_without_linear(family)
    for where in STAGES:
        assert bool(vlm.sites(where)) == (where not in without)
    for where in without:
        with pytest.raises(SiteError, match=f"this VLM has no default sites in its {where}"):
            FT(FTConfig(where=where)).apply(vlm, [SEEN[0]])


def test_default_sites_lie_in_their_stage_and_do_not_overlap(vlm: NetworkVLM):
    for where in ("language", "bridge", "vision"):
        for site in vlm.sites(where):
            assert vlm.adapter.stage(site) == where
            vlm.shape(site)


# The parts that methods with a model of their own use


def test_frozen_parts_have_the_shapes_that_the_network_works_with(vlm):
    frozen, predictions = vlm.frozen, vlm.predict(MIXED)
    assert frozen.vocabulary == predictions.logits.shape[-1]
    features = frozen.image_features(MIXED)
    assert [feature is None for feature in features] == [e.image is None for e in MIXED]
    for feature in features:
        if feature is not None:
            assert feature.shape[-1] == frozen.hidden
            assert feature.dtype == torch.float32
    ids = torch.tensor(frozen.tokenize(["a photo of"]))
    assert frozen.embed(ids).shape == (*ids.shape, frozen.hidden)
    assert all(0 <= end < frozen.vocabulary for end in frozen.ends)


def test_segments_are_the_tokens_that_predictions_are_about(vlm):
    predictions = vlm.predict(MIXED)
    for row, segments in enumerate(vlm.frozen.segments(MIXED)):
        text = [*segments.prompt, *segments.answer]
        assert predictions.target[row, : len(text)].tolist() == text
        answer = predictions.target[row][predictions.is_answer[row]].tolist()
        assert answer == list(segments.answer)


@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "gemma3", "instructblip"], indirect=True)
@pytest.mark.parametrize("method", ["ke", "serac", "serac-mscke", "serac-text"])
def test_methods_with_a_model_of_their_own_learn_and_edit(vlm, tmp_path: Path, method: str):
    """They read a family through `frozen` alone, which the tests above have of every one: these
    families give one feature a patch, tiles, a fixed number, and none for a text.
    """
    cases = [
        EditCase(
            id=str(number),
            request=asked,
            probes={
                Probe.TEXT_GENERALITY: (replace(asked, prompt="which color has it?"),),
                Probe.TEXT_LOCALITY: (TEXT_ONLY,),
                Probe.IMAGE_LOCALITY: (SEEN[number - 1],),
            },
        )
        for number, asked in enumerate(SEEN)
    ]
    editor = LEARNT[method]().fit(vlm, Fitting(cases))
    editor.save(tmp_path)
    edited = type(editor).load(tmp_path).apply_each(vlm, SEEN)
    before, after = vlm.predict(SEEN), edited.predict(SEEN)
    assert torch.equal(after.target, before.target)
    assert after.logits[after.is_text].isfinite().all()
    for row in range(len(SEEN)):
        answers = before.is_answer[row]
        assert moved(after.logits[row][answers], before.logits[row][answers])
    assert len(edited.generate(SEEN, max_new_tokens=3)) == len(SEEN)


SHORT = TrainingConfig(steps=1, batch_size=3)
SERAC_SIZE: dict[str, Any] = {
    "scope_width": 8, "scope_layers": 1, "counterfactual_width": 8, "counterfactual_layers": 1,
    "training": SHORT,
}  # fmt: skip
LEARNT: dict[str, Any] = {
    "ke": lambda: KE(KEConfig(lstm_hidden=4, condition=8, hidden=4, training=SHORT)),
    "serac": lambda: SERAC(SERACConfig(**SERAC_SIZE)),
    "serac-mscke": lambda: SERAC(SERACConfig(scope="fused", **SERAC_SIZE)),
    "serac-text": lambda: SERAC(SERACConfig(scope="text", i_loc=0, c_scope=0, **SERAC_SIZE)),
}


# Positions and observed values

SUBJECT = replace(TEXT_ONLY, subject="Albania")


def test_masks_say_where_image_subject_and_answer_stand(vlm, family):
    asked = (SEEN[0], SUBJECT, replace(SEEN[2], subject="red circle"))
    images = vlm.frozen.see(asked)
    inputs = vlm.adapter.inputs(asked, images, padding_side="left")
    left = NetworkVLM(vlm.adapter, padding_side="left").places(asked)
    features = dict(zip(images, vlm.frozen.stage("bridge", list(images.values())), strict=True))
    for row, example in enumerate(asked):
        ids = inputs.input_ids[row]
        made = vlm.adapter.feature_count(features[row]) if row in features else 0
        assert int(left.is_image[row].sum()) == made
        assert vlm.adapter.tokenizer.decode(ids[left.is_prompt[row]]).strip() == example.prompt
        subject = vlm.adapter.tokenizer.decode(ids[left.is_subject[row]])
        assert example.subject in subject
        assert len(subject) < len(example.prompt)
        last, (end,) = int(left.last_prompt[row]), left.is_answer[row].nonzero()[-1].tolist()
        assert left.predicts_answer[row].nonzero().flatten().tolist() == list(range(last, end))
    assert left.last_subject.tolist()[0] == -1


def test_places_follow_the_padding_side(vlm):
    right = vlm.places(MIXED)
    left = NetworkVLM(vlm.adapter, padding_side="left").places(MIXED)
    for name in ("is_image", "is_prompt", "is_answer", "predicts_answer"):
        for row in range(len(MIXED)):
            first, second = getattr(right, name)[row], getattr(left, name)[row]
            assert torch.equal(first[right.is_real[row]], second[left.is_real[row]])


def test_observed_values_are_those_of_a_capture(vlm, family):
    sites = vlm.value_sites[-1:]
    if not sites:
        pytest.fail(f"the feed-forward blocks of {family} have no known name")
    observed, captured = vlm.observe(MIXED, sites, after=[1]), vlm.capture(MIXED, sites)
    real = vlm.places(MIXED).is_real
    assert_close(observed.x[sites[0]][real], captured.x[sites[0]][real])
    weight = linear_at(vlm.adapter.network, sites[0])
    assert_close(observed.y[sites[0]][real], weight(captured.x[sites[0]])[real])


def test_neurons_beside_a_block_read_what_it_takes(vlm, family):
    if not vlm.ffn_inputs:
        pytest.fail(f"the weights that begin the feed-forward blocks of {family} are not known")
    site, reads = vlm.value_sites[-1], vlm.ffn_inputs[-1]
    (out, width), read = vlm.shape(site), vlm.shape(reads)[1]
    generator = torch.Generator().manual_seed(0)
    key, bias, value = (
        torch.randn(len(MIXED), 2, *more, generator=generator) for more in ((read,), (), (out,))
    )
    neurons = Neurons(key, bias + 5, value, reads, width)  # so that one is active in every row
    edited, real = vlm.with_deltas({site: neurons}), vlm.places(MIXED).is_real
    x = vlm.observe(MIXED, [reads]).x[reads]
    added = edited.observe(MIXED, [site]).y[site] - vlm.observe(MIXED, [site]).y[site]
    assert_close(added[real], neurons(x)[real])
    block = linear_at(vlm.adapter.network, reads)
    assert torch.equal(block(x)[real], vlm.observe(MIXED, [reads]).y[reads][real])
    before = vlm.predict(MIXED)
    for row in range(len(MIXED)):
        assert moved(of_text(edited.predict(MIXED), row), of_text(before, row))


def test_states_are_the_outputs_of_the_layers_before_them(vlm):
    given: list[Tensor] = []
    hook = vlm.adapter.layers[0].register_forward_hook(lambda *call: given.append(call[-1]))
    try:
        states = vlm.observe(MIXED, [], after=[1, 2]).states
    finally:
        hook.remove()
    assert torch.equal(states[1], given[0])
    alone = NetworkVLM(vlm.adapter).observe(MIXED, [], after=[2]).states[2]
    real = vlm.places(MIXED).is_real
    assert_close(alone[real], states[2][real])
