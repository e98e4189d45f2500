"""T-Patcher against Transformer-Patcher's own modules and LiveEdit's port (golden `tpatcher/`)."""

from __future__ import annotations

import pytest
import torch
from golden_files import GoldenCase, golden_cases, under
from golden_vlm import as_text, examples_of, golden_network, golden_vlm, logits_of, site_of
from torch import Tensor, nn

from mmedit.cases import Example
from mmedit.methods.tpatcher.block import Block
from mmedit.methods.tpatcher.config import TPatcherConfig
from mmedit.methods.tpatcher.patch import Patch, Queries, losses_of, queries_of, step
from mmedit.methods.tpatcher.port import find_port
from mmedit.metrics.multiclass_log_probs import answer_nll
from mmedit.neurons import Neurons
from mmedit.vlm.interface import VLM
from mmedit.vlm.network import NetworkVLM

CASES = golden_cases("tpatcher")
PATCHES = [case for case in CASES if case.name.startswith("patch_")]
STEPS = [case for case in CASES if case.name.startswith("step_")]
PORTS = [case for case in CASES if case.name.startswith("port_")]
RELATIVE = 5e-6


def of_name(case: GoldenCase) -> str:
    return case.name


def largest_terms(name: str) -> tuple[int, ...]:
    """The k of "top5_exp", or of both parts of "top20_exp+top10_exp"."""
    return tuple(int(part.removeprefix("top").removesuffix("_exp")) for part in name.split("+"))


def config_of(case: GoldenCase) -> TPatcherConfig:
    facts = case.facts
    first, second = largest_terms(facts["memory_loss"])
    return TPatcherConfig(
        a_margin=facts["act_margin_val"],
        a_largest=largest_terms(facts["activate_loss"])[0],
        m_margins=(facts["margin_val1"], facts["margin_val2"]),
        m_largest=(first, second),
        a_weight=facts.get("activation_factor", 1.0),
        m_weight=facts.get("memory_factor", 1.0),
        lr=facts.get("lr", 1e-2),
        weight_decay=facts.get("weight_decay", 0.0),
        clip=1e9,
    )


def patch_of(tensors: dict[str, Tensor]) -> Patch:
    """The golden neurons as those of one edit."""
    return Patch(
        key=tensors["key"][None],
        bias=tensors["key_bias"][None],
        value=tensors["value"].T[None].contiguous(),
        gain=tensors["gain"].T[None].contiguous(),
    )


def queries_in(case: GoldenCase) -> Queries:
    x = case.tensors["query"][None]
    return Queries(x, torch.ones(x.shape[:2], dtype=torch.bool))


