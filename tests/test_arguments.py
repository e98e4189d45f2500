"""A plain argument is accepted, and every other one is one error of mmedit's own."""

from __future__ import annotations

from collections.abc import Callable
from inspect import unwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import SEEN

from mmedit import evaluate
from mmedit.bench.protocol import NoEdit
from mmedit.cases import EditCase
from mmedit.deltas import LowRank
from mmedit.editors.fitting import Fitting
from mmedit.errors import ConfigError, DataError, EditorError, MmeditError, ModelError, SiteError
from mmedit.methods.ft import FT, FTConfig
from mmedit.methods.ike import IKE, IKEConfig
from mmedit.metrics.multiclass_log_probs import multiclass_log_probs
from mmedit.vlm.network import NetworkVLM

REQUEST, CASE = SEEN[0], EditCase(id="1", request=SEEN[0])
# Without their types: what is given wrong is the point here.
measure: Any = evaluate
FineTuning: Any = FT
Training: Any = Fitting


def ft() -> Any:
    return FT(FTConfig(steps=1))


def deltas(vlm: NetworkVLM, edits: int) -> dict[str, LowRank]:
    site = vlm.sites("language")[0]
    out, in_ = vlm.shape(site)
    return {site: LowRank(torch.ones(edits, 1, out), torch.ones(edits, 1, in_))}


def test_one_example_alone_is_accepted_where_a_list_is_expected(tiny_vlm: NetworkVLM):
    one: Any = REQUEST
    assert torch.equal(tiny_vlm.predict(one).logits, tiny_vlm.predict([REQUEST]).logits)
    assert tiny_vlm.generate(one, max_new_tokens=2) == tiny_vlm.generate(
        [REQUEST], max_new_tokens=2
    )
    alone, listed = ft().apply(tiny_vlm, one), ft().apply(tiny_vlm, [REQUEST])
    assert torch.equal(alone.predict([REQUEST]).logits, listed.predict([REQUEST]).logits)


def test_a_case_stands_for_its_request_where_edits_are_made(tiny_vlm: NetworkVLM):
    for requests in (CASE, [CASE], (case for case in [CASE])):
        edited = ft().apply(tiny_vlm, requests)
        expected = ft().apply(tiny_vlm, [REQUEST])
        assert torch.equal(edited.predict([REQUEST]).logits, expected.predict([REQUEST]).logits)


def test_one_case_alone_is_evaluated_and_cases_alone_are_fitted_on(tiny_vlm: NetworkVLM):
    one: Any = CASE
    assert [record.case_id for record in evaluate(tiny_vlm, NoEdit(), one)] == ["1"]
    editor: Any = IKE(IKEConfig(k=1))
    assert editor.fit(tiny_vlm, [CASE]).is_fitted


def test_a_site_may_be_named_alone(tiny_vlm: NetworkVLM):
    site: Any = tiny_vlm.sites("language")[0]
    assert tiny_vlm.capture([REQUEST], site).x.keys() == {site}


