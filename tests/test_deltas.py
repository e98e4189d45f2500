from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from closeness import assert_close, assert_linear, moved
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import OPTForCausalLM

from mmedit.delta_files import load_deltas, save_deltas
from mmedit.deltas import (
    Delta,
    Dense,
    LowRank,
    Sum,
    compose,
    compose_all,
    fold,
    linear_at,
    together,
)
from mmedit.errors import DataError, SiteError
from mmedit.vlm.acting import added

FC1, FC2, QUERY = (
    f"model.decoder.layers.1.{name}" for name in ("fc1", "fc2", "self_attn.q_proj")
)  # OPT gives fc1 and fc2 one axis for rows and tokens, q_proj two
OUT, IN = 5, 7


def low_rank(edits: int | None = None, shape: tuple[int, int] = (OUT, IN), seed: int = 0) -> Delta:
    lead = () if edits is None else (edits,)
    return LowRank(normal(*lead, 2, shape[0], seed=seed), normal(*lead, 2, shape[1], seed=seed + 1))


def dense(edits: int | None = None, shape: tuple[int, int] = (OUT, IN), seed: int = 0) -> Delta:
    return Dense(normal(*(() if edits is None else (edits,)), *shape, seed=seed))


def mixed(edits: int | None = None, shape: tuple[int, int] = (OUT, IN), seed: int = 0) -> Delta:
    """A sum of both kinds, and of one edit for all rows with one per row."""
    parts = compose(dense(None, shape, seed), low_rank(edits, shape, seed))
    return compose(parts, low_rank(None, shape, seed + 5))


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.3


KINDS: list[Callable[..., Delta]] = [low_rank, dense, mixed]
every_kind = pytest.mark.parametrize("make", KINDS)
one_or_many = pytest.mark.parametrize("edits", [None, 3], ids=["one edit", "an edit per row"])


@pytest.fixture(scope="module")
def language() -> OPTForCausalLM:
    """An OPT of three layers."""
    return tiny.build_network(tiny.build_processor()).language_model


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return torch.randint(4, 300, (3, 6), generator=torch.Generator().manual_seed(0))


def deltas_for(language: OPTForCausalLM, make: Callable[..., Delta], edits: int | None):
    linears = {site: linear_at(language, site) for site in (FC1, FC2, QUERY)}
    return {
        site: make(edits, (linear.out_features, linear.in_features), seed=number)
        for number, (site, linear) in enumerate(linears.items())
    }


def really_changed(language: OPTForCausalLM, deltas: dict[str, Delta], row: int) -> Any:
    """A copy of the network whose weights are those of one row's edit."""
    changed = deepcopy(language)
    for site, delta in deltas.items():
        change = delta.select([row]).weight()
        linear_at(changed, site).weight.data += change[0] if change.ndim == 3 else change
    return changed


@torch.no_grad()
@every_kind
@one_or_many
def test_forward_equals_that_of_one_edited_weight_per_row(language, ids, make, edits):
    deltas = deltas_for(language, make, edits)
    with added(language, deltas, rows=3):
        logits = language(ids).logits
    expected = torch.cat(
        [really_changed(language, deltas, n)(ids[n : n + 1]).logits for n in (0, 1, 2)]
    )
    assert_close(logits, expected)
    for row, before in zip(logits, language(ids).logits, strict=True):
        assert moved(row, before)


@torch.no_grad()
@every_kind
@one_or_many
def test_generation_equals_that_of_one_edited_weight_per_row(language, ids, make, edits):
    deltas = deltas_for(language, make, edits)
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    with added(language, deltas, rows=3):
        generated = language.generate(ids, **settings)
    wanted = [
        really_changed(language, deltas, n).generate(ids[n : n + 1], **settings) for n in (0, 1, 2)
    ]
    assert torch.equal(generated, torch.cat(wanted))
    assert not torch.equal(generated, language.generate(ids, **settings))


def hooks(network: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in network.modules())


