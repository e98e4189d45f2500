"""ROME, MEMIT, AlphaEdit and UltraEdit beyond what every editor promises."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from reuse import build

from mmedit.bench.snapshots import Snapshot, Snapshots
from mmedit.cases import EditCase, Example
from mmedit.datasets.easyvqa import cases as easyvqa
from mmedit.editors.closed_form import located
from mmedit.editors.closed_form.contexts import in_contexts
from mmedit.editors.closed_form.located import Located
from mmedit.editors.closed_form.values import find_values
from mmedit.editors.fitting import Fitting
from mmedit.edits.loading import load_edit
from mmedit.errors import ConfigError, DataError, EditError, EditorError, SiteError
from mmedit.methods.alphaedit import AlphaEdit, AlphaEditConfig
from mmedit.methods.memit import MEMIT, MEMITConfig
from mmedit.methods.rome import ROME, ROMEConfig
from mmedit.methods.ultraedit import UltraEdit, UltraEditConfig, answer_tokens
from mmedit.vlm.edit import DeltaChange, kept_of, nameless
from mmedit.vlm.network import NetworkVLM
from mmedit.vlm.outputs import Observed

ITALY, FRANCE, KENYA = (
    Example(prompt=f"what is the capital of {country}?", target=city, subject=country)
    for country, city in (("Italy", "Lusaka"), ("France", "Quito"), ("Kenya", "Oslo"))
)
COMMON: dict[str, Any] = {"position": "answer", "contexts": 1, "value": {"clamp": 2.0, "lr": 0.5}}


@pytest.fixture(scope="module")
def train() -> list[EditCase]:
    return list(easyvqa.EasyVQA().load("train", limit=40))


@pytest.fixture(scope="module")
def rome(vlm: NetworkVLM, train: list[EditCase]) -> ROME:
    return ROME(ROMEConfig(layers=(3,), **COMMON)).fit(vlm, Fitting(train))


@pytest.fixture(scope="module")
def alphaedit(vlm: NetworkVLM, train: list[EditCase]) -> AlphaEdit:
    config = AlphaEditConfig(layers=(2, 3), l2=0.1, tokens="all", eta=0.05, **COMMON)
    return AlphaEdit(config).fit(vlm, Fitting(train))


def says(vlm: Any, request: Example) -> bool:
    (said,) = vlm.generate([request], max_new_tokens=8)
    return said == request.target


def test_rome_writes_a_fact_that_the_model_then_generates(vlm, rome):
    edited = rome.apply(vlm, [ITALY])
    assert says(edited, ITALY)
    assert not says(vlm, ITALY)


def test_rome_writes_the_value_that_was_searched_for(vlm, rome):
    site = vlm.value_sites[3]
    start = rome.keys_at(vlm, [ITALY], [site], after=4)[site].output
    shift = rome.found_values(vlm, [ITALY], 3, start)
    edited = rome.apply(vlm, [ITALY])
    at = vlm.places([ITALY]).predicts_answer[0]
    found = edited.observe([ITALY], [site]).y[site][0][at]
    torch.testing.assert_close(found, (start + shift)[0], rtol=1e-3, atol=1e-3)


def test_rome_writes_the_facts_of_one_apply_one_after_the_other(vlm, rome):
    together = rome.apply(vlm, [ITALY, KENYA])
    one = rome.apply(rome.apply(vlm, [ITALY]), [KENYA])
    asked = [ITALY, KENYA, FRANCE]
    torch.testing.assert_close(
        together.predict(asked).logits, one.predict(asked).logits, rtol=1e-3, atol=1e-3
    )


def test_rome_without_covariance_needs_no_fit(vlm):
    editor = ROME(ROMEConfig(layers=(3,), covariance=False, **COMMON))
    assert not editor.needs_fit
    assert says(editor.apply(vlm, [ITALY]), ITALY)


def test_memit_writes_facts_together(vlm, train):
    editor = MEMIT(MEMITConfig(layers=(2, 3), weight=0.01, **COMMON)).fit(vlm, Fitting(train))
    edited = editor.apply(vlm, [ITALY, FRANCE, KENYA])
    assert [says(edited, fact) for fact in (ITALY, FRANCE, KENYA)] == [True] * 3
    (edit,) = edited.edits
    ranks = {len(delta.tensors()["u"]) for delta in (edit.deltas or {}).values()}
    answers = int(vlm.places([ITALY, FRANCE, KENYA]).predicts_answer.sum(1).max())
    assert ranks == {3 * answers}


def test_the_keys_of_an_alphaedit_travel_with_the_vlm(vlm, alphaedit, tmp_path):
    first = alphaedit.apply(vlm, [ITALY])
    twice = alphaedit.apply(first, [FRANCE])
    name = f"alphaedit.{vlm.value_sites[3]}"
    keys = int(vlm.places([ITALY]).predicts_answer.sum())
    assert [len(rows) for rows in kept_of(first.edits, name)] == [keys]
    whole = torch.cat(kept_of(twice.edits, name))
    assert torch.equal(torch.cat(kept_of(twice.merged().edits, name)), whole)
    twice.save(tmp_path / "two")
    loaded = vlm.with_edit(load_edit(tmp_path / "two"))
    assert torch.equal(torch.cat(kept_of(loaded.edits, name)), whole)
    assert torch.equal(
        alphaedit.apply(loaded, [KENYA]).predict([KENYA]).logits,
        alphaedit.apply(twice, [KENYA]).predict([KENYA]).logits,
    )


def test_an_alphaedit_protects_the_keys_of_edits_before_it(vlm, alphaedit):
    first = alphaedit.apply(vlm, [ITALY])
    forgetful = vlm.with_deltas(first.edits[0].deltas)
    (with_keys,), (without,) = (
        alphaedit.apply(one, [FRANCE]).edits[1:] for one in (first, forgetful)
    )
    site = vlm.value_sites[3]
    (past,) = kept_of(first.edits, f"alphaedit.{site}")

    def reached(edit: Any) -> float:
        assert isinstance(edit.change, DeltaChange)
        return float((past @ edit.change.deltas[site].tensors()["v"].mT).norm())

    assert reached(with_keys) < reached(without)


def test_a_snapshot_of_a_sequence_keeps_the_keys_of_an_alphaedit(vlm, alphaedit, tmp_path):
    first = alphaedit.apply(vlm, [ITALY])
    snapshots = Snapshots(tmp_path, "alphaedit", vlm)
    snapshots.save(Snapshot(0, 1, first))
    restored = snapshots.restore(0)
    assert restored is not None
    second = [
        alphaedit.apply(one, [FRANCE]).predict([KENYA]).logits for one in (first, restored.vlm)
    ]
    assert torch.equal(*second)


def test_settings_of_the_search_keep_the_defaults_of_the_method():
    assert MEMITConfig.model_validate({"value": {"steps": 10}}).value.clamp == 0.75
    assert AlphaEditConfig.model_validate({"value": {"steps": 10}}).value.lr == 0.1


def test_memit_refuses_a_network_that_changes_what_its_mlp_gives(train):
    gemma = build("gemma3")
    editor = MEMIT(MEMITConfig(layers=(1,)))
    with pytest.raises(SiteError, match="changed before it is added to the hidden state"):
        editor.fit(gemma, Fitting(train[:1]))


def test_alphaedit_refuses_a_null_space_that_means_nothing(vlm, train):
    editor = AlphaEdit(AlphaEditConfig(layers=(3,)))
    with pytest.raises(EditorError, match="null space would mean nothing"):
        editor.fit(vlm, Fitting(train[:2]))


@pytest.mark.parametrize("method", [ROME, MEMIT, AlphaEdit, UltraEdit])
def test_methods_with_statistics_ask_for_training_cases(vlm, method):
    with pytest.raises(DataError, match="needs training cases"):
        method(method.config_class()).fit(vlm, Fitting([]))
    with pytest.raises(EditorError, match="has not been fitted"):
        method(method.config_class()).apply(vlm, [ITALY])


def test_layers_that_do_not_exist_are_refused_before_fitting(vlm):
    with pytest.raises(SiteError, match="names layer 7; this VLM has the layers 0 to 3"):
        ROME(ROMEConfig(layers=(7,))).require_fits(vlm)


def test_layers_that_are_not_named_are_shares_of_the_depth(vlm):
    assert ROMEConfig().layers_of(vlm, ROME.usual_layers) == (0,)
    assert MEMITConfig().layers_of(vlm, MEMIT.usual_layers) == (0, 1)


def test_settings_without_effect_are_told():
    assert ROMEConfig(covariance=False).idle() == dict.fromkeys(
        ("tokens", "shrink"), "with covariance=false"
    )
    assert "eta" in AlphaEditConfig(threshold=0.02).idle()
    with pytest.raises(ConfigError, match="contexts"):
        ROMEConfig(contexts=11)


def test_ultraedit_reads_the_tokens_that_predict_the_answer(vlm, train):
    sites = vlm.sites("language")[-1:]
    h, g, real = answer_tokens(vlm, [ITALY, FRANCE], sites)[sites[0]]
    captured = vlm.capture([ITALY], sites)
    at = vlm.places([ITALY]).predicts_answer[0]
    count = int(at.sum())
    torch.testing.assert_close(h[0, :count], captured.x[sites[0]][0][at], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(g[0, :count], captured.delta[sites[0]][0][at], rtol=1e-4, atol=1e-5)
    assert real.sum(1).tolist() == vlm.places([ITALY, FRANCE]).predicts_answer.sum(1).tolist()


def test_ultraedit_of_one_request_changes_the_weight(vlm, train):
    editor = UltraEdit(UltraEditConfig(lr=3e-4)).fit(vlm, Fitting(train))
    edited = editor.apply(vlm, [ITALY])
    before, after = (
        float(one.capture([ITALY], vlm.sites("language")).nll) for one in (vlm, edited)
    )
    assert after < before / 2


def test_ultraedit_edits_the_language_model_alone(vlm, train):
    with pytest.raises(ConfigError, match="edits the language model; found bridge"):
        UltraEditConfig(where="bridge")
    editor = UltraEdit(UltraEditConfig(sites=vlm.sites("bridge")[:1]))
    with pytest.raises(SiteError, match="name sites of the language model"):
        editor.fit(vlm, Fitting(train[:4]))


def test_ultraedit_with_statistics_of_each_weight_has_as_many_as_weights(vlm, train):
    editor = UltraEdit(UltraEditConfig(share=False)).fit(vlm, Fitting(train[:8]))
    shared = UltraEdit(UltraEditConfig()).fit(vlm, Fitting(train[:8]))
    assert set(editor.learnt) == set(vlm.sites("language"))
    assert len(shared.learnt) == len({vlm.shape(site) for site in vlm.sites("language")})


@pytest.mark.parametrize("damage", ["tensor", "width", "image", "site"])
def test_a_damaged_editor_is_refused(vlm, rome, tmp_path, damage, monkeypatch):
    state = rome.state()
    site = vlm.value_sites[3]
    if damage == "tensor":
        state[site] = state[site].double()
    elif damage == "width":
        state[site] = state[site][:, 1:]
    elif damage == "image":
        state["image.0"] = state["image.0"].float()
    else:
        state["elsewhere"] = state.pop(site)
    monkeypatch.setattr(type(rome), "state", lambda _: state)
    rome.save(tmp_path / "editor")
    with pytest.raises(EditorError, match="fit the editor anew") as refused:
        ROME.load(tmp_path / "editor")
    assert "{" not in str(refused.value)


@pytest.mark.parametrize("method", [ROME, MEMIT, AlphaEdit])
def test_matrices_of_another_width_than_the_weight_are_refused(vlm, train, tmp_path, method):
    tokens = {"tokens": "all"} if method is AlphaEdit else {}
    config = method.config_class(layers=(3,), **tokens, **COMMON)
    fitted = method(config).fit(vlm, Fitting(train))
    site = vlm.value_sites[3]
    small = fitted.learnt.matrices[site][1:, 1:].contiguous()
    stranger = fitted.with_learnt(
        Located(matrices={site: small}, images=fitted.learnt.images), fitted.origin
    )
    stranger.save(tmp_path / "editor")
    loaded = method.load(tmp_path / "editor")
    width = vlm.shape(site)[1]
    for use in (lambda: loaded.require_fits(vlm), lambda: loaded.apply(vlm, [ITALY])):
        with pytest.raises(EditorError, match=f"has {width - 1:,} rows; expected {width:,}, one"):
            use()


def test_a_fitted_editor_whose_settings_name_other_layers_is_refused(vlm, rome):
    moved = ROME(ROMEConfig(layers=(2,), **COMMON), origin=rome.origin, learnt=rome.learnt)
    with pytest.raises(EditorError, match=r"fitted for .*3\.fc2'; its settings write at .*2\.fc2'"):
        moved.apply(vlm, [ITALY])


def test_an_alphaedit_that_is_as_wide_as_high_protects_everything_and_is_refused(
    vlm, alphaedit, tmp_path
):
    square = {site: torch.eye(len(one)) for site, one in alphaedit.learnt.matrices.items()}
    whole = alphaedit.with_learnt(Located(matrices=square, images=()), alphaedit.origin)
    whole.save(tmp_path / "editor")
    with pytest.raises(EditorError, match="expected a matrix of fewer columns than rows"):
        AlphaEdit.load(tmp_path / "editor")


@pytest.mark.parametrize("share", [True, False])
def test_statistics_of_other_weights_are_refused(vlm, train, share):
    editor = UltraEdit(UltraEditConfig(share=share)).fit(vlm, Fitting(train[:8]))
    first = next(iter(editor.learnt))
    cut = replace(editor.learnt[first], mean=editor.learnt[first].mean[1:])
    missing = {name: one for name, one in editor.learnt.items() if name != first}
    for learnt, found in ((editor.learnt | {first: cut}, "units"), (missing, "none")):
        with pytest.raises(EditorError, match=f"are .*{found}; expected .* inputs and"):
            editor.with_learnt(learnt, editor.origin).apply(vlm, [ITALY])


def test_kept_keys_of_another_width_are_refused(vlm, alphaedit):
    name = f"alphaedit.{vlm.value_sites[2]}"
    strange = vlm.with_deltas({}, edit=nameless(DeltaChange({}, kept={name: torch.ones(2, 3)})))
    with pytest.raises(EditError, match=r"keeps a tensor of shape \[2, 3\] for .*2\.fc2; expected"):
        alphaedit.apply(strange, [ITALY])


def test_the_keys_that_later_edits_must_leave_cost_one_forward_for_all_layers(
    vlm, alphaedit, monkeypatch
):
    asked: list[tuple[str, ...]] = []
    observe = NetworkVLM.observe

    def count(self: NetworkVLM, examples: Any, sites: Any, **how: Any) -> Observed:
        asked.append(tuple(sites))
        return observe(self, examples, sites, **how)

    monkeypatch.setattr(NetworkVLM, "observe", count)
    alphaedit.change(vlm, [ITALY])
    below, last = vlm.value_sites[2:]
    assert asked == [(below,), (last,), (below, last)]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("loaded", [False, True])
def test_matrices_of_a_fitted_editor_lie_in_files(vlm, alphaedit, tmp_path, loaded):
    if loaded:
        alphaedit.save(tmp_path / "editor")
        alphaedit = AlphaEdit.load(tmp_path / "editor")
    for matrix in alphaedit.learnt.matrices.values():
        assert file_at(matrix.data_ptr()).endswith((".safetensors", ".safetensors (deleted)"))


def test_factors_beyond_their_room_are_made_again_and_edits_are_the_same(vlm, train, monkeypatch):
    editor = MEMIT(MEMITConfig(layers=(2, 3), **COMMON)).fit(vlm, Fitting(train))
    logits = editor.apply(vlm, [ITALY]).predict([ITALY]).logits
    width = vlm.shape(vlm.value_sites[3])[1]
    assert editor.learnt._factors.bytes_used == 2 * 8 * width * width
    monkeypatch.setattr(located, "FACTORS", 0)
    again = editor.with_learnt(
        Located(matrices=editor.learnt.matrices, images=editor.learnt.images), editor.origin
    )
    assert torch.equal(again.apply(vlm, [ITALY]).predict([ITALY]).logits, logits)
    assert again.learnt._factors.bytes_used == 8 * width * width


def test_a_batch_of_the_search_is_bounded_by_tokens(vlm, rome, train, monkeypatch):
    asked: list[int] = []

    def find(*given: Any, **settings: Any) -> torch.Tensor:
        asked.append(len(given[3]))
        return find_values(*given, **settings)

    monkeypatch.setattr(located, "find_values", find)
    requests = [train[0].request, ITALY, KENYA, FRANCE]
    lengths = vlm.prompt_tokens(in_contexts(requests, 1))
    few = rome.config.model_copy(update={"together_tokens": 2 * 2 * max(lengths[2:])})
    bounded = ROME(few, origin=rome.origin, learnt=rome.learnt)
    found = bounded.apply_each(vlm, requests).predict(requests).logits
    assert asked == [1, 2, 1]
    whole = rome.apply_each(vlm, requests).predict(requests).logits
    assert asked == [1, 2, 1, 4]
    torch.testing.assert_close(found, whole, rtol=1e-3, atol=1e-2)


def file_at(address: int) -> str:
    """Return the name of the file that is mapped at an address, "" for none."""
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        span, _, _, _, _, *name = line.split(maxsplit=5)
        begin, end = (int(part, 16) for part in span.split("-"))
        if begin <= address < end:
            return name[0] if name else ""
    return ""


def test_an_edit_of_a_fact_is_small(vlm, rome, tmp_path):
    edited = rome.apply(vlm, [ITALY])
    edited.save(tmp_path / "fact")
    out, width = vlm.shape(vlm.value_sites[3])
    keys = int(vlm.places([ITALY]).predicts_answer.sum())
    assert edited.extra_parameters == keys * (out + width)


def test_image_mean_is_refused_for_a_text_fact(vlm, train):
    editor = ROME(ROMEConfig(layers=(1,), position="image_mean", covariance=False))
    with pytest.raises(EditError, match="has none; give the request an image"):
        editor.apply(vlm, [ITALY])
    seen = train[0].request
    edited = editor.apply(vlm, [seen])
    assert not torch.equal(edited.predict([seen]).logits, vlm.predict([seen]).logits)
