"""Neurons beside a feed-forward block: a delta that reads another Linear than it acts at."""

from __future__ import annotations

from pathlib import Path

import exports
import pytest
import torch
from closeness import assert_close, moved
from safetensors.torch import save_file
from tiny import MIXED, SEEN
from torch import Tensor, nn
from torch.nn import functional as F

from mmedit.delta_files import load_deltas, save_deltas
from mmedit.deltas import Delta, Dense, LowRank, Sum, compose
from mmedit.edits.routed_deltas import Routed
from mmedit.edits.routing import routed
from mmedit.edits.site_changes import changes_of
from mmedit.errors import DataError, EditError, SiteError
from mmedit.export.adapter import export_peft
from mmedit.export.folder import export_transformers
from mmedit.methods.ft import FT, FTConfig
from mmedit.neurons import Neurons, by_input, read_by, stacked
from mmedit.vlm.acting import added
from mmedit.vlm.edit import DeltaChange, Edit
from mmedit.vlm.network import NetworkVLM

READ, INNER, OUT = 6, 10, 4


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def neurons(edits: int | None = None, count: int = 3, seed: int = 0) -> Neurons:
    lead = () if edits is None else (edits,)
    return Neurons(
        normal(*lead, count, READ, seed=seed),
        normal(*lead, count, seed=seed + 1),
        normal(*lead, count, OUT, seed=seed + 2),
        "up",
        INNER,
    )


