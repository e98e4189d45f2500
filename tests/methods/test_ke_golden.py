"""KE against the published code (golden kind `ke`)."""

from __future__ import annotations

import pytest
import torch
from golden_files import GoldenCase, golden_cases, under
from torch import Tensor

from mmedit.methods.ke import Conditioner, Gate, KEConfig, root_mean_square

CASES = golden_cases("ke")
MATRICES = [
    pytest.param(case, name, id=f"{case.name}-{name}")
    for case in CASES
    for name, shape in case.facts["parameter_shapes"].items()
    if len(shape) == 2  # edits are of Linear weights; the published code gates biases too
]
TOLERANCE = 2e-6


def config_of(case: GoldenCase) -> KEConfig:
    facts = case.facts
    return KEConfig(
        lstm_hidden=facts["lstm_hidden"],
        condition=facts["condition_dim"],
        hidden=facts["hypernet_hidden"],
        max_scale=facts["max_scale"],
    )


def conditioner_of(case: GoldenCase) -> Conditioner:
    facts, weights = case.facts, under("weights.condition", case.tensors)
    conditioner = Conditioner(
        facts["embedding_dim"], lstm_hidden=facts["lstm_hidden"], condition=facts["condition_dim"]
    )
    conditioner.lstm.load_state_dict(under("lstm._module", weights))
    conditioner.linear.load_state_dict(under("linear._linear_layers.0", weights))
    return conditioner


def gate_of(case: GoldenCase, name: str) -> Gate:
    out, in_ = case.facts["parameter_shapes"][name]
    gate = Gate((out, in_), config_of(case))
    weights = under(f"weights.conditioners.{name}_conditioner.conditioners", case.tensors)
    for number, layer in (("0", gate.hidden), ("2", gate.output)):
        layer.load_state_dict(
            {
                "bias": weights[f"{number}.bias"],
                "parametrizations.weight.original0": weights[f"{number}.weight_g"],
                "parametrizations.weight.original1": weights[f"{number}.weight_v"],
            }
        )
    return gate


def encode(case: GoldenCase, ids: Tensor, mask: Tensor) -> Tensor:
    embedded = case.tensors["weights.condition.embedding.weight"][ids]
    return conditioner_of(case)(embedded, mask.sum(1).tolist())


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
@pytest.mark.parametrize("batch", ["", "batch."])
def test_conditions_are_those_of_the_published_code(case: GoldenCase, batch: str):
    ids, mask, wanted = (
        case.tensors[f"{batch}{name}"] for name in ("input_ids", "attention_mask", "condition")
    )
    torch.testing.assert_close(encode(case, ids, mask), wanted, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("case", "name"), MATRICES)
def test_deltas_are_those_of_the_published_code(case: GoldenCase, name: str):
    """The golden gradient is dense: here it comes as one token per output unit."""
    gradient = case.tensors[f"grad.{name}"]
    delta = gate_of(case, name)(
        case.tensors["condition"], gradient[None], torch.eye(len(gradient))[None]
    )
    tolerance = TOLERANCE * case.facts["max_scale"]
    wanted = case.tensors[f"delta.{name}"]
    assert wanted.abs().max() > 100 * tolerance
    torch.testing.assert_close(delta.weight()[0], wanted, rtol=0, atol=tolerance)
    mean = wanted.square().mean().sqrt()
    torch.testing.assert_close(root_mean_square(delta), mean, rtol=1e-4, atol=0)
