"""LoRA adapters of edits: peft opens them on the base model, and they answer as the edited VLM."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import exports
import pytest
import tiny
import torch
from exports import LOCALITY, REQUEST
from safetensors.torch import load_file
from torch import nn

from mmedit.deltas import Delta, Dense, LowRank
from mmedit.errors import ConfigError, EditError, LostEditError, ModelError
from mmedit.export import adapter as adapter_module
from mmedit.export.adapter import AdapterForm, export_peft
from mmedit.export.low_rank import factors_of
from mmedit.methods.lora import LoRA, LoRAConfig
from mmedit.vlm.interface import VLM
from mmedit.vlm.loading import load_vlm
from mmedit.vlm.network import NetworkVLM

peft = pytest.importorskip("peft", reason="peft is not installed (extra `peft`)")

ASKED = (REQUEST, *LOCALITY)


def logits(vlm: VLM) -> torch.Tensor:
    predictions = vlm.predict(ASKED)
    return predictions.logits[predictions.is_answer]


def opened(source: Path, places: Mapping[str, Path], active: list[str] | None = None) -> NetworkVLM:
    """Open adapters on a freshly loaded base model, as a reader of peft's manual would."""
    base = load_vlm(source)
    (first, place), *others = places.items()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
        model = peft.PeftModel.from_pretrained(base.adapter.network, str(place), adapter_name=first)
        for name, place in others:
            model.load_adapter(str(place), adapter_name=name)
    model.base_model.set_adapter(active or list(places))
    return NetworkVLM(type(base.adapter)(base.adapter.network, base.adapter.processor))


@pytest.mark.parametrize(
    ("family", "stage"),
    [
        ("blip2", "language"),
        ("blip2", "bridge"),
        ("llava", "language"),
        ("qwen2_5_vl", "vision"),
        ("qwen3_vl", "language"),
    ],
)
def test_peft_gives_the_logits_of_a_low_rank_edit(family: str, stage: Any, tmp_path: Path):
    source = exports.save_tiny(family, tmp_path / "vlm")
    vlm = load_vlm(source)
    edited = exports.with_edit(vlm, exports.low_rank(vlm, stage))
    before = logits(vlm)

    export = export_peft(lambda: edited, tmp_path / "out", LOCALITY)

    assert export.is_kept
    assert export.stored["truncation"] == 0.0
    assert export.checks[0].largest_logit_difference < 1e-5
    found = opened(source, {"default": tmp_path / "out"})
    assert (logits(found) - logits(edited)).abs().max() < 1e-5
    assert (logits(found) - before).abs().max() > 0.1
    assert found.generate(ASKED, max_new_tokens=6) == edited.generate(ASKED, max_new_tokens=6)


def test_an_edit_by_lora_is_written_as_it_is(tiny_vlm: NetworkVLM, tmp_path: Path):
    edited = LoRA(LoRAConfig(rank=2, lr=1e-2, steps=5)).apply(tiny_vlm, [REQUEST])
    export = export_peft(lambda: edited, tmp_path / "out", LOCALITY)

    assert (export.stored["rank"], export.stored["truncation"]) == (2, 0.0)
    assert export.checks[0].largest_logit_difference < 1e-5
    written = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert edited.edits[0].deltas is not None
    for site, delta in edited.edits[0].deltas.items():
        u, v = (delta.tensors()[name] for name in ("u", "v"))
        assert torch.equal(written[f"base_model.model.{site}.lora_A.weight"], v)
        assert torch.equal(written[f"base_model.model.{site}.lora_B.weight"], u.mT)
    assert len(written) == 2 * len(edited.edits[0].deltas)


def test_the_base_model_in_memory_stays_as_it_was(tiny_vlm: NetworkVLM, tmp_path: Path):
    before = logits(tiny_vlm)
    edited = exports.with_edit(tiny_vlm, exports.low_rank(tiny_vlm))
    export_peft(lambda: edited, tmp_path / "out")
    network = tiny_vlm.adapter.network
    assert not [name for name, _ in network.named_parameters() if "lora" in name]
    assert not any(weight.requires_grad for weight in network.parameters())
    assert torch.equal(logits(tiny_vlm), before)


