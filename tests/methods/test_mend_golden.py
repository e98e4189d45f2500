"""MEND against the published code (golden kind `mend`), and where it is meant to differ from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch
from golden_files import GoldenCase, golden_files, read_golden_json, under
from golden_vlm import (
    attended,
    examples_of,
    golden_vlm,
    logits_of,
    site_of,
)
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from mmedit.cases import Example
from mmedit.deltas import LowRank
from mmedit.editors.saved import origin_of
from mmedit.methods.mend import MEND, MENDConfig
from mmedit.methods.mend.network import IDMLP, EditNetwork, GradientTransform
from mmedit.metrics.multiclass_log_probs import NOT_SCORED, MulticlassLogProbs, multiclass_log_probs
from mmedit.vlm.interface import VLM
from mmedit.vlm.network import NetworkVLM
from mmedit.vlm.outputs import Captured, reached

KNOWINGLY_NOT_OURS = {
    "xavier": "MMEdit trains with init id only; without residual an editor does not start as MEND",
}


def golden(folder: str, pattern: str) -> list[GoldenCase]:
    """Golden files that are one case each, `NAME.json` with `NAME.safetensors`."""
    return [
        GoldenCase(
            name=p.stem, facts=read_golden_json(p.with_suffix(".json")), tensors=load_file(p)
        )
        for p in golden_files(f"{folder}/{pattern}.safetensors")
    ]


def golden_mlps() -> list[GoldenCase]:
    (every,) = golden("mend", "idmlp")
    return [
        GoldenCase(name=facts["name"], facts=facts, tensors=under(facts["name"], every.tensors))
        for facts in every.facts["cases"]
    ]


def golden_transforms() -> list[GoldenCase]:
    (path,) = golden_files("mend/gradient_transform/cases.json")
    return [
        GoldenCase(
            name=facts["name"],
            facts=facts,
            tensors=load_file(path.with_name(f"{facts['name']}.safetensors")),
        )
        for facts in read_golden_json(path)["cases"]
    ]


def ids(cases: Sequence[GoldenCase]) -> list[str]:
    return [case.name for case in cases]


MLPS = [case for case in golden_mlps() if case.facts["init"] == "id"]
TRANSFORMS = golden_transforms()
EDITS = golden("mend", "edit_*")
OUTER_STEPS = golden("mend", "outer_step_*")


def load_mlp(mlp: IDMLP, tensors: Mapping[str, Tensor]) -> None:
    """Golden weights; without modes there, scale 1 and shift 0 stay."""
    named = {name.removesuffix(".weight"): tensor for name, tensor in tensors.items()}
    mlp.load_state_dict({**mlp.state_dict(), **named})


def assert_relatively_close(found: Tensor, wanted: Tensor, share: float) -> None:
    """Within this share of the largest wanted entry."""
    away = (found - wanted).abs().max().item()
    assert away <= share * wanted.abs().max().item()


# The network and its statistics


def test_every_golden_variant_is_tested_or_knowingly_left_out():
    assert {case.facts["init"] for case in golden_mlps()} <= {"id"} | KNOWINGLY_NOT_OURS.keys()
    assert all(case.facts["init"] == "id" for case in golden_transforms())
    assert {case.facts["combine"] for case in TRANSFORMS} == {True, False}
    assert {case.facts["norm"] for case in TRANSFORMS} == {True, False}
    assert {bool(case.facts["n_modes"]) for case in TRANSFORMS} == {True, False}
    assert {case.facts["init"] for case in EDITS + OUTER_STEPS if "init" in case.facts} == {"id"}
    assert all(case.facts["combine"] for case in EDITS + OUTER_STEPS)


@pytest.mark.parametrize("case", MLPS, ids=ids(MLPS))
def test_idmlp_is_that_of_the_published_code(case: GoldenCase):
    facts, weights = case.facts, under("weights", case.tensors)
    for mode in facts["modes_evaluated"]:
        without_modes = {name: t for name, t in weights.items() if "mode" not in name}
        mlp = IDMLP(
            facts["dim"],
            rank=facts["rank"],
            hidden_layers=facts["n_layers"] - 1,
            modes=facts["n_modes"] if mode is not None else 0,
        )
        load_mlp(mlp, weights if mode is not None else without_modes)
        wanted = case.tensors["y" if mode is None else f"y_mode{mode}"]
        counts = {mode or 0: len(case.tensors["x"])}
        torch.testing.assert_close(mlp(case.tensors["x"], counts), wanted, rtol=0, atol=5e-6)
        if mode is None:
            first = mlp.layers[0](case.tensors["x"], counts)
            torch.testing.assert_close(first, case.tensors["layer0_y"], rtol=0, atol=5e-6)


@pytest.mark.parametrize("case", TRANSFORMS, ids=ids(TRANSFORMS))
def test_gradient_transform_and_its_statistics_are_those_of_the_published_code(case: GoldenCase):
    facts = case.facts
    config = MENDConfig(
        rank=facts["rank"],
        hidden_layers=facts["n_hidden"],
        norm=facts["norm"],
        combine=facts["combine"],
    )
    transform = GradientTransform(
        facts["x_dim"], facts["delta_dim"], config, modes=facts["n_modes"] or 0
    )
    networks = {"mlp": transform.mlp, "mlp1": transform.x_mlp, "mlp2": transform.delta_mlp}
    used = {name: mlp for name, mlp in networks.items() if mlp is not None}
    assert used.keys() == ({"mlp"} if facts["combine"] else {"mlp1", "mlp2"})
    for name, mlp in used.items():
        load_mlp(mlp, under(f"weights.{name}", case.tensors))
    for call in facts["calls"]:
        tensors = under(f"call_{call['call']}", case.tensors)
        x, delta = tensors["u"].flatten(0, -2), tensors["v"].flatten(0, -2)
        captured = Captured(x={"site": x[None]}, delta={"site": delta[None]}, nll=torch.zeros(1))
        tokens = captured.packed()["site"]
        assert len(tokens.x) == call["kept_rows"]
        (found,) = transform({call["param_idx"] or 0: tokens}, update=call["training"])
        for ours, name in zip(found, ("out_u", "out_v"), strict=True):
            torch.testing.assert_close(ours, tensors[name], rtol=0, atol=2e-5)
        assert_statistics(transform, under("after", tensors))


def assert_statistics(transform: GradientTransform, wanted: Mapping[str, Tensor]) -> None:
    for norm, side in ((transform.x_norm, "u"), (transform.delta_norm, "v")):
        assert norm.count == wanted["k"]
        assert_relatively_close(norm.mean, wanted[f"{side}_mean"], 5e-5)
        assert_relatively_close(norm.squares, wanted[f"{side}_s"], 5e-5)
        assert_relatively_close(norm.std, wanted[f"{side}_std"], 5e-5)


# Whole edits


def batch_of(case: GoldenCase, name: str) -> dict[str, Tensor]:
    return under(name, case.tensors)


def sites_of(case: GoldenCase) -> list[str]:
    return [site_of(name) for name in case.facts["inner_params"]]


def config_of(case: GoldenCase) -> MENDConfig:
    facts = case.facts
    hidden = facts.get("n_hidden", 1)
    return MENDConfig(
        sites=tuple(sites_of(case)), rank=facts["rank"], hidden_layers=hidden, norm=facts["norm"]
    )


def edit_network(case: GoldenCase, vlm: VLM, *, statistics: str | None) -> EditNetwork:
    """Ours, with the golden weights and, under that name, the golden running statistics."""
    shapes = {site: vlm.shape(site) for site in sites_of(case)}
    network = EditNetwork(shapes, config_of(case))
    for key, transform in transforms_of(network).items():
        golden_key = golden_key_of(key)
        assert transform.mlp is not None
        load_mlp(transform.mlp, under(f"mend.{golden_key}.mlp", case.tensors))
        if statistics:
            stats = under(f"{statistics}.{golden_key}", case.tensors)
            for norm, side in ((transform.x_norm, "u"), (transform.delta_norm, "v")):
                norm.mean.copy_(stats[f"{side}_mean"])
                norm.squares.copy_(stats[f"{side}_s"])
                norm.count.copy_(stats["k"][0])
    network.edit_lrs.data.copy_(case.tensors["edit_lrs"])
    return network


def transforms_of(network: EditNetwork) -> dict[str, GradientTransform]:
    return {k: t for k, t in network.transforms.items() if isinstance(t, GradientTransform)}


def golden_key_of(key: str) -> str:
    return f"({key.replace('x', ', ')})"


def editor_of(case: GoldenCase, vlm: VLM) -> MEND:
    editor = MEND(config_of(case))
    shapes = {site: list(vlm.shape(site)) for site in sites_of(case)}
    network = edit_network(case, vlm, statistics="stats_before")
    origin = origin_of(vlm, sites_of(case), [], seed=0)
    return editor.load_state(dict(network.state_dict()), {"facts": {"shapes": shapes}}, origin)


def pooled(captured: Captured, batch: Mapping[str, Tensor]) -> Captured:
    """The published loss: the mean over all answer tokens, not the sum of the rows' means."""
    tokens = (batch["labels"][:, 1:] != NOT_SCORED).sum(1)
    share = (tokens / tokens.sum())[:, None, None]
    delta = {site: value * share for site, value in captured.delta.items()}
    return Captured(x=captured.x, delta=delta, nll=captured.nll)


