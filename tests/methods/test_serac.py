"""What SERAC does by itself; how it compares with the published code is in test_serac_golden.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import open_clip
import pytest
import tiny
import torch
from counted_vlm import CountedVLM
from tiny_sentences import save_encoder, saved_encoder
from torch import Tensor
from transformers import DistilBertConfig, DistilBertModel, OPTConfig, OPTForCausalLM

from mmedit.cases import EditCase, Example, Probe
from mmedit.config import load_editor
from mmedit.datasets.easyvqa import cases as easyvqa
from mmedit.editors.fitting import Fitting
from mmedit.editors.sentences import load_sentence_encoder
from mmedit.errors import ConfigError, DataError, EditorError, ModelError
from mmedit.methods.serac import SERAC, SERACConfig, SERACNetwork, towers
from mmedit.methods.serac.counterfactual import Briefing, make_inputs
from mmedit.methods.serac.memory import SERACVLM, Memory, SoftSERACVLM
from mmedit.methods.serac.scope import FusedScope
from mmedit.methods.serac.similarity import (
    classification_loss,
    fuse,
    log_similarity,
    over_vocabulary,
)
from mmedit.metrics.locality import kl
from mmedit.training.settings import TrainingConfig
from mmedit.vlm.interface import VLM
from mmedit.vlm.network import NetworkVLM


def config(**changes: object) -> SERACConfig:
    settings: dict[str, object] = {
        "scope_width": 16,
        "scope_layers": 1,
        "counterfactual_width": 16,
        "counterfactual_layers": 1,
        "lr": 1e-3,
        "training": TrainingConfig(steps=2, batch_size=4),
    }
    return SERACConfig.model_validate(settings | changes)


@pytest.fixture(scope="module")
def cases() -> list[EditCase]:
    return list(easyvqa.EasyVQA().load("train", limit=8))


@pytest.fixture(scope="module")
def requests_(cases: list[EditCase]) -> list[Example]:
    return [case.request for case in cases[:4]]


@pytest.fixture(scope="module")
def editor(vlm: NetworkVLM, cases: list[EditCase]) -> SERAC:
    return SERAC(config()).fit(vlm, Fitting(cases))


def network_of(editor: SERAC, vlm: VLM) -> SERACNetwork:
    return editor.network_on(vlm)


def embed(editor: SERAC, vlm: VLM, examples: Sequence[Example]) -> Tensor:
    with torch.no_grad():
        return network_of(editor, vlm).scope(examples, vlm.frozen)


def edited_by(editor: SERAC, vlm: VLM, requests: Sequence[Example]) -> SERACVLM:
    edited = editor.apply(vlm, requests)
    assert isinstance(edited, SERACVLM)
    return edited


# Scopes

SCOPES = ("text", "multimodal", "fused")
KINDS = tuple(f"{scope}{last}" for last in ("", "-sentences") for scope in SCOPES)
"""Scopes, without and with a sentence encoder."""
EVERY = pytest.mark.parametrize("kind", KINDS)


def untrained(vlm: VLM, scope: str = "multimodal", **changes: object) -> SERACNetwork:
    editor = SERAC(config(**of_kind(scope), **changes))
    return editor.build(editor.facts(vlm))


def of_kind(kind: str) -> dict[str, object]:
    scope, _, sentences = kind.partition("-")
    return {"scope": scope, "sentence_encoder": saved_encoder() if sentences else None}


@EVERY
def test_no_scope_sees_an_answer(vlm, requests_, kind: str):
    network = untrained(vlm, scope=kind)
    other = [replace(request, target="something else") for request in requests_]
    embedded = network.scope(requests_, vlm.frozen)
    assert torch.equal(network.scope(other, vlm.frozen), embedded)


@EVERY
def test_all_scopes_but_that_of_text_tell_images_apart(vlm, requests_, kind):
    network = untrained(vlm, scope=kind)
    prompt = requests_[0].prompt
    asked = [
        Example(prompt=prompt, target="a", image=image)
        for image in (requests_[0].image, requests_[1].image, None)
    ]
    first, second, none = network.scope(asked, vlm.frozen)
    told_apart = not kind.startswith("text")
    assert torch.allclose(first, second, atol=1e-6) != told_apart
    assert torch.allclose(first, none, atol=1e-6) != told_apart


@EVERY
def test_scopes_tell_prompts_apart_in_any_batch(vlm, requests_, kind):
    network = untrained(vlm, scope=kind)
    together = network.scope(requests_, vlm.frozen)
    for row, request in enumerate(requests_):
        alone = network.scope([request], vlm.frozen)[0]
        torch.testing.assert_close(together[row], alone, rtol=1e-4, atol=1e-5)
        other = replace(request, prompt="what is the capital of Peru?")
        assert not torch.allclose(network.scope([other], vlm.frozen)[0], alone, atol=1e-4)


def test_a_scope_that_sees_no_image_takes_edits_of_one_prompt_for_the_same(vlm, cases):
    """Else one pair of the same two texts would be in scope, and another one not."""
    rephrase = replace(cases[0].request, prompt="which colour has the shape?")
    alike = [
        EditCase(
            id=case.id,
            request=replace(case.request, prompt="what color is the shape?"),
            probes={Probe.TEXT_GENERALITY: (replace(rephrase, target=case.request.target),)},
        )
        for case in cases[:3]
    ]
    network = untrained(vlm, "text-sentences")
    editor = SERAC(config(**of_kind("text-sentences"), c_base=0))
    _, figures = editor.learner(vlm, network, alike)(alike)
    asked = network.scope([alike[0].request, rephrase], vlm.frozen)
    away = -log_similarity(asked[1:], asked[:1]).item()
    assert figures["loss/scope"].item() == pytest.approx(away, rel=1e-4)


@pytest.mark.parametrize("scope", ["multimodal", "fused"])
def test_supervised_scope_learns_which_probe_belongs_to_which_edit(vlm, cases, scope: str):
    few = cases[:4]
    learner = SERAC(config(scope=scope, lr=3e-3)).learner(vlm, untrained(vlm, scope), few)
    optimizer = learner.optimizer()
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss, figures = learner(few)
        loss.backward()
        optimizer.step()
        losses.append(figures["loss/scope"].item())
    assert losses[-1] < losses[0] / 3


def test_a_fine_question_in_scope_belongs_to_its_edit_and_one_out_of_scope_to_none(vlm, cases):
    def fine(case: EditCase) -> dict[Probe, tuple[Example, ...]]:
        other = replace(case.request, prompt="is the image large?")
        return {
            Probe.FINE_GENERALITY: case.probes[Probe.TEXT_GENERALITY],
            Probe.FINE_LOCALITY: (other,),
        }

    few = [replace(case, probes=fine(case)) for case in cases[:3]]
    network = untrained(vlm, "fused")
    editor = SERAC(config(scope="fused", fg_edit=1, fg_loc=1))
    _, figures = editor.learner(vlm, network, few)(few)
    requests = [case.request for case in few]
    probes = (Probe.FINE_GENERALITY, Probe.FINE_LOCALITY)
    asked = [case.probes[probe][0] for probe in probes for case in few]
    found = log_similarity(*(network.scope(rows, vlm.frozen) for rows in (asked, requests)))
    belongs = torch.cat([torch.eye(3, dtype=torch.bool), torch.zeros(3, 3, dtype=torch.bool)])
    torch.testing.assert_close(figures["loss/scope"], classification_loss(found, belongs))
    assert {"loss/fine", "loss/fine_loc"} <= figures.keys()


def test_text_and_image_are_fused_pair_by_pair(vlm, requests_):
    """Against the formula, for one question alone: the published softmax mixes the rows."""
    scope = untrained(vlm, "fused").scope
    assert isinstance(scope, FusedScope)
    asked = [*requests_[:2], replace(requests_[2], image=None)]
    found = scope(asked, vlm.frozen)
    width = found.shape[1] // 2
    for row, tokens in enumerate(vlm.frozen.image_features(asked[:2])):
        text, image = found[row, width:], scope.image(tokens)
        fused = (image @ text).softmax(0) @ image
        torch.testing.assert_close(found[row, :width], fused, rtol=1e-4, atol=1e-5)
    assert torch.equal(found[2, :width], scope.no_image)


def test_images_of_different_lengths_are_fused_without_their_padding():
    random = torch.Generator().manual_seed(0)
    text, image = torch.randn(2, 4, generator=random), torch.randn(2, 5, 4, generator=random)
    there = torch.arange(5) < torch.tensor([[5], [3]])
    found = fuse(text, image, there)
    for row, length in enumerate((5, 3)):
        own = image[row, :length]
        torch.testing.assert_close(found[row], (own @ text[row]).softmax(0) @ own)


def test_what_a_question_sees_in_its_image_depends_on_its_words(vlm, requests_):
    other = replace(requests_[0], prompt="what is left of it?")
    for kind in ("multimodal", "fused"):
        embedded = untrained(vlm, kind).scope([requests_[0], other], vlm.frozen)
        first, second = embedded.chunk(2, -1)[0]
        assert torch.allclose(first, second, atol=1e-6) == (kind == "multimodal")


# The cache


def test_of_equal_edits_the_newest_answers(editor, vlm, requests_):
    first = requests_[0]
    second = replace(first, target="triangle")
    memory = edited_by(editor, vlm, [first, requests_[1], second]).memory
    score, nearest = memory.nearest(embed(editor, vlm, [first]), {})
    assert score.item() == pytest.approx(1)
    assert nearest.item() == 2


def test_a_sequence_of_edits_is_one_cache_over_the_same_vlm(editor, vlm, requests_):
    edited: VLM = vlm
    for request in requests_:
        edited = editor.apply(edited, [request])
    assert isinstance(edited, SERACVLM)
    assert isinstance(edited.inner, NetworkVLM)
    assert not edited.inner.deltas
    assert edited.memory.edits == tuple(requests_)
    at_once = edited_by(editor, vlm, requests_)
    torch.testing.assert_close(edited.memory.keys, at_once.memory.keys, rtol=1e-4, atol=1e-5)


def test_every_edit_of_a_large_cache_is_found_again(editor, vlm):
    many = [case.request for case in easyvqa.EasyVQA().load("train", limit=300)]
    edited = edited_by(editor, vlm, many)
    score, nearest = edited.memory.nearest(embed(editor, vlm, many), {})
    assert score.min() > 0.99
    asked = {(edit.prompt, edit.image): number for number, edit in enumerate(many)}
    newest = [asked[edit.prompt, edit.image] for edit in many]
    assert nearest.tolist() == newest


def test_separate_edits_join_those_that_all_rows_share(editor, vlm, requests_):
    shared = editor.apply(vlm, requests_[:1])
    each = editor.apply_each(shared, requests_[1:3])
    assert isinstance(each, SERACVLM)
    assert each.memory.visible is not None
    assert each.memory.visible.tolist() == [[True, True, False], [True, False, True]]
    more = editor.apply(each, requests_[3:])
    assert more.memory.visible.tolist() == [[True, True, False, True], [True, False, True, True]]
    with pytest.raises(DataError, match="2 separate edits cannot answer 3 rows"):
        editor.apply_each(each, requests_[:3])


def test_extra_parameters_are_the_network_and_the_keys(editor, vlm, requests_):
    learnt = sum(p.numel() for p in network_of(editor, vlm).parameters())
    width = 2 * editor.config.scope_width
    assert editor.apply(vlm, requests_).extra_parameters == learnt + 4 * width
    assert editor.apply_each(vlm, requests_).extra_parameters == learnt + width


# Answers


def with_threshold(editor: SERAC, vlm: VLM, requests: Sequence[Example], value: float) -> SERACVLM:
    edited = edited_by(editor, vlm, requests)
    return SERACVLM(edited.inner, edited.network, edited.memory, threshold=value)


def test_out_of_scope_the_vlm_answers_bit_for_bit(editor, vlm, requests_):
    edited = with_threshold(editor, vlm, requests_, 1.0)
    assert torch.equal(edited.predict(requests_).logits, vlm.predict(requests_).logits)
    said = edited.generate(requests_, max_new_tokens=4)
    assert said == vlm.generate(requests_, max_new_tokens=4)


def test_rows_out_of_scope_are_asked_in_the_whole_batch(editor, vlm, requests_):
    """As the base model is asked, so that not even a digit depends on the other rows' scope."""
    noted = CountedVLM(vlm)
    edited = edited_by(editor, noted, requests_[:1])
    unrelated = Example(prompt="what is the capital of Italy?", target="Rome")
    asked = [unrelated, requests_[0]]
    found, before = edited.predict(asked), vlm.predict(asked)
    assert torch.equal(found.logits[0], before.logits[0])
    assert not torch.equal(found.logits[1], before.logits[1])
    edited.generate(asked, max_new_tokens=1)
    assert noted.asked == 2 * len(asked)
    edited.generate(asked[1:], max_new_tokens=1)
    assert noted.asked == 2 * len(asked)


