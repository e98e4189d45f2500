"""Base and edited model answer the same batches, so nothing but the edit moves an answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from counted_vlm import CountedVLM

from mmedit.adapters.generation import Answer
from mmedit.bench.base_outputs import BaseOutputs
from mmedit.bench.jobs import Job, Past
from mmedit.bench.modes import Batch, Independent, Mode, Sequential
from mmedit.bench.protocol import EditState, Meter, NoEdit
from mmedit.bench.run import jobs
from mmedit.cases import EditCase, Example, Probe
from mmedit.deltas import Dense
from mmedit.editors.base import Editor
from mmedit.editors.config import EditorConfig
from mmedit.records.schema import Locality, ProbeRecord
from mmedit.vlm.interface import VLM
from mmedit.vlm.loading import load_vlm
from mmedit.vlm.network import NetworkVLM
from mmedit.vlm.outputs import Predictions

UNMOVED = Locality(
    top1_answer=1, exact_answer=1, top1_all=1, top10_ordered_all=1, top10_set_answer=1, kl=0
)
QUESTIONS = ("what is the capital of Albania?", "is there a red circle?", "yes or no?", "a photo")
MODES = (Independent(), Batch(k=3), Sequential(gaps=(1,), ability_every=2, ability_cases=2))


def cases(number: int = 4) -> list[EditCase]:
    made = []
    for place in range(number):
        image = tiny.IMAGES[place % 3]
        request = Example(prompt=tiny.CORPUS[place % 4], target=f"teal {place}", image=image)
        unrelated = Example(prompt=QUESTIONS[place % 4], target="Tirana " * (place % 3 + 1))
        seen = Example(prompt=QUESTIONS[(place + 1) % 4], target="blue", image=tiny.IMAGES[0])
        probes = {Probe.TEXT_LOCALITY: (unrelated,), Probe.IMAGE_LOCALITY: (seen,)}
        made.append(EditCase(id=str(place), request=request, probes=probes))
    return made


class Noise(Editor[EditorConfig]):
    """Adds noise of this size to the weights of a site."""

    method = "noise"
    config_class = EditorConfig

    def __init__(self, site: str, size: float) -> None:
        super().__init__(EditorConfig())
        self.site, self.size = site, size

    def apply(self, vlm: VLM, requests: Sequence[Example]) -> VLM:
        return vlm.with_deltas({self.site: Dense(self._drawn(vlm.shape(self.site)))})

    def apply_each(self, vlm: VLM, requests: Sequence[Example]) -> VLM:
        drawn = self._drawn((len(requests), *vlm.shape(self.site)))
        return vlm.with_deltas({self.site: Dense(drawn)})

    def _drawn(self, shape: tuple[int, ...]) -> torch.Tensor:
        return self.size * torch.randn(shape, generator=torch.Generator().manual_seed(0))


class Noted(CountedVLM):
    """Notes the batches that it is asked."""

    def __init__(self, inner: VLM) -> None:
        super().__init__(inner)
        self.batches: list[tuple[Example, ...]] = []

    def predict(self, examples: Sequence[Example], **how: Any) -> Predictions:
        self.batches.append(tuple(examples))
        return super().predict(examples, **how)

    def answer(self, examples: Sequence[Example], **how: Any) -> list[Answer]:
        self.batches.append(tuple(examples))
        return super().answer(examples, **how)


def measured(
    vlm: VLM, editor: Noise, mode: Mode, batch_size: int
) -> list[tuple[Probe, ProbeRecord]]:
    meter = Meter(BaseOutputs(vlm), name="x", batch_size=batch_size, max_new_tokens=2)
    made = jobs(mode, meter, editor, cases(), Past({}))
    return [
        (probe, one)
        for job in made
        if isinstance(job, Job)
        for record in job.run()
        for probe, asked in record.probes.items()
        for one in asked
    ]


BATCH_SIZES = {"float32": 1, "bfloat16": 16}
"""The other two pairs are easier: rows that share a batch move each other in half precision alone.
"""


@pytest.fixture(scope="module", params=list(BATCH_SIZES))
def of_dtype(request: pytest.FixtureRequest, tiny_folder: Path) -> NetworkVLM:
    return load_vlm(tiny_folder, dtype=request.param)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.kind)
def test_an_edit_that_reaches_nothing_moves_nothing(request, of_dtype, mode):
    """In half precision too, where the other rows of a batch move a row's ranks."""
    batch_size = BATCH_SIZES[request.node.callspec.params["of_dtype"]]
    language, vision = of_dtype.sites("language")[0], of_dtype.sites("vision")[0]
    for probe, asked in measured(of_dtype, Noise(language, 0.0), mode, batch_size):
        assert asked.pre == asked.post
        assert asked.generated_pre == asked.generated_post
        assert asked.locality == (UNMOVED if probe.is_locality else None)
    seen = measured(of_dtype, Noise(vision, 2.0), mode, batch_size)
    assert all(a.locality == UNMOVED for probe, a in seen if probe is Probe.TEXT_LOCALITY)
    assert any(a.locality != UNMOVED for probe, a in seen if probe is Probe.IMAGE_LOCALITY)