def test_hooks_live_only_inside_the_context():
    network = nn.Sequential(nn.Linear(IN, OUT))
    with added(network, {"0": low_rank()}, rows=1):
        assert hooks(network) == 1
    assert hooks(network) == 0


def test_hooks_are_gone_after_an_exception():
    network = nn.Sequential(nn.Linear(IN, OUT), nn.Linear(OUT, OUT))
    with pytest.raises(KeyboardInterrupt), added(network, {"0": low_rank()}, rows=1):
        raise KeyboardInterrupt
    assert hooks(network) == 0
    with pytest.raises(SiteError), added(network, {"0": low_rank(), "1": dense()}, rows=1):
        pass
    assert hooks(network) == 0


def test_network_is_never_written_to():
    network = nn.Sequential(nn.Linear(IN, OUT))
    before = deepcopy(network.state_dict())
    with added(network, {"0": mixed(2)}, rows=2):
        network(normal(2, 4, IN, seed=0))
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


@every_kind
@one_or_many
def test_delta_of_x_is_its_weight_times_x(make, edits):
    delta, x = make(edits), normal(3, 4, IN, seed=9)
    assert_linear(delta(x), x @ delta.weight().mT)
    assert delta.shape == (OUT, IN)
    assert delta.edits == edits


@pytest.mark.parametrize("second", KINDS)
@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("edits", [(None, None), (3, 3), (None, 3), (3, None)])
def test_composing_adds_the_weights(first, second, edits):
    one, two = first(edits[0]), second(edits[1], seed=7)
    both = compose(one, two)
    assert_linear(both.weight(), one.weight() + two.weight())
    assert both.edits == (3 if 3 in edits else None)


def test_a_long_sequence_of_separate_edits_stays_one_delta_of_each_kind():
    total = dense(3)
    for seed in range(4):
        total = compose(compose(total, low_rank(3, seed=seed)), dense(3, seed=seed))
    assert isinstance(total, Sum)
    assert [type(part) for part in total.parts] == [Dense, LowRank]
    ranks = [part.u.shape[-2] for part in total.parts if isinstance(part, LowRank)]
    assert ranks == [8]


def test_a_long_sequence_of_edits_for_all_rows_costs_no_more_than_one_matrix():
    total, wanted = low_rank(), low_rank().weight()
    for seed in range(1, 30):
        total = compose(total, low_rank(seed=seed))
        wanted = wanted + low_rank(seed=seed).weight()
        assert total.parameters <= OUT * IN
    assert isinstance(total, Dense)
    torch.testing.assert_close(total.weight(), wanted)


def test_the_kinds_merge_where_they_hold_for_all_rows():
    both = compose(low_rank(), dense(seed=1))
    assert isinstance(both, Dense)
    torch.testing.assert_close(both.weight(), low_rank().weight() + dense(seed=1).weight())


def test_low_rank_deltas_stay_low_rank_while_that_is_cheaper():
    wide = (40, 60)
    joined = compose(low_rank(None, wide), low_rank(None, wide, seed=1))
    assert isinstance(joined, LowRank)
    assert joined.u.shape[-2] == 4


def test_many_edits_made_together_are_one_matrix():
    separate = low_rank(20)
    assert isinstance(separate, LowRank)
    [delta] = together({"a": separate}).values()
    assert isinstance(delta, Dense)
    torch.testing.assert_close(delta.weight(), separate.weight().sum(0))


def test_sites_are_composed_one_by_one():
    one, two, other = dense(), dense(seed=1), dense(seed=2)
    both = compose_all({"a": one, "b": two}, {"b": other, "c": one})
    assert both["a"] is one
    assert both["c"] is one
    torch.testing.assert_close(both["b"].weight(), two.weight() + other.weight())


@every_kind
def test_select_says_which_edit_answers_which_row(make):
    delta = make(3)
    for rows in ([2, 0, 2, 1], [1, 2, 0], [0, 1, 2], [1]):
        assert torch.equal(delta.select(rows).weight(), delta.weight()[rows])
        assert delta.select(rows).edits == len(rows)


