"""What MEND does by itself; how it compares with the published code is in test_mend_golden.py."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from golden_vlm import as_text, golden_network, golden_vlm
from PIL import Image
from torch import Tensor, nn

from mmedit.cases import EditCase, Example, Probe
from mmedit.editors.fitting import Fitting
from mmedit.errors import DataError, EditorError, TrainingError
from mmedit.methods.ft import FT, FTConfig
from mmedit.methods.mend import MEND, MENDConfig
from mmedit.methods.mend.network import IDMLP, EditNetwork, GradientTransform, RunningNorm
from mmedit.training.settings import TrainingConfig
from mmedit.vlm.interface import VLM
from mmedit.vlm.network import NetworkVLM
from mmedit.vlm.outputs import Captured, SiteTokens

SITES = tuple(f"language_model.model.decoder.layers.1.{name}" for name in ("fc1", "fc2"))
SHAPES = dict(zip(SITES, ((64, 32), (32, 64)), strict=True))
ROWS = [
    Example(prompt="5 7 9 11", target="12 13"),
    Example(prompt="21 22", target="23 24 25 26 27"),
    Example(prompt="31 32 33", target="34"),
]


def config(**changes: object) -> MENDConfig:
    training = TrainingConfig(steps=3, batch_size=2)
    settings = {"sites": SITES, "rank": 16, "lr": 1e-3, "edit_lr": 1e-2, "training": training}
    return MENDConfig.model_validate(settings | changes)


@pytest.fixture(scope="module")
def vlm() -> NetworkVLM:
    return golden_vlm()


@pytest.fixture(scope="module")
def cases() -> list[EditCase]:
    """Random facts; half of the probes have an image."""
    generator = torch.Generator().manual_seed(0)

    def example(length: int, *, image: int | None = None) -> Example:
        ids = torch.randint(4, 96, (length,), generator=generator)
        picture = None if image is None else Image.new("RGB", (8, 8), (image, 255 - image, 9))
        return Example(prompt=as_text(ids[:4]), target=as_text(ids[4:]), image=picture)

    return [
        EditCase(
            id=f"case-{number}",
            request=example(5 + number % 3, image=40 * number),
            probes={
                Probe.TEXT_GENERALITY: (example(6, image=40 * number),),
                Probe.IMAGE_GENERALITY: (example(7, image=40 * number + 20),),
                Probe.TEXT_LOCALITY: (example(8),),
                Probe.IMAGE_LOCALITY: (example(6, image=200 - number),),
            },
        )
        for number in range(5)
    ]


@pytest.fixture(scope="module")
def editor(vlm: NetworkVLM, cases: list[EditCase]) -> MEND:
    made = MEND(config())
    return made.fit(vlm, Fitting(cases))


def trained_network(vlm: VLM, *, seed: int = 0) -> EditNetwork:
    """An edit network that is not the identity, with statistics of the three rows."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = EditNetwork(SHAPES, config())
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.1)
    with torch.no_grad():
        network(vlm.capture(ROWS, SITES), update=True)
    return network.requires_grad_(False)


# Running statistics

UNITS = {
    "ordinary": lambda noise: noise,
    "small": lambda noise: 1e-3 * noise,
    "far from zero": lambda noise: 30 + noise,
    "dead": lambda noise: 0 * noise,
    "constant": lambda noise: 0 * noise + 0.3,
    "large and constant": lambda noise: 0 * noise + 100 / 3,
}
DEAD = torch.tensor([name in ("dead", "constant", "large and constant") for name in UNITS])


def tokens(count: int, *, seed: int = 0) -> Tensor:
    """[count, units]"""
    noise = torch.randn(count, len(UNITS), generator=torch.Generator().manual_seed(seed))
    return torch.stack([made(noise[:, n]) for n, made in enumerate(UNITS.values())], dim=1)


def one_row(x: Tensor, delta: Tensor) -> SiteTokens:
    return SiteTokens(x=x, delta=delta, of_row=(len(x),))


def gathered(x: Tensor, blocks: list[int]) -> RunningNorm:
    norm = RunningNorm(x.shape[1])
    for block in x.split(blocks):
        norm.update(block)
    return norm


@pytest.mark.parametrize("blocks", [[200], [1] * 200, [1, 7, 150, 2, 40], [199, 1], [3, 197]])
def test_statistics_are_the_same_however_the_tokens_are_cut_into_blocks(blocks: list[int]):
    x = tokens(200)
    found, wanted = gathered(x, blocks), x.double()
    assert found.count == 200
    torch.testing.assert_close(found.mean, wanted.mean(0).float(), rtol=1e-5, atol=1e-6)
    assert torch.allclose(found.std[~DEAD], wanted.std(0)[~DEAD].float(), rtol=1e-5)


