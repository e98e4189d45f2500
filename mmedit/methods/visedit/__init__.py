"""VisEdit: an adaptor that is trained once changes the image's hidden states (Chen et al. 2025,
Attribution Analysis Meets Model Editing: Advancing Knowledge Correction in Vision Language Models
with VisEdit; its editor is called VEAD).

With I the output of one decoder layer at the image's tokens, and E its output at all tokens of the
edit (image, question, answer),

    I ← I + σ(s) · W_end Attention(W_begin LN(I), LN(E))         s_i = mean_heads ⟨R(I_i), R'(e)⟩

where e is E at the last prompt token, R(x) = x + W₂ relu(W₁ x) of the normalised states, and s says
how much each image token matters to the edit. Nothing else is written, so a question without image
is never edited. Loss: the NLL of request, rephrase and other image, KL(base || edited) on image
locality, and 0.1 times -log σ(s) on the first and -log(1 - σ(s)) on the last.

An edit takes the place of the one before it, as published: there is one signal E, and nothing that
chooses among several. For many edits in one VLM use LiveEdit.

Differences from the published code:

- The published code also trains softmax(s) towards the influence of each image token on later
  attention outputs, measured by noise, and copies one number into all targets by a wrong index.
  That term is left out: it needs a forward of all later attentions for each of 24 noisy tokens.
- Image tokens are found by a mask, so their number may differ from image to image.
- Losses are means over rows of each row's mean. The published ones are means over all tokens.
- The KL is over all text tokens, not over the answer's alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmedit.cases import EditCase, Example, Probe
from mmedit.deltas import Delta
from mmedit.editors.block_editor import BlockEditor, BlockLearner
from mmedit.editors.blocks import BlockOutput, read_block, require_images
from mmedit.editors.config import EditorConfig
from mmedit.editors.entries import Entries
from mmedit.editors.objective import outcome_under, rows_of
from mmedit.methods.visedit.config import VisEditConfig
from mmedit.methods.visedit.network import (
    Adaptor,
    Signal,
    image_shift,
    influence_losses,
    packed,
    signal_of,
)
from mmedit.vlm.interface import VLM


class VisEditLearner(BlockLearner):
    """The outer loss. A batch costs the edited layer for requests and probes, and from there on one
    forward and backward over the probes.
    """

    def forward(self, cases: Sequence[EditCase]) -> tuple[Tensor, dict[str, Tensor]]:
        vlm, config = self.vlm, self.config
        probes = [probe for probe in config.probe_weights if probe in cases[0].probes]
        signal = signal_of(read_block(vlm, [case.request for case in cases], self.layer))
        each = Signal(*(torch.cat([part] * len(probes)) for part in signal))
        block = read_block(vlm, rows_of(cases, probes), self.layer)
        shift, s = image_shift(self.network, block, each)
        edited = vlm.with_deltas({vlm.layer_sites[self.layer]: shift})
        found = outcome_under(lambda _: edited, vlm, cases, probes)
        loss, figures = found.total(config.probe_weights), dict(found.figures)
        for name, term in influence_terms(s, block, probes).items():
            loss = loss + config.c_influence * term
            figures[f"loss/{name}"] = term.detach()
        return loss, figures


def influence_terms(s: Tensor, block: BlockOutput, probes: Sequence[Probe]) -> dict[str, Tensor]:
    """Return the losses of s over all image tokens of these probes, by name; 0 for one that has no
    probes.
    """
    rows = len(s) // len(probes)
    local = torch.tensor([p.is_locality for p in probes for _ in range(rows)], device=s.device)
    real = packed(block.states, block.places.is_image).real
    near, far = (s[real & which.unsqueeze(1)] for which in (~local, local))
    up, down = influence_losses(near, far)
    nothing = s.sum() * 0
    return {
        "influence_up": up if len(near) else nothing,
        "influence_down": down if len(far) else nothing,
    }


class VisEdit(BlockEditor[VisEditConfig]):
    """VisEdit. An edit costs a forward up to the edited layer. A question about an image costs one
    more layer than without edits, and an attention over the tokens of the edit.
    """

    method: ClassVar[str] = "visedit"
    title: ClassVar[str] = "VisEdit"
    paper: ClassVar[str] = (
        "Chen et al. 2025, Attribution Analysis Meets Model Editing: Advancing Knowledge "
        "Correction in Vision Language Models with VisEdit"
    )
    config_class: ClassVar[type[EditorConfig]] = VisEditConfig
    depth: ClassVar[float] = 18 / 32  # published: layers 17 to 19 of 32
    learner_class: ClassVar[type[BlockLearner]] = VisEditLearner
    entry_per_request: ClassVar[bool] = False

    def build(self, facts: Mapping[str, Any]) -> Adaptor:
        return Adaptor(int(facts["hidden"]), self.config)

    def shapes(self, vlm: VLM) -> dict[str, tuple[int | None, ...]]:
        return {"states": (None, vlm.frozen.hidden), "end": (vlm.frozen.hidden,)}

    def learn(self, vlm: VLM, entries: Entries, requests: Sequence[Example]) -> dict[str, Tensor]:
        require_images(requests, self.label)
        self.require_fitted_on(vlm)
        return signal_of(read_block(vlm, requests, self.layer))._asdict()

    def learn_together(
        self, vlm: VLM, entries: Entries, requests: Sequence[Example]
    ) -> dict[str, Tensor]:
        """Return the signal of the last request; those before it would never be read."""
        require_images(requests, self.label)
        return self.learn(vlm, entries, requests[-1:])

    def add(self, entries: Entries, stored: Mapping[str, Tensor]) -> Entries:
        return Entries(tensors={name: tensor[-1:] for name, tensor in stored.items()})

    def add_each(self, entries: Entries, stored: Mapping[str, Tensor]) -> Entries:
        return Entries(tensors={}).with_each(stored)

    def joined(
        self, first: Mapping[str, Tensor], second: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        return dict(second)

    @torch.no_grad()
    def choose(self, vlm: VLM, entries: Entries, examples: Sequence[Example]) -> dict[str, Delta]:
        adaptor: Adaptor = self.network_on(vlm)
        own = entries.seen_by(len(examples)).int().argmax(1)  # each row sees one
        if all(example.image is None for example in examples):
            return {}
        block = read_block(vlm, examples, self.layer)
        shift, _ = image_shift(adaptor, block, Signal(entries["states"][own], entries["end"][own]))
        return {vlm.layer_sites[self.layer]: shift}