class Block(nn.Module):
    """Two Linears, which take (rows, tokens) as one axis, as OPT's do."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(READ, INNER), nn.Linear(INNER, OUT)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x.flatten(0, 1)).relu()).unflatten(0, x.shape[:2])


def through(block: nn.Module, delta: Delta, x: Tensor) -> Tensor:
    with torch.no_grad(), added(block, {"down": delta}, rows=len(x)):
        return block(x)


def by_hand(delta: Neurons, x: Tensor, row: int) -> Tensor:
    """The same, neuron by neuron, for one row."""
    one = delta if delta.edits is None else delta.select([row])
    key, bias, value = one.key.reshape(-1, READ), one.bias.flatten(), one.value.reshape(-1, OUT)
    total = torch.zeros(x.shape[1], OUT)
    for k, b, v in zip(key, bias, value, strict=True):
        total += F.relu(x[row] @ k + b)[:, None] * v
    return total


@pytest.mark.parametrize("edits", [None, 3], ids=["one edit", "an edit per row"])
def test_neurons_read_the_input_of_the_block_and_add_to_its_output(edits):
    block, x, delta = Block(), normal(3, 5, READ, seed=9), neurons(edits)
    found = through(block, delta, x)
    for row in range(3):
        expected = block(x)[row] + by_hand(delta, x, row)
        torch.testing.assert_close(found[row], expected, rtol=1e-5, atol=1e-5)


def test_every_part_of_a_sum_gets_its_own_input():
    block, x, beside = Block(), normal(3, 5, READ, seed=9), neurons(3)
    for own in (
        LowRank(normal(3, 2, OUT), normal(3, 2, INNER)),
        LowRank(normal(2, OUT), normal(2, INNER)),
        Dense(normal(OUT, INNER)),
        Dense(normal(3, OUT, INNER)),
    ):
        for both in (compose(own, beside), compose(beside, own)):
            assert set(by_input(both)) == {None, "up"}
            change = through(block, own, x) - block(x)
            expected = through(block, beside, x) + change
            torch.testing.assert_close(through(block, both, x), expected, rtol=1e-5, atol=1e-5)


def test_neurons_of_two_edits_stand_side_by_side():
    block, x = Block(), normal(3, 5, READ, seed=9)
    for edits in (None, 3):
        first, second = neurons(edits), neurons(edits, count=2, seed=5)
        both = compose(first, second)
        assert isinstance(both, Neurons)
        assert both.key.shape[-2] == 5
        expected = through(block, first, x) + through(block, second, x) - block(x)
        torch.testing.assert_close(through(block, both, x), expected, rtol=1e-5, atol=1e-5)


def test_neurons_of_all_rows_and_of_each_row_stay_apart():
    both = compose(neurons(), neurons(3, seed=4))
    assert isinstance(both, Sum)
    block, x = Block(), normal(3, 5, READ, seed=9)
    expected = through(block, neurons(), x) + through(block, neurons(3, seed=4), x) - block(x)
    torch.testing.assert_close(through(block, both, x), expected, rtol=1e-5, atol=1e-5)


def test_separate_edits_of_fewer_neurons_are_filled_with_such_that_add_nothing():
    few, many = neurons(2, count=1, seed=3), neurons(1, count=4)
    both, x = stacked([few, many]), normal(3, 5, READ, seed=9)
    assert both.key.shape == (3, 4, READ)
    torch.testing.assert_close(both(x)[:2], few(x[:2]))
    torch.testing.assert_close(both(x)[2:], many(x[2:]))


def test_select_says_which_neurons_answer_which_row():
    delta, x = neurons(3), normal(4, 5, READ, seed=9)
    rows = [2, 0, 2, 1]
    found = delta.select(rows)(x)
    for place, row in enumerate(rows):
        torch.testing.assert_close(found[place], delta(x[[place] * 3])[row])
    assert neurons().select([1, 1]).edits is None
    with pytest.raises(SiteError, match="row 3 was selected of 3"):
        delta.select([3])


def test_a_gradient_reaches_every_parameter_where_a_neuron_is_active():
    delta = neurons()
    parameters = [t.requires_grad_() for t in (delta.key, delta.bias, delta.value)]
    loss = delta(normal(1, 5, READ, seed=9)).square().sum()
    assert all(gradient.any() for gradient in torch.autograd.grad(loss, parameters))


def test_neurons_are_no_change_of_a_weight():
    with pytest.raises(SiteError, match=r"not a change of a weight.*mmedit serve"):
        neurons().weight()


def test_a_linear_that_does_not_run_before_is_an_error():
    network = nn.Sequential(nn.Linear(READ, OUT), nn.Linear(OUT, READ))
    delta = Neurons(normal(1, OUT), normal(1), normal(1, OUT), "1", READ)
    match = "reads 1, which did not run before it"
    with pytest.raises(SiteError, match=match), added(network, {"0": delta}, rows=1):
        network(normal(1, 2, READ))
    assert not network[1]._forward_pre_hooks
    delta = Neurons(normal(1, OUT), normal(1), normal(1, OUT), "up", READ)
    match = "no Linear named 'up'"
    with pytest.raises(SiteError, match=match), added(network, {"0": delta}, rows=1):
        pass
    assert not network[0]._forward_hooks


# Files


@pytest.mark.parametrize("edits", [None, 2])
def test_saved_neurons_come_back_bit_for_bit(tmp_path: Path, edits):
    own = LowRank(normal(2, OUT), normal(2, INNER))
    deltas = {"a": neurons(edits), "b": compose(own, neurons(edits, seed=8))}
    save_deltas(tmp_path / "deltas.safetensors", deltas)
    loaded = load_deltas(tmp_path / "deltas.safetensors")
    assert read_by(loaded) == ("up",)
    for site, delta in deltas.items():
        assert (loaded[site].shape, loaded[site].edits) == (delta.shape, delta.edits)
        expected, found = delta.tensors(), loaded[site].tensors()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bias": torch.zeros(2)}, r"the shapes of a neurons delta are .* factors of one rank"),
        ({"value": torch.zeros(3, OUT, dtype=torch.int32)}, "value of a neurons delta is of dtype"),
        ({"read_at": torch.tensor([255], dtype=torch.uint8)}, "expected the name of a Linear"),
        ({"read_at": torch.zeros(0, dtype=torch.uint8)}, "expected the name of a Linear"),
        ({"read_at": torch.zeros(2)}, "expected the name of a Linear"),
        ({"width": torch.tensor(-1)}, "and a positive int64"),
        ({"width": torch.tensor([5])}, "and a positive int64"),
        ({"more": torch.zeros(2)}, "expected bias, key, read_at, value, width"),
    ],
    ids=str,
)
def test_damaged_neurons_are_an_error(tmp_path: Path, change: dict[str, Tensor], said: str):
    tensors = neurons().tensors() | change
    file = tmp_path / "deltas.safetensors"
    save_file({f"a|neurons|{name}": tensor for name, tensor in tensors.items()}, file)
    with pytest.raises(DataError, match=said):
        load_deltas(file)


def test_the_size_of_neurons_is_that_of_what_they_add_where_all_are_active():
    delta = neurons()
    for both, rank in ((delta, 3), (compose(Dense(normal(OUT, INNER)), delta), None)):
        (change,) = changes_of({"down": both})
        own = both.parts[0].weight().square().sum() if isinstance(both, Sum) else 0
        expected = ((delta.value.mT @ delta.key).square().sum() + own).sqrt()
        assert change.norm == pytest.approx(float(expected), rel=1e-5)
        assert change.rank == rank
    assert changes_of({"down": delta})[0].kind == "neurons"


# In a VLM


def beside(vlm: NetworkVLM, layer: int, *, edits: int | None = None, seed: int = 0) -> Delta:
    lead = () if edits is None else (edits,)
    site, reads = vlm.value_sites[layer], vlm.ffn_inputs[layer]
    (out, width), read = vlm.shape(site), vlm.shape(reads)[1]
    key, bias, value = (
        normal(*lead, 3, *more, seed=seed + n) for n, more in enumerate(((read,), (), (out,)))
    )
    return Neurons(key, bias, value, reads, width)


def test_separate_neurons_answer_their_own_rows_in_a_vlm(tiny_vlm: NetworkVLM):
    site = tiny_vlm.value_sites[-1]
    each = tiny_vlm.with_deltas({site: beside(tiny_vlm, -1, edits=len(MIXED))})
    together, before = each.predict(MIXED), tiny_vlm.predict(MIXED)
    said = each.generate(MIXED, max_new_tokens=4)
    for row, example in enumerate(MIXED):
        alone = each.select([row])
        answer = together.is_answer[row]
        found = alone.predict([example])
        assert_close(together.logits[row][answer], found.logits[found.is_answer])
        assert moved(together.logits[row][answer], before.logits[row][answer])
        assert said[row] == alone.generate([example], max_new_tokens=4)[0]


def test_neurons_answer_from_kept_states_bit_for_bit_as_from_a_whole_forward(tiny_vlm):
    for layer in (-2, -1):
        deltas = {tiny_vlm.value_sites[layer]: beside(tiny_vlm, layer)}
        whole = NetworkVLM(tiny_vlm.adapter).with_deltas(deltas).predict(MIXED).logits
        tiny_vlm.with_deltas(deltas).predict(MIXED)  # its layers before are kept from here on
        assert torch.equal(tiny_vlm.with_deltas(deltas).predict(MIXED).logits, whole)


def test_layers_run_from_the_one_that_is_read(tiny_vlm: NetworkVLM):
    early, late = tiny_vlm.ffn_inputs[0], tiny_vlm.value_sites[-1]
    (out, width), read = tiny_vlm.shape(late), tiny_vlm.shape(early)[1]
    delta = Neurons(normal(3, read), normal(3), normal(3, out), early, width)
    tiny_vlm.predict(MIXED)
    edited = tiny_vlm.with_deltas({late: delta})
    whole = NetworkVLM(tiny_vlm.adapter).with_deltas({late: delta})
    assert torch.equal(edited.predict(MIXED).logits, whole.predict(MIXED).logits)


def test_rows_under_neurons_and_weights_share_a_batch(tiny_vlm: NetworkVLM):
    site = tiny_vlm.value_sites[-1]
    own = LowRank(*(normal(2, n, seed=5) * 0.3 for n in tiny_vlm.shape(site)))
    deltas = [{site: own}, {site: beside(tiny_vlm, -1)}, {site: compose(own, beside(tiny_vlm, -1))}]
    edits = [
        Edit(name=str(n), method="made", label="made", change=DeltaChange(delta))
        for n, delta in enumerate(deltas)
    ]
    rows = [[], [edits[0]], [edits[1]], [edits[2]], [edits[1], edits[0]]]
    asked = [SEEN[n % len(SEEN)] for n in range(len(rows))]
    vlm = routed(tiny_vlm, rows)
    found = vlm.predict(asked)
    for row, (stack, example) in enumerate(zip(rows, asked, strict=True)):
        alone = tiny_vlm
        for edit in stack:
            alone = alone.with_edit(edit)
        expected = alone.predict([example])
        assert_close(found.logits[row][found.is_answer[row]], expected.logits[expected.is_answer])
    assert isinstance(vlm, NetworkVLM)
    parts = by_input(vlm.deltas[site])
    assert isinstance(parts[tiny_vlm.ffn_inputs[-1]], Routed)


def test_a_weight_beside_which_neurons_stand_is_fine_tuned_as_before(tiny_vlm: NetworkVLM):
    site = tiny_vlm.value_sites[-1]
    edited = tiny_vlm.with_deltas({site: beside(tiny_vlm, -1)})
    assert torch.equal(edited.weight(site), tiny_vlm.weight(site))
    tuned = FT(FTConfig(sites=(site,), lr=1e-2, steps=2)).apply(edited, SEEN[:1])
    assert moved(tuned.predict(SEEN).logits, edited.predict(SEEN).logits)
    assert not torch.equal(tuned.weight(site), tiny_vlm.weight(site))


@pytest.mark.parametrize("export", [export_transformers, export_peft])
def test_neurons_are_not_exported_and_the_error_says_what_serves_them(
    tiny_vlm: NetworkVLM, tmp_path: Path, export
):
    edited = exports.with_edit(tiny_vlm, {tiny_vlm.value_sites[-1]: beside(tiny_vlm, -1)})
    with pytest.raises(EditError, match=r"adds neurons beside the weights.*mmedit serve --edit"):
        export(lambda: edited, tmp_path / "out")
    assert not (tmp_path / "out").exists()
