"""Fitted editors that locate facts: where matrices lie, and checks of the editors of others."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import located_editors
import pytest
import torch
from located_editors import COMMON, FRANCE, ITALY, KENYA

from mmedit.editors.closed_form import located
from mmedit.editors.closed_form.contexts import in_contexts
from mmedit.editors.closed_form.located import Located
from mmedit.editors.closed_form.moments import in_a_file
from mmedit.editors.closed_form.values import find_values
from mmedit.editors.fitting import Fitting
from mmedit.errors import EditError, EditorError
from mmedit.methods.alphaedit import AlphaEdit
from mmedit.methods.memit import MEMIT, MEMITConfig
from mmedit.methods.rome import ROME, ROMEConfig
from mmedit.methods.ultraedit import UltraEdit, UltraEditConfig
from mmedit.vlm.edit import DeltaChange, nameless
from mmedit.vlm.network import NetworkVLM
from mmedit.vlm.outputs import Observed

train, rome, alphaedit = located_editors.train, located_editors.rome, located_editors.alphaedit


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
    config: Any = method.config_class.model_validate({"layers": (3,), **tokens, **COMMON})
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
    monkeypatch.setattr(located, "FACTORS", 8 * width * width)
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


def test_a_matrix_stays_in_memory_where_its_folder_cannot_be_written(tmp_path):
    matrix = torch.arange(6.0).reshape(2, 3)
    (tmp_path / "a file").touch()
    for folder in (tmp_path, tmp_path / "gone", tmp_path / "a file"):
        assert torch.equal(in_a_file(matrix, folder), matrix)
    assert [file.name for file in tmp_path.iterdir()] == ["a file"]
