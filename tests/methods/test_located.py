"""ROME, MEMIT, AlphaEdit and UltraEdit beyond what every editor promises."""

from __future__ import annotations

from typing import Any

import located_editors
import pytest
import torch
from located_editors import COMMON, FRANCE, ITALY, KENYA
from reuse import build

from mmedit.bench.snapshots import Snapshot, Snapshots
from mmedit.cases import Example
from mmedit.editors.fitting import Fitting
from mmedit.edits.loading import load_edit
from mmedit.errors import ConfigError, DataError, EditError, EditorError, SiteError
from mmedit.methods.alphaedit import AlphaEdit, AlphaEditConfig
from mmedit.methods.memit import MEMIT, MEMITConfig
from mmedit.methods.rome import ROME, ROMEConfig
from mmedit.methods.ultraedit import UltraEdit, UltraEditConfig, answer_tokens
from mmedit.vlm.edit import DeltaChange, kept_of

train, rome, alphaedit = located_editors.train, located_editors.rome, located_editors.alphaedit


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
