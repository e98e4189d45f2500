"""A model whose outputs are not finite has no scores: none of them is 0, or counts as one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from counted_vlm import CountedVLM

from mmedit.bench.base_outputs import BaseOutputs
from mmedit.bench.generation import GenerationScorer
from mmedit.bench.protocol import NoEdit, evaluate
from mmedit.bench.scoring import measure
from mmedit.cases import EditCase, Example, Probe
from mmedit.errors import ModelError
from mmedit.metrics.locality import exact, locality, top1, topk_ordered, topk_set
from mmedit.metrics.multiclass_log_probs import exact_match, multiclass_log_probs, token_accuracy
from mmedit.records.schema import ProbeRecord, Record
from mmedit.vlm.interface import VLM
from mmedit.vlm.outputs import Predictions

LOCAL = Example(prompt="what is the capital of Albania?", target="Tirana", image=tiny.IMAGES[0])
OTHER = replace(LOCAL, prompt="is there a red circle?")


class Broken(CountedVLM):
    """Gives one bad logit at a place of the first row: counted from the end of the text."""

    def __init__(self, inner: VLM, value: float, place: int = -1) -> None:
        super().__init__(inner)
        self.value, self.place = value, place

    def predict(self, examples: Sequence[Example], **how: Any) -> Predictions:
        found = super().predict(examples, **how)
        logits = found.logits.clone()
        last = int(found.is_text[0].nonzero().max())
        logits[0, last + 1 + self.place, 3] = self.value
        return replace(found, logits=logits)


def floats(measured: Any) -> list[float]:
    return [value for _, value in measured if isinstance(value, float)]


def asked(base: VLM, edited: VLM, probe: Probe = Probe.IMAGE_LOCALITY) -> list[ProbeRecord]:
    return measure(
        BaseOutputs(base),
        edited,
        [(probe, LOCAL), (probe, OTHER)],
        max_new_tokens=2,
        scorer=GenerationScorer(fluency_tokens=3),
    )


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("probe", [Probe.RELIABILITY, Probe.IMAGE_LOCALITY])
def test_every_score_of_a_broken_edited_model_is_nan(tiny_vlm, value, probe):
    broken, sound = asked(tiny_vlm, Broken(tiny_vlm, value), probe)
    assert (broken.is_finite, sound.is_finite) == (False, True)
    assert broken.pre.is_finite
    measured = [broken.post, broken.generation_post, broken.locality]
    found = [number for one in measured if one is not None for number in floats(one)]
    assert len(found) >= 6
    assert all(map(math.isnan, found))
    assert broken.post.n_tokens == broken.pre.n_tokens
    assert sound.post == sound.pre
    again = ProbeRecord.model_validate_json(broken.model_dump_json())
    assert not again.is_finite
    assert math.isnan(again.post.token_accuracy)


def test_locality_is_nan_where_a_token_of_the_prompt_is_broken(tiny_vlm):
    """It compares all text, though the answer alone is scored."""
    broken, sound = asked(tiny_vlm, Broken(tiny_vlm, math.nan, place=-8))
    assert all(map(math.isnan, [*floats(broken.locality), *floats(broken.post)]))
    assert sound.is_finite


@pytest.mark.parametrize("place", [-1, -8])
def test_a_broken_base_model_has_no_locality(tiny_vlm, place):
    broken, sound = asked(Broken(tiny_vlm, math.nan, place), tiny_vlm)
    assert all(map(math.isnan, floats(broken.locality)))
    assert (broken.is_finite, sound.is_finite) == (False, True)


def test_a_base_model_with_nan_outputs_is_refused_before_anything_is_measured(tiny_vlm):
    broken = Broken(tiny_vlm, math.nan)
    with pytest.raises(ModelError, match="gives NaN or infinite logits for 'what is the capital"):
        evaluate(broken, NoEdit(), [EditCase(id="a", request=LOCAL)])
    assert broken.asked == 1


def test_a_record_of_an_earlier_version_tells_its_broken_outputs_too():
    scores = {"token_accuracy": 0.0, "exact_match": 0.0, "log_prob": "NaN", "n_tokens": 1}
    sound = scores | {"log_prob": -1.0}
    probe = {"prompt": "?", "target": "x", "image": None, "pre": sound, "post": scores}
    record = Record.model_validate(
        {
            "case_id": "a",
            "editor": "FT",
            "seconds": 1.0,
            "batch": 1,
            "peak_memory_bytes": 1,
            "seed": 0,
            "probes": {"reliability": [probe]},
        }
    )
    assert not record.probes[Probe.RELIABILITY][0].is_finite


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_every_metric_of_broken_logits_is_nan_in_their_row_alone(value):
    logits = torch.randn(2, 3, 12, generator=torch.Generator().manual_seed(0))
    broken = logits.clone()
    broken[0, 1, 4] = value
    target, mask = torch.zeros(2, 3, dtype=torch.long), torch.ones(2, 3, dtype=torch.bool)
    scores = multiclass_log_probs(broken, target)
    rows = [scores.token_accuracy, scores.exact_match, scores.log_prob, scores.token_prob]
    rows += [score(broken, target, mask) for score in (token_accuracy, exact_match)]
    for pair in ((logits, broken), (broken, logits)):
        rows += [score(*pair, mask) for score in (top1, exact, topk_ordered, topk_set)]
        moved = locality(*pair, is_text=mask, is_answer=mask)
        rows += [getattr(moved, name) for name in type(moved).__dataclass_fields__]
    assert [row.isnan().tolist() for row in rows] == [[True, False]] * len(rows)