REFUSED: list[tuple[Callable[[Any], object], type[MmeditError], str]] = [
    (lambda v: v.predict("what?"), DataError, "'what\\?' was given where a list of Examples"),
    (lambda v: v.predict(None), DataError, "None was given where a list of Examples"),
    (lambda v: v.predict([]), DataError, "no examples were given"),
    (lambda v: v.predict([CASE]), DataError, "name what is asked: case.request"),
    (lambda v: v.predict(["what?"]), DataError, "the list holds 'what\\?', of type str"),
    (lambda v: v.represent(5), DataError, "5 was given where a list of Examples"),
    (lambda v: v.generate("what?", max_new_tokens=2), DataError, "a list of Examples is expected"),
    (lambda v: v.generate([REQUEST], max_new_tokens=0), ConfigError, "max_new_tokens is 0"),
    (lambda v: v.generate([REQUEST], max_new_tokens=1.5), ConfigError, "a whole number from 1 on"),
    (lambda v: v.generate([REQUEST], max_new_tokens=True), ConfigError, "max_new_tokens is True"),
    (lambda v: v.sites("brain"), MmeditError, "no part of a VLM named 'brain'"),
    (lambda v: v.shape(5), SiteError, "5 was given as an edit site"),
    (lambda v: v.capture([REQUEST], []), SiteError, r"the sites are \[\]; expected names"),
    (
        lambda v: v.with_deltas({"a": torch.ones(2, 2)}),
        SiteError,
        "expected a dictionary of LowRank",
    ),
    (lambda v: v.with_deltas(deltas(v, 2)).select([2]), SiteError, "expected 0 to 1"),
    (lambda v: v.with_deltas(deltas(v, 2)).select([-1]), SiteError, "row -1 was selected"),
    (lambda v: v.select(["a"]), SiteError, "expected whole numbers"),
    (lambda v: ft().apply("embedded", [REQUEST]), ModelError, r"mmedit.load_vlm\('embedded'\)"),
    (lambda v: ft().apply(None, [REQUEST]), ModelError, "None was given where a VLM is expected"),
    (lambda v: ft().apply_each(v, "what?"), DataError, "'what\\?' was given"),
    (lambda v: ft().apply(v, [5]), DataError, "the list holds 5, of type int"),
    (lambda v: ft().require_fits("embedded"), ModelError, "where a VLM is expected"),
    (lambda v: ft().fit(v, [REQUEST]), DataError, "was given where a case is expected"),
    (lambda v: Training([CASE], seed=-1), ConfigError, "seed is -1"),
    (lambda v: Training([CASE], seed=2**64), ConfigError, "expected at most"),
    (lambda v: FineTuning({"lr": 1}), ConfigError, r"expected FTConfig\(\.\.\.\)"),
    (lambda v: ft().save(None), EditorError, "None is not a folder"),
    (lambda v: FineTuning.load(""), EditorError, "'' is not a folder"),
    (lambda v: measure(v, "ft", [CASE]), EditorError, r"mmedit.load_editor\('ft', vlm\)"),
    (lambda v: measure("embedded", NoEdit(), [CASE]), ModelError, "where a VLM is expected"),
    (lambda v: measure(v, NoEdit(), [REQUEST]), DataError, "where a case is expected"),
    (lambda v: measure(v, NoEdit(), "easyvqa"), DataError, "a list of EditCases is expected"),
    (lambda v: measure(v, NoEdit(), [CASE], batch_size=1.5), ConfigError, "batch_size is 1.5"),
    (lambda v: measure(v, NoEdit(), [CASE], max_new_tokens=-1), ConfigError, "from 0 on"),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_a_wrong_argument_is_one_line_that_says_what_to_give(tiny_vlm: NetworkVLM, number: int):
    call, error, said = REFUSED[number]
    with pytest.raises(error, match=said) as raised:
        call(tiny_vlm)
    assert "\n" not in str(raised.value)


def test_an_edit_that_does_not_exist_cannot_be_selected_of_separate_contexts(tiny_vlm: NetworkVLM):
    edited = IKE(IKEConfig(k=0)).apply_each(tiny_vlm, [REQUEST, REQUEST])
    for row in (2, -1):
        with pytest.raises(SiteError, match=f"row {row} was selected of 2 separate edits"):
            edited.select([row])


def test_arguments_are_checked_by_name_too(tiny_vlm: NetworkVLM):
    one: Any = REQUEST
    tiny_vlm.predict(examples=one)
    with pytest.raises(ModelError, match="where a VLM is expected"):
        ft().apply(vlm=None, requests=[REQUEST])


def test_an_editor_is_saved_to_a_folder_named_by_a_text(tmp_path: Path):
    ft().save(str(tmp_path / "ft"))
    assert FT.load(str(tmp_path / "ft")).config == ft().config


def test_scores_are_those_of_tensors_where_arrays_are_given():
    logits, labels = torch.eye(3)[torch.tensor([[0, 1, 2]])], torch.tensor([[0, 1, 1]])
    found = multiclass_log_probs(logits.numpy(), labels.numpy())
    assert torch.equal(found.log_prob, multiclass_log_probs(logits, labels).log_prob)


def test_logits_that_are_neither_tensors_nor_arrays_are_refused():
    plain: Any = unwrap(multiclass_log_probs)  # the tests' own check of types comes first
    with pytest.raises(DataError, match=r"given as list; expected tensors: torch\.tensor"):
        plain([[0.0, 1.0]], np.array([1]))