def test_block_without_token_changes_no_statistics():
    norm = gathered(tokens(20), [20])
    before = copy.deepcopy(norm.state_dict())
    norm.update(torch.empty(0, len(UNITS)))
    assert all(torch.equal(norm.state_dict()[name], tensor) for name, tensor in before.items())
    untouched = gathered(torch.empty(0, len(UNITS)), [0])
    assert all(not tensor.any() for tensor in untouched.state_dict().values())


def test_block_with_a_number_that_is_none_changes_no_statistics():
    norm = gathered(tokens(20), [20])
    before = copy.deepcopy(norm.state_dict())
    for wrong in (float("nan"), float("inf")):
        block = tokens(5, seed=1)
        block[2, 3] = wrong
        norm.update(block)
    assert all(torch.equal(norm.state_dict()[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("seen", [0, 1])
def test_without_two_tokens_seen_nothing_is_edited(seen: int):
    """One token has no spread; the first answer of a training may be a single token."""
    x = gathered(tokens(1)[:seen], [seen])(tokens(3, seed=1))
    assert torch.equal(x, torch.zeros_like(x))


@pytest.mark.parametrize("blocks", [[200], [1] * 200, [1, 7, 150, 2, 40]])
def test_unit_that_never_varied_is_left_out_instead_of_divided_by_nothing(blocks: list[int]):
    norm = gathered(tokens(200), blocks)
    woken = norm(tokens(4, seed=1) + 1)
    assert not woken[:, DEAD].any()
    assert woken[:, ~DEAD].all()


@pytest.mark.parametrize("blocks", [[200], [1] * 200, [1, 7, 150, 2, 40]])
def test_edit_in_float32_is_that_in_float64_though_units_were_dead(blocks: list[int]):
    """The published code divides by σ + 1e-7: a unit that wakes after the warm-up is blown up."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        single = GradientTransform(len(UNITS), len(UNITS), config(), modes=1)
        for parameter in single.parameters():
            nn.init.normal_(parameter, std=0.3)
    double = copy.deepcopy(single).double()
    x, delta = tokens(200), tokens(200, seed=1)
    awake = tokens(4, seed=2) + 1, tokens(4, seed=3) + 1
    edits = []
    for transform in (single, double):
        for rows in zip(x.split(blocks), delta.split(blocks), strict=True):
            transform({0: one_row(*rows)}, update=True)
        ((new_x, new_delta),) = transform({0: one_row(*awake)}, update=False)
        edits.append((new_delta.mT @ new_x).double())
    assert (edits[0] - edits[1]).abs().max() <= 1e-4 * edits[1].abs().max()


def test_edit_of_a_float32_network_is_that_of_a_float64_network(vlm: NetworkVLM):
    """Statistics of few tokens: units behind the ReLU are dead, and the edit wakes them."""
    double = golden_vlm(golden_network().double())
    first, others = ROWS[1:2], [ROWS[0], ROWS[2]]
    dead = vlm.capture(first, SITES).x[SITES[1]][0, 1:-1].eq(0).all(0)
    woken = vlm.capture(others, SITES).x[SITES[1]].ne(0).any(0).any(0)
    assert (dead & woken).any()
    edits = []
    for each in (vlm, double):
        network = EditNetwork(SHAPES, config())
        network.load_state_dict(trained_network(vlm).state_dict())
        for transform in network.transforms.values():
            assert isinstance(transform, GradientTransform)
            transform.x_norm, transform.delta_norm = (
                RunningNorm(len(norm.mean)) for norm in (transform.x_norm, transform.delta_norm)
            )
        with torch.no_grad():
            network(each.capture(first, SITES), update=True)
            deltas = network(each.capture(others, SITES), update=False)
        edits.append({site: delta.weight() for site, delta in deltas.items()})
    for site in SITES:
        away = (edits[0][site] - edits[1][site]).abs().max()
        assert away <= 1e-4 * edits[1][site].abs().max()


# Rows and padding


def test_statistics_do_not_depend_on_the_batch_size(vlm: NetworkVLM):
    together, apart = (trained_network(vlm) for _ in range(2))
    with torch.no_grad():
        together(vlm.capture(ROWS, SITES), update=True)
        for row in ROWS:
            apart(vlm.capture([row], SITES), update=True)
    for name, tensor in together.state_dict().items():
        torch.testing.assert_close(apart.state_dict()[name], tensor, rtol=1e-4, atol=1e-6)


def test_edits_in_one_batch_are_those_done_one_by_one(vlm: NetworkVLM, editor: MEND):
    together = editor.apply_each(vlm, ROWS)
    for number, row in enumerate(ROWS):
        alone = editor.apply(vlm, [row])
        for site in SITES:
            assert not torch.equal(alone.weight(site), vlm.weight(site))
            torch.testing.assert_close(together.weight(site)[number], alone.weight(site))


def test_edit_of_all_requests_is_the_sum_of_their_edits(vlm: NetworkVLM, editor: MEND):
    together, each = editor.apply(vlm, ROWS), editor.apply_each(vlm, ROWS)
    for site in SITES:
        changes = each.weight(site) - vlm.weight(site)
        torch.testing.assert_close(together.weight(site), vlm.weight(site) + changes.sum(0))


@pytest.mark.parametrize("zero", ["x", "delta"])
def test_masked_token_changes_neither_statistics_nor_edit(vlm: NetworkVLM, zero: str):
    """Padding: whatever stands there has gradient 0. An absent image: input 0."""
    captured = vlm.capture(ROWS, SITES)
    padded = Captured(
        x={s: with_garbage(x, zero=zero == "x") for s, x in captured.x.items()},
        delta={s: with_garbage(d, zero=zero == "delta") for s, d in captured.delta.items()},
        nll=captured.nll,
    )
    plain, disturbed = trained_network(vlm), trained_network(vlm)
    with torch.no_grad():
        wanted, found = plain(captured, update=True), disturbed(padded, update=True)
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(disturbed.state_dict()[name], tensor, rtol=1e-6, atol=1e-7)
    for site in SITES:
        torch.testing.assert_close(found[site].weight(), wanted[site].weight())


def with_garbage(tensor: Tensor, *, zero: bool) -> Tensor:
    """Two more tokens behind every row."""
    generator = torch.Generator().manual_seed(1)
    more = torch.randn(len(tensor), 2, tensor.shape[-1], generator=generator)
    return torch.cat([tensor, 0 * more if zero else 100 * more], dim=1)


def test_edit_is_the_same_when_padded_on_the_left(editor: MEND):
    right, left = golden_vlm(padding_side="right"), golden_vlm(padding_side="left")
    for site in SITES:
        weights = [editor.apply(side, ROWS).weight(site) for side in (right, left)]
        torch.testing.assert_close(*weights)


# Fitting


def learnt(editor: MEND, part: str) -> Tensor:
    return torch.cat([t.flatten() for name, t in editor.state().items() if part in name])


def test_edit_learning_rate_is_learnt_at_its_own_pace(vlm: NetworkVLM, cases: list[EditCase]):
    """The published code builds its optimiser without it: edit_lr stays where it started."""
    editor = MEND(config(lr=1e-30, lr_lr=1e-3))
    editor = editor.fit(vlm, Fitting(cases))
    start = EditNetwork(SHAPES, editor.config).edit_lrs
    moved = (learnt(editor, "edit_lrs") - start).abs()
    steps = editor.config.training.steps
    assert (moved > 0.5e-3).all()
    assert (moved <= steps * 1.01e-3).all()
    assert learnt(editor, "mlp.layers.0.u").abs().max() < 1e-20  # where it starts


def test_edit_network_is_learnt_though_the_edit_learning_rate_rests(
    vlm: NetworkVLM, cases: list[EditCase]
):
    """It starts at a ReLU's kink: with gradient 0 there, as of torch's relu, it would stay."""
    editor = MEND(config(lr=1e-3, lr_lr=0.0))
    editor = editor.fit(vlm, Fitting(cases))
    assert torch.equal(learnt(editor, "edit_lrs"), torch.full((2,), editor.config.edit_lr))
    assert learnt(editor, "mlp.layers.0.u").any()


def test_statistics_count_the_tokens_of_the_requests(vlm: NetworkVLM, cases: list[EditCase]):
    """At the last layer: the answer tokens, which are those that the loss reaches."""
    training = TrainingConfig(steps=1, batch_size=len(cases))
    editor = MEND(config(training=training))
    editor = editor.fit(vlm, Fitting(cases))
    answer_tokens = sum(len(case.request.target.split()) for case in cases)
    assert learnt(editor, "count").tolist() == [answer_tokens] * 4


def test_training_on_single_token_answers_one_at_a_time_is_finite(
    vlm: NetworkVLM, cases: list[EditCase]
):
    short = [
        EditCase(id=c.id, request=replace(c.request, target="17"), probes=probes_of(c))
        for c in cases
    ]
    editor = MEND(config(training=TrainingConfig(steps=3, batch_size=1)))
    editor = editor.fit(vlm, Fitting(short))
    assert all(tensor.isfinite().all() for tensor in editor.state().values())
    assert learnt(editor, "count").tolist() == [3] * 4


def probes_of(case: EditCase) -> dict[Probe, tuple[Example, ...]]:
    return {probe: shown for probe, shown in case.probes.items() if probe != Probe.RELIABILITY}


def test_loss_that_is_no_number_stops_training_and_names_step_and_cases(
    vlm: NetworkVLM, cases: list[EditCase]
):
    editor = MEND(config(edit_lr=1e38, training=TrainingConfig(steps=3, batch_size=len(cases))))
    with pytest.raises(TrainingError, match="step 0: loss nan") as raised:
        editor.fit(vlm, Fitting(cases))
    assert all(case.id in str(raised.value) for case in cases)
    assert not editor.is_fitted
    assert not editor.state()


def test_cases_without_the_same_probes_are_refused(vlm: NetworkVLM, cases: list[EditCase]):
    bare = EditCase(id="bare", request=cases[0].request)
    for wrong in ([bare], [*cases, bare]):
        with pytest.raises(DataError, match="same kinds"):
            MEND(config()).fit(vlm, Fitting(wrong))


# Variants

VARIANTS: dict[str, dict[str, object]] = {
    "unshared": {"shared": False},
    "separate": {"combine": False},
    "separate, unshared": {"combine": False, "shared": False},
    "x only": {"combine": False, "sides": "x"},
    "delta only": {"combine": False, "sides": "delta"},
    "one-sided": {"combine": False, "sides": "smaller"},
    "not normalised": {"norm": False},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_learns_and_is_saved(
    vlm: NetworkVLM, cases: list[EditCase], tmp_path: Path, variant: str
):
    editor = MEND(config(**VARIANTS[variant]))
    editor = editor.fit(vlm, Fitting(cases))
    # each row of u and v has learnt: what has no gradient would stay where it started
    assert all(t.any() for name, t in editor.state().items() if name.endswith(".u"))
    editor.save(tmp_path)
    wanted, found = editor.apply(vlm, ROWS), MEND.load(tmp_path).apply(vlm, ROWS)
    for site in SITES:
        assert not torch.equal(wanted.weight(site), vlm.weight(site))
        assert torch.equal(found.weight(site), wanted.weight(site))


def mlps(variant: str) -> list[str]:
    names = dict(EditNetwork(SHAPES, config(**VARIANTS[variant])).named_modules())
    return [name for name, module in names.items() if isinstance(module, IDMLP)]


def test_what_is_not_transformed_is_passed_on_normalised():
    assert mlps("x only") == ["transforms.32x64.x_mlp", "transforms.64x32.x_mlp"]
    assert mlps("one-sided") == ["transforms.32x64.x_mlp", "transforms.64x32.delta_mlp"]
    transform = GradientTransform(6, 4, config(combine=False, sides="x"), modes=1)
    x, delta = tokens(9), tokens(9, seed=1)[:, :4]
    transform({0: one_row(x, delta)}, update=True)
    ((_, passed),) = transform({0: one_row(x, delta)}, update=False)
    torch.testing.assert_close(passed, transform.delta_norm(delta))


def test_unshared_sites_of_one_shape_have_a_transform_each():
    shapes = {f"layers.{n}.fc1": (8, 4) for n in range(3)}
    assert len(EditNetwork(shapes, config(sites=tuple(shapes))).transforms) == 1
    assert len(EditNetwork(shapes, config(sites=tuple(shapes), shared=False)).transforms) == 3


def test_one_sided_and_combined_exclude_each_other():
    with pytest.raises(ValueError, match="combine transforms both sides"):
        config(sides="x")


# Saving and loading


def test_loaded_editor_edits_bit_for_bit_as_the_saved_one(
    vlm: NetworkVLM, editor: MEND, tmp_path: Path
):
    editor.save(tmp_path / "mend")
    loaded = MEND.load(tmp_path / "mend")
    assert loaded.config == editor.config
    wanted, found = editor.apply_each(vlm, ROWS), loaded.apply_each(vlm, ROWS)
    for site in SITES:
        assert torch.equal(found.weight(site), wanted.weight(site))
    assert torch.equal(found.predict(ROWS).logits, wanted.predict(ROWS).logits)


def test_editor_refuses_another_vlm(editor: MEND, tmp_path: Path):
    other = golden_vlm(golden_network(vision_seed=1))
    editor.save(tmp_path / "mend")
    for each in (editor, MEND.load(tmp_path / "mend")):
        with pytest.raises(EditorError, match="of the same config with other weights"):
            each.apply(other, ROWS)


def test_editor_that_was_not_fitted_says_so(vlm: NetworkVLM):
    with pytest.raises(EditorError, match="has not been fitted"):
        MEND(config()).apply(vlm, ROWS)


def test_folder_of_another_method_is_refused(tmp_path: Path):
    FT(FTConfig()).save(tmp_path)
    with pytest.raises(EditorError, match="holds a 'ft' editor, not 'mend'"):
        MEND.load(tmp_path)
    with pytest.raises(EditorError, match=r"no editor\.json"):
        MEND.load(tmp_path / "nowhere")