def test_in_scope_the_counterfactual_model_answers(editor, vlm, requests_):
    edited = with_threshold(editor, vlm, requests_, 0.0)
    asked = [replace(request, target="yes it is") for request in requests_[:2]]
    found = edited.predict(asked)
    network = network_of(editor, vlm)
    for row, example in enumerate(asked):
        _, nearest = edited.memory.nearest(embed(editor, vlm, [example]), {})
        edit = requests_[int(nearest)]
        logits = network.counterfactual(make_inputs([edit], [example], vlm.frozen), vlm.frozen)
        text = vlm.predict([example]).is_text[0].sum()
        torch.testing.assert_close(found.logits[row, :text], logits[0, :text], rtol=1e-4, atol=1e-5)


def test_generation_is_routed_row_by_row(editor, vlm, requests_):
    """Greedy tokens of the model that the row's prediction comes from."""
    edited = edited_by(editor, vlm, requests_[:2])
    unrelated = Example(prompt="what is the capital of Italy?", target="Rome")
    asked = [unrelated, requests_[0], replace(unrelated, prompt="what is the capital of Spain?")]
    score, _ = edited.memory.nearest(embed(editor, vlm, asked), {})
    assert (score > 0.5).tolist() == [False, True, False]
    said = edited.generate(asked, max_new_tokens=5)
    assert [said[0], said[2]] == vlm.generate([asked[0], asked[2]], max_new_tokens=5)
    answers = make_inputs(requests_[:1], asked[1:2], vlm.frozen)
    made = network_of(editor, vlm).counterfactual.answer(answers, vlm.frozen, max_new_tokens=5)
    assert said[1] == made[0].text