def test_base_and_edited_model_are_asked_the_same_batches(tiny_vlm: NetworkVLM):
    base, edited = Noted(tiny_vlm), Noted(tiny_vlm)
    meter = Meter(BaseOutputs(base), name="x", batch_size=3, max_new_tokens=2)
    state = EditState(vlm=edited, seconds=[0.0] * 5, places=[1] * 5)
    asked = cases(5)
    meter.records(state, asked)
    assert base.batches == edited.batches
    assert {len(batch) for batch in base.batches} == {3, 2, 1}
    meter.records(state, asked)
    assert 2 * base.batches == edited.batches  # the base model's answers were kept


def test_outputs_belong_to_the_batch_and_its_order(tiny_vlm: NetworkVLM):
    counted = CountedVLM(tiny_vlm)
    base = BaseOutputs(counted)
    one, other = (case.probes[Probe.TEXT_LOCALITY][0] for case in cases(2))
    for batch in ([one, other], [other, one], [one], [one, other]):
        base.predict(batch, is_locality=[True] * len(batch))
    assert counted.asked == 2 + 2 + 1


def test_a_first_text_token_counts_where_something_predicts_it(tiny_vlm: NetworkVLM):
    """With a beginning token before the text, the first token is predicted without an image."""

    class WithoutFirst(Noted):
        def predict(self, examples: Sequence[Example], **how: Any) -> Predictions:
            found = super().predict(examples, **how)
            found.is_text[:, 0] = False
            return found

    asked = cases(1)
    moved = Noise(tiny_vlm.sites("language")[0], 0.3)
    shares = []
    for vlm in (tiny_vlm, WithoutFirst(tiny_vlm)):
        meter = Meter(BaseOutputs(vlm), name="x", batch_size=1)
        state = EditState(vlm=moved.apply(tiny_vlm, []), seconds=[0.0], places=[1])
        [record] = meter.records(state, asked)
        locality = record.probes[Probe.IMAGE_LOCALITY][0].locality
        assert locality is not None
        positions = int(tiny_vlm.predict(asked[0].probes[Probe.IMAGE_LOCALITY]).is_text.sum())
        shares.append((locality.top1_all, positions - len(shares)))
    for share, positions in shares:
        assert share * positions == pytest.approx(round(share * positions), abs=1e-4)


def test_the_base_models_own_row_asks_it_once(tiny_vlm: NetworkVLM):
    noted = Noted(tiny_vlm)
    meter = Meter(BaseOutputs(noted), name="base", batch_size=8, max_new_tokens=2)
    for record in meter.evaluate(NoEdit(), cases()):
        assert record.probes[Probe.TEXT_LOCALITY][0].locality == UNMOVED
    assert [len(batch) for batch in noted.batches] == [8, 8, 4, 4]  # predicted and generated once