@every_kind
def test_edits_selected_one_after_the_other_and_again_answer_their_rows(make):
    delta, rows = make(3), [0, 1, 2, 0, 1, 2]
    found, x = delta.select(rows), normal(6, 4, IN, seed=9)
    assert_linear(found(x), x @ delta.weight()[rows].mT)
    assert torch.equal(found.weight(), delta.weight()[rows])
    assert (found.edits, found.parameters) == (6, delta.parameters)
    assert torch.equal(found.select([5, 0]).weight(), delta.weight()[[2, 0]])
    assert_linear(compose(found, make(6))(x), found(x) + make(6)(x))


@every_kind
def test_one_edit_for_all_rows_answers_any_selection(make):
    delta = make(None)
    assert torch.equal(delta.select([5, 5, 1]).weight(), delta.weight())
    assert delta.select([5, 5, 1]).edits is None


def test_other_number_of_rows_than_of_edits_is_an_error():
    network = nn.Sequential(nn.Linear(IN, OUT))
    with pytest.raises(SiteError) as raised, added(network, {"0": low_rank(3)}, rows=2):
        pass
    assert str(raised.value) == (
        "3 separate edits cannot answer 2 rows: row i is answered under edit i. "
        "Use select(rows) to say which edit answers which row."
    )


def test_delta_of_another_shape_than_the_weight_is_an_error():
    network = nn.Sequential(nn.Linear(OUT, IN))
    with pytest.raises(SiteError) as raised, added(network, {"0": dense()}, rows=2):
        pass
    assert str(raised.value) == "the delta for 0 is (5, 7), the weight there (7, 5)"


def test_deltas_of_two_shapes_do_not_compose():
    with pytest.raises(SiteError) as raised:
        compose(dense(), dense(None, (IN, OUT)))
    assert str(raised.value) == "deltas of shapes (5, 7) and (7, 5) cannot act at one site"


def test_deltas_with_other_numbers_of_edits_do_not_compose():
    with pytest.raises(SiteError) as raised:
        compose(dense(2), low_rank(3))
    wanted = "one delta has 2 edits and the other 3; select the same rows of both"
    assert str(raised.value) == wanted


def test_unknown_site_is_an_error_that_tells_the_nearest():
    network = nn.ModuleDict({"first": nn.Linear(2, 2), "norm": nn.LayerNorm(2)})
    with pytest.raises(SiteError) as raised:
        linear_at(network, "frist")
    wanted = "the network has no Linear named 'frist'. Did you mean 'first'?"
    assert str(raised.value) == wanted


def test_site_that_is_no_linear_is_an_error():
    network = nn.ModuleDict({"norm": nn.LayerNorm(2)})
    with pytest.raises(SiteError) as raised:
        linear_at(network, "norm")
    assert str(raised.value) == "norm is a LayerNorm; an edit site must be an nn.Linear"


@every_kind
@one_or_many
def test_folded_weight_is_the_sum(make, edits):
    weight, delta = normal(OUT, IN, seed=3), make(edits)
    assert_linear(fold(weight, delta), weight + delta.weight())


def test_folding_keeps_the_dtype_of_the_weight():
    assert fold(torch.ones(OUT, IN, dtype=torch.float16), dense()).dtype == torch.float16


@every_kind
@one_or_many
def test_saved_deltas_come_back_as_they_were(tmp_path: Path, make, edits):
    deltas = {"model.a": make(edits), "model.b.fc1": make(edits, seed=4)}
    save_deltas(tmp_path / "deltas.safetensors", deltas)
    loaded = load_deltas(tmp_path / "deltas.safetensors")
    assert loaded.keys() == deltas.keys()
    for site, delta in deltas.items():
        assert type(loaded[site]) is type(delta)
        assert loaded[site].edits == delta.edits
        assert torch.equal(loaded[site].weight(), delta.weight())


def test_one_delta_at_two_sites_can_be_saved(tmp_path: Path):
    delta = dense()
    save_deltas(tmp_path / "deltas.safetensors", {"a": delta, "b": delta})
    assert torch.equal(load_deltas(tmp_path / "deltas.safetensors")["b"].weight(), delta.weight())