def test_the_config_is_plain_lora_and_one_edit_gives_one_file(tiny_vlm: NetworkVLM, tmp_path: Path):
    deltas = exports.low_rank(tiny_vlm)
    edited = exports.with_edit(tiny_vlm, deltas)
    for name in ("first", "second"):
        export_peft(lambda: edited, tmp_path / name)
    files = ("adapter_config.json", "adapter_model.safetensors")
    for file in files:
        first, second = (tmp_path / name / file for name in ("first", "second"))
        assert first.read_bytes() == second.read_bytes(), file
    config = json.loads((tmp_path / "first" / files[0]).read_text())
    assert config["peft_type"] == "LORA"
    assert config["target_modules"] == sorted(deltas)
    assert (config["r"], config["lora_alpha"], config["bias"]) == (3, 3, "none")
    assert not config["use_rslora"]
    smaller = {f"^{site}" for site, delta in deltas.items() if len(delta.tensors()["u"]) == 2}
    assert config["rank_pattern"] == config["alpha_pattern"] == dict.fromkeys(smaller, 2)


def test_the_error_of_a_dense_edit_falls_with_the_rank(tiny_vlm: NetworkVLM, tmp_path: Path):
    edited = exports.with_edit(tiny_vlm, exports.dense(tiny_vlm))
    found = [
        export_peft(
            lambda: edited,
            tmp_path / str(rank),
            LOCALITY,
            form=AdapterForm(rank=rank),
            allow_lost=True,
        )
        for rank in (1, 8, 32)
    ]
    truncations = [export.stored["truncation"] for export in found]
    differences = [export.checks[0].largest_logit_difference for export in found]
    assert truncations[0] > truncations[1] > 0.1
    assert truncations[2] < 1e-6
    assert differences[0] > differences[1] > 1e-3
    assert differences[2] < 1e-5
    assert [export.stored["rank"] for export in found] == [1, 8, 32]


def test_the_factors_of_a_dense_edit_are_the_nearest_of_their_rank():
    generator = torch.Generator().manual_seed(0)
    change = torch.randn(12, 20, generator=generator)
    made = factors_of([Dense(change)], 5)
    values = torch.linalg.svdvals(change)
    assert (change - made.b @ made.a).norm() == pytest.approx(float(values[5:].norm()), rel=1e-5)
    assert made.left_out == pytest.approx(float(values[5:].norm()), rel=1e-5)
    assert made.size == pytest.approx(float(change.norm()), rel=1e-5)


@pytest.mark.parametrize(
    ("kinds", "rank"), [("ll", 4), ("lld", 9), ("d", 5), ("lllll", 6), ("lllld", 6)]
)
def test_factors_of_several_edits_are_joined_and_never_more_than_the_weight_needs(
    kinds: str, rank: int
):
    generator = torch.Generator().manual_seed(1)
    deltas: list[Delta] = []
    for kind in kinds:
        u, v = (torch.randn(2, n, generator=generator) for n in (6, 9))
        deltas.append(LowRank(u, v) if kind == "l" else Dense(torch.randn(6, 9)))
    made = factors_of(deltas, 5)
    total = torch.stack([delta.weight() for delta in deltas]).sum(0)
    assert made.rank == rank
    assert float((total - made.b @ made.a).norm()) == pytest.approx(made.left_out, abs=1e-4)
    assert made.size == pytest.approx(float(total.norm()), rel=1e-5)


def test_an_edit_that_changes_nothing_has_an_adapter_too(tiny_vlm: NetworkVLM, tmp_path: Path):
    site = tiny_vlm.sites("language")[0]
    edited = exports.with_edit(tiny_vlm, {site: Dense(torch.zeros(tiny_vlm.shape(site)))})
    export = export_peft(lambda: edited, tmp_path / "out")
    assert export.checks[0].largest_logit_difference == 0
    assert export.stored["rank"] == 1


def two_edits(vlm: NetworkVLM) -> NetworkVLM:
    first = exports.with_edit(vlm, exports.low_rank(vlm), name="a.b")
    deltas = {**exports.dense(vlm, "bridge"), **exports.low_rank(vlm, seed=1)}
    return exports.with_edit(first, deltas, name="c d", requests=[tiny.SEEN[1]])