@pytest.mark.parametrize("case", PATCHES, ids=of_name)
def test_neurons_add_to_the_block_what_the_published_module_adds(case: GoldenCase):
    tensors = case.tensors
    patch = patch_of(tensors)
    x = tensors["x"]
    neurons = Neurons(patch.key[0], patch.bias[0], (patch.value * patch.gain)[0], "up", 1)
    torch.testing.assert_close(neurons.activation(x), tensors["activation"], rtol=0, atol=1e-6)
    up, down = under("up", tensors), under("down", tensors)
    hidden = torch.nn.functional.linear(x, up["weight"], up.get("bias")).relu()
    block = torch.nn.functional.linear(hidden, down["weight"], down.get("bias"))
    torch.testing.assert_close(block + neurons(x), tensors["output"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", PATCHES, ids=of_name)
def test_the_losses_are_the_published_ones(case: GoldenCase):
    """The published loss reads every neuron at its place in each row: here it is one neuron for
    each row, which counts on the memory once for each row too, as published.
    """
    x, patch, config = case.tensors["x"], patch_of(case.tensors), config_of(case)
    rows = len(x)
    repeated = Patch(*(tensor.repeat_interleave(rows, dim=1) for tensor in patch.parameters))
    at = x[:, case.facts["places"]].transpose(0, 1).flatten(0, 1)[None]
    read = Queries(at, torch.ones(at.shape[:2], dtype=torch.bool))
    found = losses_of(repeated, read, repeated.at(case.tensors["memory"]), torch.zeros(1), config)
    expected = torch.tensor([case.facts["loss_activation"], case.facts["loss_memory"]])
    made = torch.stack([found.activation[0], found.memory[0]])
    torch.testing.assert_close(made, expected, rtol=RELATIVE, atol=0)


def edit_of(case: GoldenCase) -> tuple[NetworkVLM, Block, Example]:
    batch = {name: case.tensors[name] for name in ("input_ids", "labels")}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    layer = site_of(case.facts["site"])
    vlm = golden_vlm(base=case.facts["base_model"])
    return vlm, Block(f"{layer}.fc1", f"{layer}.fc2"), examples_of(batch)[0]


@pytest.mark.parametrize("case", STEPS, ids=of_name)
def test_a_step_moves_the_neurons_as_adam_on_the_published_loss_does(case: GoldenCase):
    vlm, block, request = edit_of(case)
    patch = patch_of(under("start", case.tensors))
    for parameter in patch.parameters:
        parameter.requires_grad_()
    config = config_of(case)
    with torch.enable_grad():
        edited = vlm.with_deltas({block.site: patch.neurons(vlm, block, separate=False)})
        predictions = edited.predict([request], answers_only=[True])
        nll = answer_nll(predictions.logits, predictions.target, predictions.is_answer)
        losses = losses_of(patch, queries_in(case), patch.at(case.tensors["memory"]), nll, config)
        total = losses.total(config)
    before = case.facts["before"]
    made = torch.stack([losses.nll[0], losses.activation[0], losses.memory[0], total[0]]).detach()
    expected = torch.tensor([before[name] for name in ("nll", "activation", "memory", "total")])
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=0)
    optimizer = torch.optim.Adam(patch.parameters, lr=config.lr, weight_decay=config.weight_decay)
    step(optimizer, patch, total, torch.tensor([False]), clip=config.clip)
    after = under("after", case.tensors)
    for name, found in zip(("key", "key_bias"), (patch.key[0], patch.bias[0]), strict=True):
        torch.testing.assert_close(found.detach(), after[name], rtol=0, atol=RELATIVE)
    for name, found in zip(("value", "gain"), (patch.value[0], patch.gain[0]), strict=True):
        torch.testing.assert_close(found.detach().T, after[name], rtol=0, atol=RELATIVE)
    batch = {name: case.tensors[name] for name in ("input_ids", "labels")}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    edited = vlm.with_deltas({block.site: patch.neurons(vlm, block, separate=False)})
    expected = case.tensors["logits_after"].flatten(0, 1)
    torch.testing.assert_close(logits_of(edited, batch).detach(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", STEPS, ids=of_name)
def test_queries_are_what_the_block_takes_where_answer_tokens_are_predicted(case: GoldenCase):
    vlm, block, request = edit_of(case)
    found = queries_of(vlm, [request], block.reads, neurons=99)
    golden = case.tensors["query"]
    for query in found.x[0][found.real[0]]:
        assert (golden - query).abs().amax(1).min() < 1e-5
    assert as_text(case.tensors["input_ids"][0]).endswith(request.target)


@pytest.mark.parametrize("case", PORTS, ids=of_name)
def test_with_paper_faults_the_neuron_is_the_one_that_the_port_finds(case: GoldenCase):
    vlm, request, texts = port_of(case)
    layer, facts = site_of(case.facts["site"]), case.facts
    config = TPatcherConfig(
        steps=facts["steps"],
        lr=facts["lr"],
        weight_decay=facts["weight_decay"],
        a_weight=facts["activation_factor"],
        m_weight=facts["memory_factor"],
        paper_faults=True,
    )
    block = Block(f"{layer}.fc1", f"{layer}.fc2")
    assert nll_of(vlm, request) == pytest.approx(facts["nll_of_the_edit_pair_before"], rel=RELATIVE)
    found = find_port(vlm, [request], block, texts, config, separate=True)
    published = under("published", case.tensors)
    made = {"key": found.key[0, 0], "key_bias": found.bias[0], "value": found.value[0, 0]}
    for name, tensor in made.items():
        torch.testing.assert_close(tensor, published[name], rtol=0, atol=1e-5)
    edited = vlm.with_deltas({block.site: found})
    after = facts["published"]["nll_of_the_edit_pair_after"]
    assert nll_of(edited, request) == pytest.approx(after, rel=RELATIVE)


def port_of(case: GoldenCase) -> tuple[NetworkVLM, Example, list[Example]]:
    """The golden inputs are embeddings, so each of them becomes that of a token. Those of the
    answer's places are those of the answer's own tokens, which are scored.
    """
    tensors = case.tensors
    answer = tensors["labels"][tensors["label_mask"].bool()].tolist()
    network = golden_network(case.facts["base_model"])
    decoder = network.language_model.model.decoder
    rows, texts = [decoder.embed_tokens.weight.clone()], list[list[int]]()
    for name in ("embeds", *(f"foreign_{k}" for k in range(case.facts["steps"]))):
        first = sum(map(len, rows))
        rows.append(tensors[name])
        texts.append(list(range(first, first + len(tensors[name]))))
    table = torch.cat(rows)
    table[answer] = tensors["embeds"][-len(answer) :]
    decoder.embed_tokens = nn.Embedding.from_pretrained(table)  # the head keeps its own weight
    prompt, *foreign = texts
    request = Example(prompt=as_text(prompt[: -len(answer)]), target=as_text(answer))
    others = [Example(prompt=as_text(ids[:-1]), target=as_text(ids[-1:])) for ids in foreign]
    return golden_vlm(network), request, others


def nll_of(vlm: VLM, request: Example) -> float:
    predictions = vlm.predict([request])
    return float(answer_nll(predictions.logits, predictions.target, predictions.is_answer))
