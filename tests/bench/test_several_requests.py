"""Cases whose edit has several requests: they are made together, in every mode."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import tiny

from mmedit.bench.base_outputs import BaseOutputs
from mmedit.bench.contradictions import find_contradictions
from mmedit.bench.jobs import Past, joint_jobs
from mmedit.bench.modes import Sequential
from mmedit.bench.protocol import Meter, NoEdit, evaluate
from mmedit.bench.rows import require_sound_rows
from mmedit.bench.sequential import sequential_jobs
from mmedit.cases import EditCase, Example, Probe, dataset_hash
from mmedit.config import load_cases, load_editor
from mmedit.errors import DataError, EditorError
from mmedit.vlm.interface import VLM
from mmedit.vlm.network import NetworkVLM

SAMPLE = Path(__file__).parents[2] / "data" / "samples" / "cckeb"


def seen(number: int, target: str = "no") -> Example:
    return Example(prompt=f"{number}?", target=target, image=tiny.IMAGES[0])


def told(number: int, target: str = "yes") -> Example:
    return Example(prompt=f"and {number}?", target=target)


CASES = [EditCase(id=str(n), request=seen(n), also=(told(n),)) for n in range(3)]
PAIRS = [["0?", "and 0?"], ["1?", "and 1?"], ["2?", "and 2?"]]


class Noted(NoEdit):
    """Notes the requests of every `apply`, and returns another VLM than it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[list[str]] = []

    def apply(self, vlm: VLM, requests: Sequence[Example]) -> VLM:
        self.made.append([request.prompt for request in requests])
        return vlm

    def apply_each(self, vlm: VLM, requests: Sequence[Example]) -> VLM:
        raise AssertionError("apply_each makes one request for each row")


def test_separate_edits_are_made_one_by_one_with_all_their_requests(vlm: NetworkVLM):
    editor = Noted()
    records = list(evaluate(vlm, editor, CASES, name="x", batch_size=2))
    assert editor.made == PAIRS
    assert [(r.case_id, r.batch, r.edits, r.place) for r in records] == [
        (case.id, 1, 1, 1) for case in CASES
    ]


def test_one_such_case_in_a_batch_is_enough(vlm: NetworkVLM):
    editor, single = Noted(), EditCase(id="single", request=seen(7))
    records = list(evaluate(vlm, editor, [single, CASES[0]], name="x", batch_size=2))
    assert editor.made == [["7?"], PAIRS[0]]
    assert [record.case_id for record in records] == ["single", "0"]


def test_edits_made_at_once_have_all_requests_of_all_cases(vlm: NetworkVLM):
    editor = Noted()
    for job in joint_jobs(Meter(BaseOutputs(vlm), name="x"), editor, CASES, 2):
        job.run()
    assert editor.made == [[*PAIRS[0], *PAIRS[1]], PAIRS[2]]


def test_in_a_sequence_each_edit_has_all_its_requests(vlm: NetworkVLM, monkeypatch):
    editor = Noted()
    monkeypatch.setattr("mmedit.bench.sequential.NoEdit", type(None))  # measure it like others
    mode, meter = Sequential(ability_every=0), Meter(BaseOutputs(vlm), name="x")
    list(sequential_jobs(mode, meter, editor, CASES, Past(records={})))
    assert editor.made == PAIRS


def test_an_editor_of_one_method_cannot_make_several_requests_together(vlm: NetworkVLM):
    class Own:
        def apply_each(self, vlm: VLM, requests: Sequence[Example]) -> VLM:
            return vlm

    with pytest.raises(EditorError, match="'0' has 2 requests, and own has no `apply`"):
        list(evaluate(vlm, cast(Any, Own()), CASES, name="own"))


def test_a_case_stands_for_all_its_requests_where_edits_are_made_together(vlm: NetworkVLM):
    editor = Noted()
    editor.apply(vlm, cast(Any, [CASES[0], seen(5)]))
    assert editor.made == [[*PAIRS[0], "5?"]]
    with pytest.raises(DataError, match=r"'0' has 2 requests.*use apply\(vlm, \[case\]\)"):
        editor.apply_each(vlm, cast(Any, [CASES[0]]))


def test_a_further_request_is_part_of_the_hash_and_none_leaves_it_as_it_was():
    alone = EditCase(id="0", request=seen(0))
    hashes = {dataset_hash([case]) for case in (alone, CASES[0], EditCase(
        id="0", request=seen(0), also=(told(0, "other"),)
    ))}  # fmt: skip
    assert len(hashes) == 3
    assert dataset_hash([alone]) == dataset_hash([EditCase(id="0", request=seen(0), also=())])


def test_a_further_request_that_another_case_contradicts_is_found():
    other = EditCase(id="other", request=seen(8), also=(told(0, "never"),))
    probed = EditCase(id="p", request=seen(9), probes={Probe.TEXT_LOCALITY: (told(0, "what?"),)})
    found = find_contradictions([CASES[0], other, probed])
    assert found.counts == {"request": 1, "text_locality": 1}
    assert [case.id for case in found.cases] == ["0", "p"]


def test_a_further_request_that_cannot_be_asked_is_named_before_anything_is_measured(vlm):
    case = EditCase(id="0", request=seen(0), also=(told(0, "long " * 2000),))
    with pytest.raises(DataError, match="case '0', request: "):
        require_sound_rows(vlm, [case])


def test_what_is_no_list_of_examples_is_refused():
    with pytest.raises(DataError, match="the further requests of case 'a' is not a list"):
        EditCase(id="a", request=seen(0), also=cast(Any, ("text",)))


def test_both_edits_of_cckeb_are_in_the_edited_model(vlm: NetworkVLM):
    cases = load_cases("cckeb", "test", root=SAMPLE)[:1]
    [record] = evaluate(vlm, load_editor("ft", vlm, steps=25), cases)
    assert [
        record.probes[probe][0].post.exact_match
        for probe in (Probe.RELIABILITY, Probe.TEXT_RELIABILITY)
    ] == [1.0, 1.0]
    [composed] = record.probes[Probe.COMPOSITIONAL_RELIABILITY]
    assert (composed.target, composed.image) == ("New Delhi", cases[0].request.image and
            record.probes[Probe.RELIABILITY][0].image)  # fmt: skip
