"""LoRA against peft and torch's Adam, and AdaLoRA against peft (golden kind `lora`)."""

from __future__ import annotations

import pytest
import torch
from golden_files import GoldenCase, golden_cases, under
from golden_vlm import attended, examples_of, golden_vlm, logits_of, site_of
from torch import Tensor

from mmedit.methods.lora import Descent, LoRA, LoRAConfig, SiteAdapter, initial, orthogonality
from mmedit.metrics.multiclass_log_probs import answer_nll

CASES = golden_cases("lora")
LORA = [case for case in CASES if "rows" in case.facts]
ADALORA = [case for case in CASES if "init_r" in case.facts]
of_lora = pytest.mark.parametrize("case", LORA, ids=lambda case: case.name)
of_adalora = pytest.mark.parametrize("case", ADALORA, ids=lambda case: case.name)


def config_of(case: GoldenCase) -> LoRAConfig:
    facts = case.facts
    if "init_r" in facts:
        return LoRAConfig(init="adalora", rank=facts["init_r"], alpha=facts["alpha"])
    assert (facts["optimizer"], facts["betas"], facts["eps"]) == ("Adam", [0.9, 0.999], 1e-8)
    return LoRAConfig(
        sites=tuple(map(site_of, facts["sites"])),
        rank=facts["r"],
        alpha=facts["alpha"],
        lr=facts["lr"],
        steps=facts["steps"],
        stop_loss=0.0,
    )


def adapters_of(case: GoldenCase) -> dict[str, SiteAdapter]:
    """The adapters that the case begins with, by golden name."""
    return {
        name: SiteAdapter(
            a=case.tensors[f"{name}.A"],
            b=case.tensors[f"{name}.B"],
            e=case.tensors.get(f"{name}.E"),
            scale=config_of(case).scale,
        )
        for name in case.facts["sites"]
    }


def batches_of(case: GoldenCase) -> list[dict[str, Tensor]]:
    """The batch of every step."""
    same = case.facts["same_batch_every_step"]
    steps = range(case.facts["steps"])
    return [under(f"batch_{0 if same else step}", case.tensors) for step in steps]


def descended(case: GoldenCase) -> tuple[Descent, list[float]]:
    """The descent of a case, and the loss before each of its steps."""
    start = {site_of(name): one for name, one in adapters_of(case).items()}
    descent = Descent(golden_vlm(base=case.facts["base"]), start, config_of(case), edits=1)
    losses = []
    for batch in batches_of(case):
        nll = descent.nll(examples_of(batch), [0])
        losses.append(nll.mean().item())
        descent.step(nll)
    return descent, losses


def is_close(found: Tensor, expected: Tensor, lr: float) -> bool:
    """The golden tolerance. Where a gradient is near zero Adam can turn rounding into a step."""
    away = found - expected
    if away.abs().max() <= 5e-6:
        return True
    return bool(away.abs().max() <= 2 * lr and away.square().mean().sqrt() <= 1e-6)


def test_both_networks_several_rows_and_ranks_are_covered():
    assert {case.facts["base"] for case in LORA} >= {"tiny_opt", "tiny_llama"}
    assert {case.facts["rows"] for case in LORA} > {1}
    assert len({case.facts["r"] / case.facts["alpha"] for case in LORA}) > 1
    assert ADALORA


@of_lora
def test_adapters_after_some_steps_are_those_of_peft(case: GoldenCase):
    descent, losses = descended(case)
    assert losses == pytest.approx(case.facts["loss_per_step"], abs=1e-5)
    deltas = descent.deltas()
    for name in case.facts["sites"]:
        golden, found = under(name, case.tensors), descent.adapters[site_of(name)]
        assert not is_close(found.b[0].detach(), golden["B"], 0.0)  # it has moved
        assert is_close(found.a[0].detach(), golden["A_after"], case.facts["lr"]), name
        assert is_close(found.b[0].detach(), golden["B_after"], case.facts["lr"]), name
        delta = deltas[site_of(name)].weight()[0].detach()
        assert is_close(delta, golden["delta"], case.facts["lr"]), name