def test_several_edits_become_one_adapter(tmp_path: Path):
    source = exports.save_tiny("blip2", tmp_path / "vlm")
    edited = two_edits(load_vlm(source))
    export = export_peft(lambda: edited, tmp_path / "out", LOCALITY)
    assert export.checks[0].largest_logit_difference < 1e-5
    assert export.checks[0].requests == 2
    found = opened(source, {"all": tmp_path / "out"})
    assert (logits(found) - logits(edited)).abs().max() < 1e-5


def test_an_adapter_for_each_edit_stands_alone_and_together_they_are_the_stack(tmp_path: Path):
    source = exports.save_tiny("blip2", tmp_path / "vlm")
    edited = two_edits(load_vlm(source))
    export = export_peft(lambda: edited, tmp_path / "out", LOCALITY, form=AdapterForm(each=True))
    assert export.stored["adapters"] == ["a_b", "c_d"]
    assert export.checks[0].largest_logit_difference < 1e-5
    places = {name: tmp_path / "out" / name for name in ("a_b", "c_d")}
    assert (logits(opened(source, places)) - logits(edited)).abs().max() < 1e-5
    alone = opened(source, places, ["a_b"])
    assert (logits(alone) - logits(edited.without("c d"))).abs().max() < 1e-5


def test_two_edits_whose_adapters_would_have_one_name_are_refused(
    tiny_vlm: NetworkVLM, tmp_path: Path
):
    edited = exports.with_edit(tiny_vlm, exports.low_rank(tiny_vlm), name="a b")
    edited = exports.with_edit(edited, exports.low_rank(tiny_vlm), name="a.b")
    with pytest.raises(EditError, match="two edits would have adapters of the name 'a_b'"):
        export_peft(lambda: edited, tmp_path / "out", form=AdapterForm(each=True))


def test_an_adapter_keeps_an_edit_that_half_precision_rounds_away(tmp_path: Path):
    source = exports.save_fragile(tmp_path / "vlm")
    edited = exports.fragile_edit(load_vlm(source, dtype="bfloat16"))
    export = export_peft(lambda: edited, tmp_path / "out")
    assert export.checks[0].opened_in == "bfloat16"
    assert export.is_kept


def test_a_truncation_that_loses_the_edit_is_refused(tmp_path: Path):
    vlm = load_vlm(exports.save_tiny("blip2", tmp_path / "vlm"))
    edited = exports.with_edit(vlm, exports.dense(vlm))
    form = AdapterForm(rank=1)
    with pytest.raises(LostEditError, match=r"lost the edit.*Give a larger --rank"):
        export_peft(lambda: edited, tmp_path / "out", form=form)
    assert not (tmp_path / "out").exists()
    export = export_peft(lambda: edited, tmp_path / "out", form=form, allow_lost=True)
    assert not export.is_kept


def test_names_that_end_the_name_of_another_module_become_a_pattern():
    network = nn.ModuleDict(
        {"fc": nn.Linear(2, 2), "inner": nn.ModuleDict({"fc": nn.Linear(2, 2)})}
    )
    assert adapter_module._targets(network, {"inner.fc": 0}) == ["inner.fc"]
    pattern = adapter_module._targets(network, {"fc": 0})
    model = peft.get_peft_model(network, peft.LoraConfig(target_modules=pattern))
    assert "base_model.model.fc.lora_A.default.weight" in dict(model.named_parameters())
    assert not any("inner" in name and "lora" in name for name, _ in model.named_parameters())


def test_without_peft_the_error_names_the_extra(
    tiny_vlm: NetworkVLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(adapter_module, "find_spec", lambda _: None)
    with pytest.raises(ModelError, match=r"pip install 'mmedit\[peft\]'"):
        export_peft(lambda: tiny_vlm, tmp_path / "out")


def test_a_rank_below_one_is_an_error():
    with pytest.raises(ConfigError, match="--rank is 0; expected at least 1"):
        AdapterForm(rank=0)