def capture_as_published(case: GoldenCase, vlm: VLM, name: str) -> Captured:
    batch = batch_of(case, name)
    return pooled(vlm.capture(examples_of(batch), sites_of(case)), batch)


def with_all(vlm: NetworkVLM, deltas: Mapping[str, LowRank]) -> NetworkVLM:
    """The rows' edits together."""
    return vlm.with_deltas(
        {s: LowRank(u=d.u.flatten(0, 1), v=d.v.flatten(0, 1)) for s, d in deltas.items()}
    )


def scores(vlm: VLM, examples: Sequence[Example]) -> MulticlassLogProbs:
    p = vlm.predict(examples)
    return multiclass_log_probs(p.logits, p.target.where(p.is_answer, NOT_SCORED))


@pytest.mark.parametrize("case", EDITS, ids=ids(EDITS))
def test_captured_inputs_and_gradients_are_those_of_the_published_code(case: GoldenCase):
    vlm, batch = golden_vlm(), batch_of(case, "edit_batch")
    captured = capture_as_published(case, vlm, "edit_batch")
    for name, site in zip(case.facts["inner_params"], sites_of(case), strict=True):
        x, delta = (attended(case.tensors[f"site.{name}.{part}"], batch) for part in ("x", "delta"))
        torch.testing.assert_close(attended(captured.x[site], batch), x, rtol=0, atol=5e-6)
        assert_relatively_close(attended(captured.delta[site], batch), delta, 5e-6)
    logits = attended(case.tensors["logits_before"], batch)
    torch.testing.assert_close(logits_of(vlm, batch), logits, rtol=0, atol=2e-5)