@of_lora
def test_logits_with_the_adapter_are_those_of_peft(case: GoldenCase):
    vlm = golden_vlm(base=case.facts["base"])
    batch = under("batch_0", case.tensors)
    expected = attended(case.tensors["logits_after"], batch)
    after = {
        site_of(name): SiteAdapter(
            a=case.tensors[f"{name}.A_after"], b=case.tensors[f"{name}.B_after"], scale=one.scale
        ).delta()
        for name, one in adapters_of(case).items()
    }
    assert (logits_of(vlm.with_deltas(after), batch) - expected).abs().max() < 3e-5
    assert (logits_of(vlm, batch) - expected).abs().max() > 1e-3


@pytest.mark.parametrize(
    "case", [c for c in LORA if c.facts["same_batch_every_step"]], ids=lambda case: case.name
)
def test_an_edit_from_the_golden_start_is_that_of_peft(case: GoldenCase, monkeypatch):
    """The editor itself, where the requests are the same in every step."""
    start = {site_of(name): one for name, one in adapters_of(case).items()}
    monkeypatch.setattr(LoRA, "_start", lambda self, vlm, sites: start)
    vlm, requests = golden_vlm(base=case.facts["base"]), examples_of(batches_of(case)[0])
    edited = LoRA(config_of(case)).apply(vlm, requests)
    for name in case.facts["sites"]:
        found = edited.weight(site_of(name)) - vlm.weight(site_of(name))
        assert is_close(found, case.tensors[f"{name}.delta"], case.facts["lr"])


@of_lora
def test_initial_values_are_within_the_bound_of_peft_and_fill_it(case: GoldenCase):
    for name, facts in case.facts["sites"].items():
        golden = under(name, case.tensors)
        shape = (len(golden["B"]), golden["A"].shape[1])
        made = initial(shape, config_of(case), torch.Generator().manual_seed(0))
        assert made.a.shape == golden["A"].shape
        assert made.a.abs().max() <= facts["init_bound"]
        assert made.a.abs().max() > 0.9 * facts["init_bound"]
        assert abs(made.a.mean()) < 0.2 * facts["init_bound"]
        assert torch.equal(made.b, golden["B"])
        assert made.scale == pytest.approx(facts["scaling"])


@of_adalora
def test_delta_of_adalora_is_that_of_peft(case: GoldenCase):
    for name, adapter in adapters_of(case).items():
        assert len(adapter.a) == case.facts["sites"][name]["rank"]
        found = adapter.delta().weight()
        torch.testing.assert_close(found, case.tensors[f"{name}.delta"], rtol=0, atol=5e-6)
        assert found.abs().max() > 1e-4


@of_adalora
def test_initial_values_of_adalora_are_those_of_peft(case: GoldenCase):
    for name, facts in case.facts["sites"].items():
        golden = under(name, case.tensors)
        shape = (len(golden["B"]), golden["A"].shape[1])
        made = initial(shape, config_of(case), torch.Generator().manual_seed(0))
        assert made.a.std() == pytest.approx(facts["initial_A_std"], rel=0.2)
        assert made.b.std() == pytest.approx(facts["initial_B_std"], rel=0.2)
        assert made.e is not None
        assert not made.e.any()


@of_adalora
def test_loss_with_the_orthogonality_term_is_that_of_peft(case: GoldenCase):
    adapters = adapters_of(case)
    term = case.facts["orth_reg_weight"] * orthogonality([*adapters.values()]).item()
    assert term == pytest.approx(case.facts["orthogonality_term"], abs=1e-5)

    edited = golden_vlm().with_deltas({site_of(n): one.delta() for n, one in adapters.items()})
    predictions = edited.predict(examples_of(under("batch_0", case.tensors)))
    # transformers' own loss: the mean over the tokens of all rows, not over rows
    of_row = answer_nll(predictions.logits, predictions.target, predictions.is_answer)
    tokens = predictions.is_answer.sum(1)
    nll = ((of_row * tokens).sum() / tokens.sum()).item()
    assert nll == pytest.approx(case.facts["loss_without_term"], abs=1e-5)
    assert nll + term == pytest.approx(case.facts["loss_with_term"], abs=1e-5)
