"""What is measured depends neither on the batch, nor on the side of the padding, nor on the device:
on random examples, from the model through every score of the records.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import CORPUS, IMAGES

from mmedit.bench.base_outputs import BaseOutputs
from mmedit.bench.generation import GenerationScorer
from mmedit.bench.scoring import measure
from mmedit.cases import Example, Probe
from mmedit.deltas import LowRank
from mmedit.metrics.locality import locality
from mmedit.metrics.multiclass_log_probs import multiclass_log_probs
from mmedit.records.schema import ProbeRecord
from mmedit.vlm.loading import load_vlm
from mmedit.vlm.network import NetworkVLM

SITE = "language_model.model.decoder.layers.2.fc1"
NEW_TOKENS, FLUENCY_TOKENS = 4, 6
WORDS = sorted({word for text in CORPUS for word in text.split()})

texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join)
examples = st.lists(
    st.builds(Example, prompt=texts, target=texts, image=st.sampled_from([None, *IMAGES])),
    min_size=2,
    max_size=4,
)
seeded = settings(max_examples=6, deadline=None, derandomize=True, database=None)


@pytest.fixture(scope="module")
def models(tiny_folder: Path) -> dict[str, NetworkVLM]:
    # In float64 no order of summation turns a near tie around.
    adapter = load_vlm(tiny_folder, dtype=torch.float64).adapter
    return {side: NetworkVLM(adapter, padding_side=side) for side in ("left", "right")}


def edit(vlm: NetworkVLM) -> NetworkVLM:
    """One edit for all rows, large enough to move answers."""
    outputs, inputs = vlm.shape(SITE)
    random = torch.Generator().manual_seed(0)
    u, v = (torch.randn(2, width, generator=random).double() for width in (outputs, inputs))
    return vlm.with_deltas({SITE: LowRank(u, v)})


def measured(
    vlm: NetworkVLM, probe: Probe, asked: Sequence[Example], batch_size: int
) -> list[ProbeRecord]:
    base, edited, scorer = BaseOutputs(vlm), edit(vlm), GenerationScorer(FLUENCY_TOKENS)
    batches = [asked[start : start + batch_size] for start in range(0, len(asked), batch_size)]
    return [
        record
        for batch in batches
        for record in measure(
            base,
            edited,
            [(probe, example) for example in batch],
            max_new_tokens=NEW_TOKENS,
            scorer=scorer,
        )
    ]


def assert_same(found: Sequence[ProbeRecord], wanted: Sequence[ProbeRecord]) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert_close(one.model_dump(), other.model_dump())


def assert_close(found: Any, wanted: Any) -> None:
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for name in wanted:
            assert_close(found[name], wanted[name])
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, abs=1e-6)
    else:
        assert found == wanted


@pytest.mark.parametrize("probe", [Probe.RELIABILITY, Probe.IMAGE_LOCALITY])
@seeded
@given(asked=examples)
def test_no_score_depends_on_the_batch(models, probe: Probe, asked: list[Example]):
    alone = measured(models["right"], probe, asked, 1)
    for batch_size in (2, len(asked)):
        assert_same(measured(models["right"], probe, asked, batch_size), alone)


@pytest.mark.parametrize("probe", [Probe.RELIABILITY, Probe.TEXT_LOCALITY])
@seeded
@given(asked=examples)
def test_no_score_depends_on_the_side_of_the_padding(models, probe: Probe, asked: list[Example]):
    left, right = (measured(models[side], probe, asked, len(asked)) for side in ("left", "right"))
    assert_same(left, right)


def test_the_edit_of_these_tests_moves_answers(models):
    asked = [Example(prompt=text, target="no", image=IMAGES[0]) for text in CORPUS[:4]]
    records = measured(models["right"], Probe.IMAGE_LOCALITY, asked, len(asked))
    assert {record.locality.top1_answer for record in records if record.locality} != {1.0}
    assert {r.generation_post.unchanged for r in records if r.generation_post} != {1.0}


DEVICES = [
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
    )
]


@pytest.mark.parametrize("device", DEVICES)
@seeded
@given(seed=st.integers(0, 2**31), rows=st.integers(1, 4), vocab=st.integers(2, 50))
def test_no_score_depends_on_the_device(device: str, seed: int, rows: int, vocab: int):
    random = torch.Generator().manual_seed(seed)
    base, edited = (torch.randn(rows, 6, vocab, generator=random) for _ in range(2))
    labels = torch.randint(vocab, (rows, 6), generator=random)
    labels[:, :2] = -100
    masks = {"is_text": torch.ones(rows, 6).bool(), "is_answer": labels >= 0}

    def scores(move: Callable[[torch.Tensor], torch.Tensor]) -> list[Any]:
        moved = {name: move(mask) for name, mask in masks.items()}
        return [
            multiclass_log_probs(move(base), move(labels)),
            locality(move(base), move(edited), **moved),
        ]

    for here, there in zip(scores(lambda t: t), scores(lambda t: t.to(device)), strict=True):
        for field in fields(here):
            wanted, found = getattr(here, field.name), getattr(there, field.name)
            torch.testing.assert_close(found.cpu(), wanted, rtol=1e-5, atol=1e-5)