@pytest.mark.parametrize("case", EDITS, ids=ids(EDITS))
def test_warm_up_ends_with_the_statistics_of_the_published_code(case: GoldenCase):
    vlm = golden_vlm()
    network = edit_network(case, vlm, statistics=None)
    for name in sorted({key.split(".")[0] for key in case.tensors if key.startswith("warmup_")}):
        network(capture_as_published(case, vlm, name), update=True)
    for key, transform in transforms_of(network).items():
        assert_statistics(transform, under(f"stats_before.{golden_key_of(key)}", case.tensors))


@pytest.mark.parametrize("case", EDITS, ids=ids(EDITS))
@pytest.mark.parametrize("source", ["captured here", "captured there"])
def test_edit_is_that_of_the_published_code(case: GoldenCase, source: str):
    vlm = golden_vlm()
    if source == "captured here":
        captured = capture_as_published(case, vlm, "edit_batch")
    else:
        captured = golden_capture(case)
    with torch.no_grad():
        network = edit_network(case, vlm, statistics="stats_before")
        deltas = network(captured, update=False)
    assert_edit(case, with_all(vlm, deltas))
    for number, (name, site) in enumerate(
        zip(case.facts["inner_params"], sites_of(case), strict=True)
    ):
        compact = captured.reached()
        kept = reached(compact.x[site], compact.delta[site])
        factors = under(f"site.{name}", case.tensors)
        assert_relatively_close(deltas[site].v[kept], factors["x_tilde"], 2e-5)
        u = case.tensors["edit_lrs"][number] * factors["delta_tilde"]
        assert_relatively_close(deltas[site].u[kept], u, 2e-5)


def golden_capture(case: GoldenCase) -> Captured:
    rows, tokens = case.tensors["edit_batch.input_ids"].shape
    x, delta = {}, {}
    for name, site in zip(case.facts["inner_params"], sites_of(case), strict=True):
        x[site] = case.tensors[f"site.{name}.x"].view(rows, tokens, -1)
        delta[site] = case.tensors[f"site.{name}.delta"].view(rows, tokens, -1)
    return Captured(x=x, delta=delta, nll=torch.zeros(rows))