def test_sum_of_many_parts_keeps_their_order(tmp_path: Path):
    total = Sum(tuple(dense(None if n % 2 else 3, seed=n) for n in range(12)))
    save_deltas(tmp_path / "deltas.safetensors", {"a": total})
    loaded = load_deltas(tmp_path / "deltas.safetensors")["a"]
    assert isinstance(loaded, Sum)
    assert all(
        torch.equal(a.weight(), b.weight()) for a, b in zip(loaded.parts, total.parts, strict=True)
    )


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("weight", "the name of tensor 'weight' is not site|kind|name; expected a file of deltas"),
        ("a|cubic|u", "unknown kind of delta 'cubic'; known: low_rank, dense, neurons"),
    ],
)
def test_file_that_holds_no_deltas_is_an_error(tmp_path: Path, key: str, text: str):
    path = tmp_path / "deltas.safetensors"
    save_file({key: torch.zeros(2)}, path)
    with pytest.raises(DataError) as raised:
        load_deltas(path)
    assert str(raised.value) == f"{path}: {text}"


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (
            {"a|low_rank|u": torch.zeros(1, 4)},
            "has the tensors 'u'; expected u, v",
        ),
        ({"a|dense|w": torch.zeros(4, 4)}, "a dense delta has the tensors 'w'; expected change"),
        ({"a|dense|change": torch.zeros(4)}, r"the shapes of a dense delta are change \[4\]"),
        (
            {"a|low_rank|u": torch.zeros(1, 4), "a|low_rank|v": torch.zeros(2, 4)},
            r"the shapes of a low_rank delta are .*; expected 2 axes, or 3 for separate edits",
        ),
        ({"a|dense|change": torch.zeros(4, 4, dtype=torch.int32)}, "is of dtype torch.int32"),
        ({"a|sum|u": torch.zeros(4)}, "'u' is not number.kind.name"),
        ({"a|sum|0.cubic.u": torch.zeros(4)}, "unknown kind of delta 'cubic'"),
        (
            {"a|dense|change": torch.zeros(4, 4), "a|sum|0.dense.change": torch.zeros(4, 4)},
            "one site has deltas of two kinds",
        ),
    ],
    ids=lambda value: None if isinstance(value, str) else " ".join(value),
)
def test_tensors_that_are_not_those_of_a_delta_are_an_error(
    tmp_path: Path, tensors: dict[str, Tensor], said: str
):
    save_file(tensors, tmp_path / "deltas.safetensors")
    with pytest.raises(DataError, match=said):
        load_deltas(tmp_path / "deltas.safetensors")


def test_a_torn_file_of_deltas_is_one_line(tmp_path: Path):
    (tmp_path / "torn.safetensors").write_bytes(b"half")
    for name in ("torn.safetensors", "nowhere.safetensors"):
        with pytest.raises(DataError, match=f"{name} cannot be read") as raised:
            load_deltas(tmp_path / name)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@every_kind
def test_float32_delta_leaves_the_dtype_of_a_half_precision_network(make, dtype):
    network = nn.Sequential(nn.Linear(IN, OUT).to(dtype))
    x = normal(3, 4, IN, seed=0).to(dtype)
    with added(network, {"0": make(3)}, rows=3):
        output = network(x)
    assert output.dtype == dtype
    wanted = network(x).float() + make(3)(x.float())
    torch.testing.assert_close(output, wanted.to(dtype))


def test_edit_that_folding_rounds_away_survives_beside_the_weight():
    network = nn.Sequential(nn.Linear(2, 1, bias=False)).half()
    weight = linear_at(network, "0").weight
    weight.data = torch.tensor([[1.0, -1.0]], dtype=torch.float16)
    small = Dense(torch.tensor([[1e-4, 0.0]]))
    x = torch.full((1, 1, 2), 1000.0, dtype=torch.float16)
    assert torch.equal(fold(weight.data, small), weight.data)
    with added(network, {"0": small}, rows=1):
        assert network(x).item() == pytest.approx(0.1, rel=1e-3)
