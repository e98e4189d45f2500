"""LiveEdit: a mixture of small experts beside the model, one for each edit (Chen et al. 2025,
Lifelong Knowledge Editing for Vision Language Models with Low-Rank Mixture-of-Experts).

At one decoder layer, with h its output, V, Q and A its output at image, question and answer, a
network that is trained once makes of an edit an expert U, W (rank vectors each) and two extracts,
eqr of Q and evr of (Q, V). A question about an image has extracts iqr and ivr of its own, and at
every position

    h ← h + Σ_m w_m W_mᵀ relu(U_m LN(h)),        w = softmax(⟨iqr, eqr⟩) · sigmoid(⟨iqr, eqr⟩)

over the edits m that pass the hard filter ⟨ivr, evr_m⟩ > ⟨ivr, extract of a learnt image⟩. A
question without image is never edited. Loss: the NLL of request, rephrase and other image, and
KL(edited || base) on image locality, under a random set of the batch's experts with the right one
in it; and four losses of the routing (`routing`).

Differences from the published code:

- The layer runs once. The published training takes its output and runs the network from that layer
  on with it, so the layer acts twice, and what is learnt is for a network that nobody uses.
- Rows of a batch are routed apart, and experts chosen for the prompt stay while an answer is
  generated. The published use has one row, and does not generate.
- The KL is over all text tokens, and there over the answer's.
- With `c_apart` > 0 training also asks that the images of a batch's other edits are farther than
  the learnt image. The published losses rank them behind the edit's own image alone, so with many
  edits ever more of them pass the filter.
- Pairs of an image and its edit come from the generality probes of the training cases, and
  unrelated images from the image-locality probes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor

from mmedit.cases import EditCase, Example, Probe, image_name
from mmedit.deltas import Delta
from mmedit.editors.block_editor import BlockEditor, BlockLearner
from mmedit.editors.blocks import read_block, require_images
from mmedit.editors.config import EditorConfig
from mmedit.editors.entries import Entries
from mmedit.editors.experts import Experts
from mmedit.editors.objective import outcome_under, reverse_divergence, rows_of
from mmedit.methods.liveedit.config import LiveEditConfig
from mmedit.methods.liveedit.network import LiveEditNetwork
from mmedit.methods.liveedit.routing import (
    Asked,
    filtered,
    routing_losses,
    similarity,
    soft_weights,
)
from mmedit.vlm.interface import VLM


def experts(
    network: LiveEditNetwork,
    stored: Mapping[str, Tensor],
    extracts: Asked,
    kept: Bool[Tensor, "rows entries"],
) -> Experts:
    """Return the experts that questions are answered under, with the weights of each row."""
    weights = soft_weights(similarity(extracts.query, stored["eqr"]), kept)
    rank = stored["expert_in"].shape[1]
    return Experts(
        read=stored["expert_in"].flatten(0, 1),
        write=stored["expert_out"].flatten(0, 1),
        weights=weights.repeat_interleave(rank, 1),
        norm=network.norm,
    )


class LiveEditLearner(BlockLearner):
    """The outer loss. A batch costs the edited layer for requests and probes, and from there on one
    forward and backward over the probes.
    """

    def forward(self, cases: Sequence[EditCase]) -> tuple[Tensor, dict[str, Tensor]]:
        vlm, config, network = self.vlm, self.config, self.network
        probes = [probe for probe in config.probe_weights if probe in cases[0].probes]
        requests = [case.request for case in cases]
        stored = network.stored(read_block(vlm, requests, self.layer))
        extracts = network.asked(read_block(vlm, rows_of(cases, probes), self.layer))
        if self.training:
            kept = supersets(len(cases), probes).to(vlm.device)
        else:
            kept = filtered(extracts, stored["evr"])
        delta = experts(network, stored, extracts, kept)
        edited = vlm.with_deltas({vlm.layer_sites[self.layer]: delta})
        found = outcome_under(lambda _: edited, vlm, cases, probes, drift=reverse_divergence)
        loss, figures = found.total(config.probe_weights), dict(found.figures)
        parts = dict(zip(probes, extracts.split(len(cases)), strict=True))
        near = [part for probe, part in parts.items() if not probe.is_locality]
        far = [part for probe, part in parts.items() if probe.is_locality]
        same = about_same_image(requests).to(vlm.device)
        for name, term in routing_losses(near, far, stored, same).items():
            loss = loss + config.routing_weights[name] * term
            figures[f"loss/{name}"] = term.detach()
        return loss, figures


def about_same_image(requests: Sequence[Example]) -> Bool[Tensor, "edits edits"]:
    """Return which edits are about the same image."""
    images = [image_name(request) for request in requests]
    numbers = torch.tensor([images.index(image) for image in images])
    return numbers.unsqueeze(0) == numbers.unsqueeze(1)


def supersets(edits: int, probes: Sequence[Probe]) -> Bool[Tensor, "rows edits"]:
    """Return random sets of a batch's experts for each row, the right one among them: any number of
    others is equally likely.
    """
    drawn = torch.rand(len(probes) * edits, edits) < torch.rand(len(probes) * edits, 1)
    return drawn | torch.eye(edits, dtype=torch.bool).repeat(len(probes), 1)


class LiveEdit(BlockEditor[LiveEditConfig]):
    """LiveEdit. An edit costs a forward up to the edited layer. A question costs one more layer
    than without edits, and a product with the extracts of all edits.
    """

    method: ClassVar[str] = "liveedit"
    title: ClassVar[str] = "LiveEdit"
    paper: ClassVar[str] = (
        "Chen et al. 2025, Lifelong Knowledge Editing for Vision Language Models with Low-Rank "
        "Mixture-of-Experts"
    )
    config_class: ClassVar[type[EditorConfig]] = LiveEditConfig
    depth: ClassVar[float] = 21 / 32  # published: layer 21 of 32
    learner_class: ClassVar[type[BlockLearner]] = LiveEditLearner

    def build(self, facts: Mapping[str, Any]) -> LiveEditNetwork:
        return LiveEditNetwork(int(facts["hidden"]), self.config)

    def shapes(self, vlm: VLM) -> dict[str, tuple[int | None, ...]]:
        config, hidden = self.config, vlm.frozen.hidden
        extract, expert = (config.eqe, config.module), (config.rank, hidden)
        return {"eqr": extract, "evr": extract, "expert_in": expert, "expert_out": expert}

    @torch.no_grad()
    def learn(self, vlm: VLM, entries: Entries, requests: Sequence[Example]) -> dict[str, Tensor]:
        require_images(requests, self.label)
        network: LiveEditNetwork = self.network_on(vlm)
        return network.stored(read_block(vlm, requests, self.layer))

    @torch.no_grad()
    def choose(self, vlm: VLM, entries: Entries, examples: Sequence[Example]) -> dict[str, Delta]:
        network: LiveEditNetwork = self.network_on(vlm)
        seen = entries.seen_by(len(examples))
        if all(example.image is None for example in examples):
            return {}
        block = read_block(vlm, examples, self.layer)
        extracts = network.asked(block)
        kept = filtered(extracts, entries["evr"]) & seen & block.has_image.unsqueeze(1)
        used = kept.any(0).nonzero().flatten()
        if not len(used):
            return {}
        stored = {name: tensor[used] for name, tensor in entries.tensors.items()}
        return {vlm.layer_sites[self.layer]: experts(network, stored, extracts, kept[:, used])}