def test_generated_tokens_are_the_likeliest_predicted_ones(editor, vlm, requests_):
    frozen, model = vlm.frozen, network_of(editor, vlm).counterfactual
    rows = make_inputs(requests_, requests_, frozen)
    (end,) = frozen.ends
    for row in rows:
        ids: list[int] = []
        while len(ids) < 4 and end not in ids:
            asked = row.asked._replace(answer=tuple(ids))
            logits = model([Briefing(row.edit, asked, row.image)], frozen)
            ids.append(int(logits[0, -1].argmax()))
        (said,) = model.answer([row], frozen, max_new_tokens=4)
        assert [said.text] == frozen.decode(torch.tensor([ids]))
        assert said.is_cut_off == (end not in ids)
    together = model.answer(rows, frozen, max_new_tokens=4)
    assert together == [model.answer([row], frozen, max_new_tokens=4)[0] for row in rows]


def test_logits_are_those_of_the_whole_sequence(vlm, requests_):
    """Against a plain forward over all positions of one row, without padding."""
    model = untrained(vlm).counterfactual
    frozen = vlm.frozen
    rows = make_inputs(requests_[1:3], requests_[:2], frozen)
    found = model(rows, frozen)
    (separator,) = frozen.tokenize(["\n"])
    for number, row in enumerate(rows):
        assert row.image is not None
        text = [*row.asked.prompt, *row.asked.answer]
        ids = torch.tensor([*row.edit.prompt, *row.edit.answer, *separator, *text])
        kinds = torch.tensor(
            [0] * len(row.image) + [1] * len(row.edit.prompt) + [2] * len(row.edit.answer)
            + [3] * (len(separator) + len(text))
        )  # fmt: skip
        embedded = torch.cat([model.projection(row.image), model.lm.get_input_embeddings()(ids)])
        embedded = embedded + model.kinds(kinds)
        logits = model.lm(inputs_embeds=embedded[None]).logits[0, -len(text) - 1 :]
        torch.testing.assert_close(found[number, : len(text) + 1], logits, rtol=1e-4, atol=1e-5)


