"""Learnt editors under autocast."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_sentences import saved_encoder

from mmedit.datasets.easyvqa import cases as easyvqa
from mmedit.editors.fitting import Fitting
from mmedit.methods.ke import KE, KEConfig
from mmedit.methods.mend import MEND, MENDConfig
from mmedit.methods.serac import SERAC, SERACConfig
from mmedit.training.settings import TrainingConfig

BF16 = TrainingConfig(steps=2, batch_size=4, mixed_precision="bf16")
EDITORS: dict[str, Any] = {
    "mend": lambda: MEND(MENDConfig(rank=8, training=BF16)),
    "ke": lambda: KE(KEConfig(lstm_hidden=8, condition=8, hidden=8, training=BF16)),
    "serac": lambda: SERAC(SERACConfig(scope_width=8, counterfactual_width=8, training=BF16)),
    "serac-mscke": lambda: SERAC(
        SERACConfig(scope="fused", scope_width=8, counterfactual_width=8, training=BF16)
    ),
    "serac-text": lambda: SERAC(
        SERACConfig(scope="text", scope_width=8, counterfactual_width=8, training=BF16)
    ),
    "serac-minilm": lambda: SERAC(
        SERACConfig(
            scope="text", sentence_encoder=saved_encoder(), counterfactual_width=8, training=BF16
        )
    ),
}


@pytest.mark.parametrize("name", EDITORS)
def test_training_in_bf16_learns_float32_parameters_that_edit(vlm, name: str):
    cases = easyvqa.EasyVQA().load("train", limit=8)
    editor = EDITORS[name]().fit(vlm, Fitting(cases))
    assert all(t.dtype == torch.float32 and t.isfinite().all() for t in editor.state().values())
    requests = [case.request for case in cases[:2]]
    logits = editor.apply_each(vlm, requests).predict(requests).logits
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, vlm.predict(requests).logits)