def assert_edit(case: GoldenCase, edited: VLM) -> None:
    """Weights, logits and scores after the edit."""
    batch = batch_of(case, "edit_batch")
    for name, site in zip(case.facts["inner_params"], sites_of(case), strict=True):
        wanted = case.tensors[f"edited_weight.{name}"]
        torch.testing.assert_close(edited.weight(site), wanted, rtol=0, atol=2e-6)
    logits = attended(case.tensors["logits_after"], batch)
    torch.testing.assert_close(logits_of(edited, batch), logits, rtol=0, atol=2e-5)
    found, wanted = scores(edited, examples_of(batch)), case.facts["after"]
    assert found.nll.item() == pytest.approx(wanted["nll"], abs=5e-6)
    assert found.prob.item() == pytest.approx(wanted["prob"], abs=5e-6)
    assert found.exact_match_acc.item() == pytest.approx(wanted["acc"], abs=1e-6)


ONE_ROW = [case for case in EDITS if len(case.tensors["edit_batch.input_ids"]) == 1]


@pytest.mark.parametrize("case", ONE_ROW, ids=ids(ONE_ROW))
@pytest.mark.parametrize("way", ["apply", "apply_each"])
def test_one_request_is_edited_as_by_the_published_code(case: GoldenCase, way: str):
    """From text to edited model; with one row both losses are the same."""
    vlm = golden_vlm()
    rows = examples_of(batch_of(case, "edit_batch"))
    before = scores(vlm, rows)
    assert before.nll.item() == pytest.approx(case.facts["before"]["nll"], abs=5e-6)
    editor = editor_of(case, vlm)
    if way == "apply":
        assert_edit(case, editor.apply(vlm, rows))
        return
    each = editor.apply_each(vlm, rows)
    for name, site in zip(case.facts["inner_params"], sites_of(case), strict=True):
        wanted = case.tensors[f"edited_weight.{name}"]
        torch.testing.assert_close(each.weight(site)[0], wanted, rtol=0, atol=2e-6)


# Training: one outer step, without the optimiser


@pytest.mark.parametrize("loss", ["text_kl_only", "as_trainer"])
@pytest.mark.parametrize("case", OUTER_STEPS, ids=ids(OUTER_STEPS))
def test_outer_gradients_and_statistics_are_those_of_the_published_code(
    case: GoldenCase, loss: str
):
    """The published loss, which pools the tokens of a batch, put together here."""
    vlm = golden_vlm()
    network = edit_network(case, vlm, statistics="stats_before")
    captured = capture_as_published(case, vlm, "edit_inner")
    edited = with_all(vlm, network(captured, update=True))
    wanted = case.facts["results"][loss]
    nll, image_nll = (
        scores(edited, examples_of(batch_of(case, name))).nll
        for name in ("edit_outer", "edit_outer_image")
    )
    drift = {name: divergence(vlm, edited, batch_of(case, name)) for name in ("loc", "loc_image")}
    total = case.facts["cedit"] * nll + case.facts["iedit"] * image_nll
    total = total + case.facts["cloc"] * drift["loc"]
    if loss == "as_trainer":
        total = total + case.facts["cloc"] * drift["loc_image"]
        assert drift["loc_image"].item() == pytest.approx(wanted["l_image_loc"], abs=1e-5)
    assert nll.item() == pytest.approx(wanted["l_edit"], abs=1e-5)
    assert image_nll.item() == pytest.approx(wanted["l_image_edit"], abs=1e-5)
    assert drift["loc"].item() == pytest.approx(wanted["l_loc"], abs=1e-5)
    assert total.item() == pytest.approx(wanted["total"], abs=1e-5)

    total.backward()
    gradients = under(f"grad_{loss}", case.tensors)
    assert network.edit_lrs.grad is not None
    assert_relatively_close(network.edit_lrs.grad, gradients.pop("edit_lrs"), 2e-5)
    for key, transform in transforms_of(network).items():
        assert transform.mlp is not None
        for name, parameter in transform.mlp.named_parameters():
            golden_name = f"{name}.weight" if "mode" in name else name
            golden_name = f"mend.{golden_key_of(key)}.mlp.{golden_name}"
            assert parameter.grad is not None
            assert_relatively_close(parameter.grad, gradients.pop(golden_name), 2e-5)
        assert_statistics(transform, under(f"stats_after.{golden_key_of(key)}", case.tensors))
    assert not gradients


def divergence(before: VLM, after: VLM, batch: Mapping[str, Tensor]) -> Tensor:
    old, new = (logits_of(vlm, batch).log_softmax(-1) for vlm in (before, after))
    return F.kl_div(new, old.detach(), log_target=True, reduction="batchmean")