def test_end_of_the_answer_is_learnt_from_the_token_behind_it(vlm, requests_):
    network = untrained(vlm)
    keys = network.scope(requests_, vlm.frozen)
    told_of: list[Tensor] = []
    own = torch.eye(len(requests_), dtype=torch.bool)
    memory = Memory(edits=tuple(requests_), keys=keys, visible=own)
    SoftSERACVLM(
        vlm, network, memory, threshold=0.5, on_asked=lambda _, ends: told_of.append(ends)
    ).predict(requests_)
    for row, request in enumerate(requests_):
        logits = network.counterfactual(make_inputs([request], [request], vlm.frozen), vlm.frozen)
        wanted = -logits[0, -1].log_softmax(-1)[vlm.frozen.ends[0]]
        torch.testing.assert_close(told_of[0][row], wanted, rtol=1e-4, atol=1e-5)


def test_projection_of_the_image_is_trained_and_kept(vlm, cases, editor, tmp_path: Path):
    """The published code draws it anew for every edit."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        start = untrained(vlm).counterfactual.projection.weight
    trained = network_of(editor, vlm).counterfactual.projection.weight
    assert not torch.allclose(trained, start)
    editor.save(tmp_path)
    loaded = SERAC.load(tmp_path)
    assert torch.equal(network_of(loaded, vlm).counterfactual.projection.weight, trained)
    asked = [case.probes[Probe.IMAGE_GENERALITY][0] for case in cases[:4]]
    requests = [case.request for case in cases[:4]]
    wanted = editor.apply(vlm, requests).predict(asked).logits
    assert torch.equal(loaded.apply(vlm, requests).predict(asked).logits, wanted)


def test_every_parameter_has_a_gradient_in_every_step(vlm, cases):
    """As data parallelism wants it; also in a batch without an image."""
    no_images = [
        EditCase(
            id=case.id,
            request=replace(case.request, image=None),
            probes={
                probe: tuple(replace(example, image=None) for example in examples)
                for probe, examples in case.probes.items()
                if probe is not Probe.RELIABILITY
            },
        )
        for case in cases[:3]
    ]
    for kind in KINDS:
        learner = SERAC(config(**of_kind(kind))).learner(vlm, untrained(vlm, scope=kind), cases)
        for batch in (cases[:3], no_images):
            learner.zero_grad()
            learner(batch)[0].backward()
            assert [n for n, p in learner.named_parameters() if p.grad is None] == []


# Pretrained parts


def test_sentence_scope_starts_as_the_cosine_of_the_sentences(vlm, requests_):
    network = untrained(vlm, "text-sentences")
    embedded = load_sentence_encoder(saved_encoder(), vlm.device)([r.prompt for r in requests_])
    memory = Memory(edits=tuple(requests_), keys=network.scope(requests_, vlm.frozen))
    score, _ = memory.nearest(network.scope(requests_[:1], vlm.frozen), network.similarity)
    cosine = (embedded[:1] @ embedded.T).max(1).values
    torch.testing.assert_close(score, (2 * cosine - 2).exp(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [f"{scope}-sentences" for scope in SCOPES])
def test_sentence_encoder_stays_outside_the_saved_editor_which_is_held_to_it(
    vlm, cases, requests_, tmp_path: Path, kind: str
):
    folder = save_encoder(tmp_path / "encoder")
    scope, _, _ = kind.partition("-")
    editor = SERAC(config(scope=scope, sentence_encoder=str(folder))).fit(vlm, Fitting(cases))
    assert not any("encoder" in name for name in editor.state())
    editor.save(tmp_path / "editor")
    loaded = SERAC.load(tmp_path / "editor")
    assert torch.equal(embed(loaded, vlm, requests_), embed(editor, vlm, requests_))
    save_encoder(folder, seed=1)
    with pytest.raises(EditorError, match="fitted with another sentence encoder"):
        SERAC.load(tmp_path / "editor")


def test_settings_that_a_sentence_encoder_replaces_are_refused():
    for key, value in (("scope_encoder", "a/b"), ("scope_width", 8), ("scope_layers", 1)):
        with pytest.raises(ConfigError, match=f"{key} has no effect with a sentence_encoder"):
            load_editor("serac-minilm", "embedded", **{key: value})


def test_text_scope_starts_from_a_pretrained_encoder(vlm, cases, requests_, tmp_path: Path):
    tokenizer = tiny.build_processor().tokenizer
    size = DistilBertConfig(vocab_size=len(tokenizer), dim=16, hidden_dim=32, n_layers=1, n_heads=2)
    DistilBertModel(size).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    pretrained = DistilBertModel.from_pretrained(tmp_path)
    editor = SERAC(config(scope="text", scope_encoder=str(tmp_path), lr=1e-12))
    editor = editor.fit(vlm, Fitting(cases))
    read = tokenizer(requests_[0].prompt, return_tensors="pt")
    with torch.no_grad():
        wanted = pretrained(
            input_ids=read["input_ids"], attention_mask=read["attention_mask"]
        ).last_hidden_state[:, 0]
    torch.testing.assert_close(embed(editor, vlm, requests_[:1]), wanted, rtol=1e-4, atol=1e-5)
    editor.save(tmp_path / "editor")
    loaded = SERAC.load(tmp_path / "editor")
    assert torch.equal(embed(loaded, vlm, requests_), embed(editor, vlm, requests_))


def tiny_opt(folder: Path, vlm: NetworkVLM, vocabulary: int) -> OPTForCausalLM:
    model = OPTForCausalLM(
        OPTConfig(
            dtype="float16",
            vocab_size=vocabulary, hidden_size=16, ffn_dim=32, num_hidden_layers=1,
            num_attention_heads=2, max_position_embeddings=512, word_embed_proj_dim=16,
        )
    )  # fmt: skip
    model.save_pretrained(folder)
    vlm.adapter.tokenizer.save_pretrained(folder)
    return model


@pytest.mark.parametrize("more", [0, 24, -8])
def test_counterfactual_model_starts_from_a_pretrained_one(
    vlm, cases, requests_, tmp_path: Path, more: int
):
    """Also where its vocabulary is padded to another size than the VLM's."""
    vocabulary = vlm.frozen.vocabulary
    pretrained = tiny_opt(tmp_path, vlm, vocabulary + more)
    editor = SERAC(config(counterfactual=str(tmp_path), lr=1e-12))
    editor = editor.fit(vlm, Fitting(cases))
    lm = network_of(editor, vlm).counterfactual.lm
    weight = pretrained.get_input_embeddings().weight
    torch.testing.assert_close(lm.get_input_embeddings().weight, weight, rtol=0, atol=1e-6)
    assert lm.dtype == torch.float32  # though its config says half precision, to train in
    edited = with_threshold(editor, vlm, requests_, 0.0)
    found, before = edited.predict(requests_), vlm.predict(requests_)
    assert found.logits.shape[-1] == vocabulary
    answer = found.is_answer
    log_base, log_edited = (p.logits[answer].log_softmax(-1) for p in (before, found))
    assert log_edited.min() > -100
    if more < 0:  # tokens that it lacks are as likely as before
        torch.testing.assert_close(log_edited[:, more:], log_base[:, more:], rtol=1e-4, atol=1e-4)
    assert kl(before.logits, found.logits, answer).isfinite().all()
    assert kl(found.logits, before.logits, answer).isfinite().all()


