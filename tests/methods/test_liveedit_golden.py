"""LiveEdit's extracts, experts, routing and losses against the published code (golden kind
`liveedit`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from golden_files import GoldenCase, golden_cases, under
from golden_vlm import golden_network
from torch import Tensor

from mmedit.adapters.layers import resumed
from mmedit.adapters.places import Places
from mmedit.editors.blocks import BlockOutput
from mmedit.editors.objective import reverse_divergence
from mmedit.methods.liveedit import experts
from mmedit.methods.liveedit.config import LiveEditConfig
from mmedit.methods.liveedit.network import LiveEditNetwork
from mmedit.methods.liveedit.routing import (
    filtered,
    prototype_similarity,
    routing_losses,
    similarity,
)
from mmedit.metrics.multiclass_log_probs import answer_nll
from mmedit.vlm.outputs import Predictions

CASES = golden_cases("liveedit")
EXPERTS = [case for case in CASES if case.name.startswith("experts")]
LOSSES = [case for case in CASES if case.name.startswith("losses")]
RESTARTS = [case for case in CASES if case.facts.get("base_model") == "tiny_opt"]
PARTS = ("vision", "query", "answer")
OURS = {
    "inpt_extractor.vis_rep_prot": "prototype",
    "edit_extractor": "edit_extractor",
    "inpt_extractor": "input_extractor",
    "moegen_c": "expert_in",
    "moegen_r": "expert_out",
    "instant_reps_norm": "norm",
    "eqe1": "image_queries",
    "eqe2": "text_queries",
    "ca_query_info_ext1": "interest",
    "ca_query_info_ext2": "text",
    "ca_vision_info_ext": "image",
    "layer_norm1": "image_norm",
    "layer_norm2": "text_norm",
    "layer_norm": "norm",
    "ca_lora": "attention",
    "phi": "queries",
    "q_mlp": "q",
    "k_mlp": "k",
    "v_mlp": "v",
}
"""Names of the published code, and ours."""


def ids(cases: Sequence[GoldenCase]) -> list[str]:
    return [case.name for case in cases]


def ours(name: str) -> str:
    if name.endswith("vis_rep_prot"):
        return "prototype"
    return ".".join(OURS.get(part, part) for part in name.split("."))


def network_of(case: GoldenCase) -> LiveEditNetwork:
    facts, weights = case.facts, under("weights", case.tensors)
    settings = {name: facts[name] for name in ("module", "heads", "rank", "eqe", "lora_scale")}
    network = LiveEditNetwork(facts["d"], LiveEditConfig(prototype=facts["vision"], **settings))
    given = {ours(name): tensor for name, tensor in weights.items()}
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    named = {name: tensor.reshape(shapes[name]) for name, tensor in given.items()}
    missing, unexpected = network.load_state_dict(named, strict=False)
    assert not unexpected
    assert set(missing) <= {"prototype", "norm.weight", "norm.bias"}
    return network.requires_grad_(False)


def block_of(rows: Sequence[dict[str, Tensor]]) -> BlockOutput:
    """The block output of rows that consist of image, question and, in part, an answer."""
    parts = [[row[name] for name in PARTS if name in row] for row in rows]
    states = [torch.cat(row) for row in parts]
    most = max(map(len, states))
    masks = torch.zeros(len(PARTS), len(rows), most, dtype=torch.bool)
    for row, pieces in enumerate(parts):
        ends = torch.tensor([len(piece) for piece in pieces]).cumsum(0).tolist()
        for kind, (begin, end) in enumerate(zip([0, *ends], ends, strict=False)):
            masks[kind, row, begin:end] = True
    places = Places(
        is_real=masks.any(0),
        is_image=masks[0],
        is_prompt=masks[1],
        is_subject=torch.zeros_like(masks[0]),
        is_answer=masks[2],
    )
    return BlockOutput(torch.nn.utils.rnn.pad_sequence(states, batch_first=True), places)


def rows_named(case: GoldenCase, name: str) -> BlockOutput:
    rows = []
    while any(key.startswith(f"{name}_{len(rows)}.") for key in case.tensors):
        rows.append(under(f"{name}_{len(rows)}", case.tensors))
    return block_of(rows)


def close(found: Tensor, expected: Any, atol: float) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected), rtol=0, atol=atol)


@pytest.mark.parametrize("case", EXPERTS, ids=ids(EXPERTS))
def test_an_edit_stores_the_published_extracts_and_expert(case: GoldenCase):
    stored = network_of(case).stored(rows_named(case, "edit"))
    for edit in range(case.facts["n"]):
        for name, tensor in stored.items():
            close(tensor[edit], case.tensors[f"edit_{edit}.{name}"], 1e-5)


@pytest.mark.parametrize("case", EXPERTS, ids=ids(EXPERTS))
def test_a_question_is_routed_to_the_published_experts(case: GoldenCase):
    network, facts, tensors = network_of(case), case.facts, case.tensors
    stored = network.stored(rows_named(case, "edit"))
    begin, end, stop = facts["image_start"], facts["image_stop"], facts["query_stop"]
    hidden = tensors["hidden"]
    asked = network.asked(block_of([{"vision": hidden[begin:end], "query": hidden[end:stop]}]))
    # The learnt image of these cases is given as what is extracted of it.
    asked = asked._replace(prototype=tensors["ivr_prototype"].unsqueeze(0))
    close(asked.query[0], tensors["iqr"], 1e-5)
    close(asked.vision[0], tensors["ivr"], 1e-5)
    close(similarity(asked.vision, stored["evr"])[0], tensors["vision_similarity"], 5e-6)
    close(prototype_similarity(asked), tensors["prototype_similarity"], 5e-6)
    kept = filtered(asked, stored["evr"])
    assert kept[0].nonzero().flatten().tolist() == facts["kept_experts"]
    delta = experts(network, stored, asked, kept)
    if facts["kept_experts"]:
        weights = delta.weights[0, :: facts["rank"]]
        close(weights[kept[0]], tensors["weights_kept"], 2e-6)
    close(delta(hidden.unsqueeze(0))[0], tensors["residual"], 2e-6)


@pytest.mark.parametrize("case", LOSSES, ids=ids(LOSSES))
def test_experts_of_a_training_batch_give_the_published_residuals(case: GoldenCase):
    network = network_of(case)
    stored = network.stored(rows_named(case, "edit"))
    for name, used in (("rel", "rel"), ("gen_text", "gen"), ("gen_image", "gen"), ("loc", "loc")):
        block = rows_named(case, name)
        kept = case.tensors[f"experts_used.{used}"]
        found = experts(network, stored, network.asked(block), kept)(block.states)
        for row, real in enumerate(block.places.is_real):
            close(found[row, real], case.tensors[f"{name}_{row}.residual"], 2e-6)


@pytest.mark.parametrize("case", LOSSES, ids=ids(LOSSES))
def test_routing_losses_are_the_published_ones(case: GoldenCase):
    network, expected = network_of(case), case.facts["losses"]
    for kind, names in (
        ("neighbour", ("soft_relative", "soft_absolute", "hard_neighbour")),
        ("prototype", ("hard_prototype",)),
    ):
        stored = network.stored(rows_named(case, f"{kind}_edit"))
        asked = network.asked(rows_named(case, f"{kind}_input"))
        found = routing_losses([asked], [asked], stored, torch.eye(len(stored["evr"])).bool())
        for name in names:
            close(found[name], expected[name], 1e-5)


@pytest.mark.parametrize("case", LOSSES, ids=ids(LOSSES))
def test_losses_of_answers_are_the_published_ones(case: GoldenCase):
    expected = case.facts["losses"]
    for name in ("rel", "gen_text", "gen_image"):
        found = predictions(case, name, name)
        close(answer_nll(found.logits, found.target, found.is_answer).mean(), expected[name], 1e-5)
    before, after = (predictions(case, f"loc_{when}", "loc") for when in ("before", "after"))
    close(reverse_divergence(before, after).mean(), expected["image_locality"], 1e-5)


def predictions(case: GoldenCase, name: str, labels: str) -> Predictions:
    """The last logits, as many as there are labels."""
    target, mask = (case.tensors[f"{kind}.{labels}"] for kind in ("labels", "mask"))
    logits = case.tensors[f"logits.{name}"][:, -target.shape[1] :]
    return Predictions(logits=logits, target=target, is_text=mask.bool(), is_answer=mask.bool())


@pytest.mark.parametrize("case", RESTARTS, ids=ids(RESTARTS))
@torch.no_grad()
def test_the_layer_runs_once_and_not_twice_as_published(case: GoldenCase):
    tensors, language = case.tensors, golden_network().language_model
    layers = tuple(language.get_decoder().layers)
    block = int(case.facts["block"].split(".")[-1])

    def logits(k: int, states: Tensor) -> Tensor:
        with resumed(layers, k, states.unsqueeze(0)):
            return language(inputs_embeds=tensors["embeds"].unsqueeze(0)).logits[0]

    output = tensors["block_output"]
    close(logits(block + 1, output), tensors["logits"], 3e-5)  # as edits run
    close(logits(block, tensors["block_input"]), tensors["logits"], 3e-5)
    close(logits(block, output), tensors["published_logits"], 3e-5)