def test_probabilities_over_the_larger_vocabulary_sum_to_one():
    random = torch.Generator().manual_seed(0)
    base, ours = (torch.randn(2, 3, size, generator=random) for size in (9, 6))
    made = over_vocabulary(ours, base).softmax(-1)
    known = base.softmax(-1)[..., :6].sum(-1, keepdim=True)
    torch.testing.assert_close(made[..., 6:], base.softmax(-1)[..., 6:])
    torch.testing.assert_close(made[..., :6], ours.softmax(-1) * known)
    assert torch.equal(over_vocabulary(base, base), base)
    assert torch.equal(over_vocabulary(base, ours), base[..., :6])


def test_a_counterfactual_model_without_an_end_token_is_refused(vlm, cases, tmp_path, monkeypatch):
    tiny_opt(tmp_path, vlm, vlm.frozen.vocabulary - 8)
    stops = replace(vlm.adapter.stops, ends=(vlm.frozen.vocabulary - 1,))
    monkeypatch.setattr(vlm.adapter, "stops", stops)
    with pytest.raises(ModelError, match="none of them ends an answer of the VLM"):
        SERAC(config(counterfactual=str(tmp_path))).fit(vlm, Fitting(cases))


def test_a_question_that_the_counterfactual_model_cannot_take_is_refused(editor, vlm, requests_):
    long = replace(requests_[0], prompt="what color is it? " * 60)
    model = network_of(editor, vlm).counterfactual
    with pytest.raises(ModelError, match=r"make a sequence of \d+ tokens; the .* model takes 512"):
        model(make_inputs([long], [long], vlm.frozen), vlm.frozen)


def test_counterfactual_model_with_other_tokens_is_refused(vlm, cases, tmp_path: Path):
    tiny_opt(tmp_path, vlm, vlm.frozen.vocabulary)
    tiny.build_processor().tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="cuts texts into other tokens than the VLM"):
        SERAC(config(counterfactual=str(tmp_path))).fit(vlm, Fitting(cases))


@pytest.mark.parametrize("part", ["counterfactual", "scope_encoder"])
def test_pretrained_part_that_is_nowhere_is_named(vlm, cases, tmp_path: Path, part: str):
    with pytest.raises(ModelError, match=r"nowhere' cannot be loaded"):
        SERAC(config(scope="text", **{part: str(tmp_path / "nowhere")})).fit(vlm, Fitting(cases))


@pytest.mark.parametrize(
    ("scope", "read"), [("multimodal", "encode_image"), ("fused", "forward_intermediates")]
)
def test_scopes_take_openclips_embeddings_each_image_once(
    vlm, cases, requests_, monkeypatch, scope: str, read: str
):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clip = open_clip.CLIP(
            embed_dim=12,
            vision_cfg=cast(Any, {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}),
            text_cfg=cast(Any, {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1,
                                "layers": 1}),
        )  # fmt: skip
    transform = open_clip.image_transform(32, is_train=False)
    tokenizer = open_clip.get_tokenizer("RN50")
    monkeypatch.setattr(towers, "load_clip", lambda *args, **settings: (clip, transform, tokenizer))
    seen: list[int] = []
    encode = getattr(clip, read)
    monkeypatch.setattr(
        clip, read, lambda image, **k: (seen.append(len(image)), encode(image, **k))[1]
    )
    editor = SERAC(config(scope=scope, clip=f"tiny/random-{scope}"))
    editor = editor.fit(vlm, Fitting(cases))
    embedded = embed(editor, vlm, requests_)
    before = sum(seen)
    assert torch.equal(embed(editor, vlm, requests_), embedded)
    assert sum(seen) == before
    blank = [replace(request, image=None) for request in requests_]
    assert not torch.allclose(embed(editor, vlm, blank), embedded)
    if scope == "fused":  # 2 x 2 patches of an image of 32 x 32
        made = towers.ClipTowers("tiny/random-fused").tokens(requests_, vlm.frozen)
        assert [tuple(tokens.shape) for tokens in made] == [(4, 64)] * len(requests_)


# Settings


def test_settings_of_sites_are_refused():
    with pytest.raises(ConfigError, match=r"unknown key 'sites'"):
        load_editor("serac", "embedded", sites=["a"])


def test_settings_that_exclude_each_other_are_one_sentence():
    with pytest.raises(ConfigError, match=r"^editor serac: scope_width 128 cannot be cut into 3"):
        load_editor("serac", "embedded", heads=3)


def test_name_of_a_clip_must_name_its_weights():
    with pytest.raises(ConfigError, match="clip: expected ARCHITECTURE/WEIGHTS"):
        load_editor("serac", "embedded", clip="ViT-B-32")


def test_heads_must_divide_the_embedding():
    with pytest.raises(ValueError, match="cannot be cut into 3 equal heads"):
        config(heads=3)
