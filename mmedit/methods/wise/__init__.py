"""WISE: a side memory for edits, and a decision for every question (Wang et al. 2024, WISE:
Rethinking the Knowledge Memory for Lifelong Model Editing of Large Language Models).

The side memory W' is a copy of one feed-forward weight W, and edits train it. A question is
answered under W' if W' would change it enough, and else by the model as it was:

    y = W'x + b   if Δ_act > act_ratio · least Δ_act of the edits,   else y = W x + b
    Δ_act = mean_t ‖σ(W'x_t + b) - σ(W x_t + b)‖₂

Training makes Δ_act large for the request and small for irrelevant prompts
(`mmedit.methods.wise.search`). A random share of the entries may change; after `save_freq` edits
another memory begins, and after `merge_freq` they are merged (`mmedit.methods.wise.memories`).

Differences from the published code and EasyEdit's; `paper_faults` brings back those marked *:

- * The side keeps the bias of its Linear. Without it, OPT has another layer there before any edit.
- * Δ_act is the mean over the text tokens of the prompt, in training, for the threshold and in use:
  no image, no answer, no padding. The published code takes all tokens, and in use the largest
  distance of those of a question with more than 100 tokens, against a threshold made of means.
- Irrelevant prompts are locality probes of the training cases, which `fit` keeps as what the Linear
  takes and gives for them. EasyEdit trains on the record's own locality probe.
- Every row of a batch is decided by itself, once, from the prompt. The published code decides for a
  batch as a whole, and again at every token that is generated.
- The margins are in units that `fit` measures (`unit`); the published ones are lengths in one
  network. σ is the language model's own function.
- Weight decay leaves entries alone that may not change. The threshold is taken after the last step.
- * An older memory answers also if the newest one is below its own threshold.
- Memories answer also before they are merged, and after merges without `retrieve`.
- Not taken over: replay of earlier edits, and contexts before the request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from mmedit.cases import EditCase, Example
from mmedit.deltas import Delta
from mmedit.editors.chosen import NOTHING, Chosen
from mmedit.editors.config import EditorConfig
from mmedit.editors.entries import Entries
from mmedit.editors.fitting import Fitting
from mmedit.editors.memory import MemoryEditor
from mmedit.editors.saved import Origin, origin_of
from mmedit.errors import DataError, EditError, EditorError
from mmedit.methods.wise.config import MOST_KEPT, WISEConfig
from mmedit.methods.wise.distance import LONG, Reading, read, route, row_distance, token_distance
from mmedit.methods.wise.memories import added_up, open_memory, taken_in, taken_in_each
from mmedit.methods.wise.search import Margins, Side
from mmedit.vlm.interface import VLM


class Irrelevant(NamedTuple):
    """The result of fitting."""

    prompts: Reading
    """Irrelevant prompts at the site, [1, prompts, tokens, ...]."""
    length: Tensor
    """The usual length of σ(Wx + b) there."""


class WISE(MemoryEditor[WISEConfig]):
    """WISE. An edit costs a forward up to the edited layer and `steps` forwards and backwards from
    there on; a question one layer more than without edits, if the base model was asked it before.
    An edit keeps a whole matrix; in a long sequence `VLM.merged` drops them.
    """

    method: ClassVar[str] = "wise"
    title: ClassVar[str] = "WISE"
    paper: ClassVar[str] = (
        "Wang et al. 2024, WISE: Rethinking the Knowledge Memory for Lifelong Model Editing of "
        "Large Language Models"
    )
    config_class: ClassVar[type[EditorConfig]] = WISEConfig
    entry_per_request: ClassVar[bool] = False

    @property
    def needs_fit(self) -> bool:
        return True

    def require_fits(self, vlm: VLM) -> None:
        super().require_fits(vlm)
        self.config.site_in(vlm)

    def fit(self, vlm: VLM, fitting: Fitting) -> Self:
        site, asked = self.config.site_in(vlm), irrelevant_prompts(fitting.cases)
        if not asked:
            raise DataError(
                "WISE trains with irrelevant prompts of the training cases, and there are none; "
                "give it training cases"
            )
        drawn = torch.randperm(len(asked), generator=seeded(fitting.seed))[:MOST_KEPT].tolist()
        kept = [asked[number] for number in drawn]
        prompts = read(vlm, kept, site, all_tokens=self.config.paper_faults)
        lengths = torch.linalg.vector_norm(vlm.activation(prompts.y), dim=-1)
        found = Irrelevant(prompts, lengths[prompts.counts].mean())
        fitting.progress("irrelevant prompts", len(kept), len(kept), "")
        return self.with_learnt(found, origin_of(vlm, (site,), fitting.cases, fitting.seed))

    def shapes(self, vlm: VLM) -> dict[str, tuple[int | None, ...]]:
        return {"change": vlm.shape(self.config.site_in(vlm)), "activation": (), "edits": ()}

    def learn(self, vlm: VLM, entries: Entries, requests: Sequence[Example]) -> dict[str, Tensor]:
        return self._trained(vlm, entries, requests, apart=True)

    def learn_together(
        self, vlm: VLM, entries: Entries, requests: Sequence[Example]
    ) -> dict[str, Tensor]:
        return self._trained(vlm, entries, requests, apart=False)

    def choose(self, vlm: VLM, entries: Entries, examples: Sequence[Example]) -> dict[str, Delta]:
        site, faults = self.config.site_in(vlm), self.config.paper_faults
        asked = read(vlm, examples, site, all_tokens=faults)
        visible, bias = entries.seen_by(len(examples)), self._dropped_bias(vlm)
        distance = torch.zeros(visible.shape, device=vlm.device)
        for memory in range(len(entries)):
            rows = visible[:, memory].nonzero().flatten()
            x, y, counts = asked.of_rows(rows)
            change = entries["change"][memory : memory + 1]
            each = token_distance(x, y, change, vlm.activation, bias)
            longest = LONG if faults else None
            distance[rows, memory] = row_distance(each, counts, longest=longest)[0]
        threshold = self.config.act_ratio * entries["activation"]
        of_row = route(distance, threshold, visible, current_blocks=faults)
        if (of_row == NOTHING).all():
            return {}
        return {site: Chosen(entries["change"], of_row, None if bias is None else -bias)}

    def add(self, entries: Entries, stored: Mapping[str, Tensor]) -> Entries:
        require_shared(entries)
        return taken_in(entries, stored, self.config.rules)

    def add_each(self, entries: Entries, stored: Mapping[str, Tensor]) -> Entries:
        require_shared(entries)
        return taken_in_each(entries, stored, self.config.rules)

    def joined(
        self, first: Mapping[str, Tensor], second: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        return added_up(first, second, self.config.rules)

    def _trained(
        self, vlm: VLM, entries: Entries, requests: Sequence[Example], *, apart: bool
    ) -> dict[str, Tensor]:
        """Return what one edit of all requests stores, or separate edits of each."""
        self.require_fitted_on(vlm)
        require_shared(entries)
        edits = len(requests) if apart else 1
        side = self.side(vlm, entries, requests, apart=apart)
        last = open_memory(entries, self.config.rules)
        start = torch.zeros(vlm.shape(side.site), device=vlm.device)
        if last is not None:
            start = entries["change"][last]
        start = start.expand(edits, *start.shape)
        change = side.descend(start, self.config.descent)
        return {
            "change": change - start,
            "activation": side.activation(change),
            "edits": torch.full((edits,), len(requests) // edits, device=vlm.device),
        }

    def side(self, vlm: VLM, entries: Entries, requests: Sequence[Example], *, apart: bool) -> Side:
        """Return what the training of an edit reads. Costs a forward up to the site."""
        config, site, learnt = self.config, self.config.site_in(vlm), self._learnt
        inside = read(vlm, requests, site, all_tokens=config.paper_faults)
        so_far = int(entries["edits"].sum()) if len(entries) else 0
        number = learnt.prompts.x.shape[1]
        drawn = torch.randperm(number, generator=seeded(so_far))[: config.irrelevant]
        random = torch.rand(vlm.shape(site), generator=seeded(so_far // config.save_freq))
        unit = float(learnt.length) / 20 if config.unit is None else config.unit
        return Side(
            vlm=vlm,
            site=site,
            requests=requests,
            inside=inside.each_apart() if apart else inside,
            outside=learnt.prompts.of_rows(drawn).to(vlm.device),
            mask=(random < config.mask_ratio).float().to(vlm.device),
            margins=Margins(config.alpha, config.beta, config.gamma, unit),
            dropped_bias=self._dropped_bias(vlm),
        )

    @property
    def _learnt(self) -> Irrelevant:
        return self.learnt

    def _dropped_bias(self, vlm: VLM) -> Tensor | None:
        """Return the bias that the published code forgets, b = y - W x; None to keep it."""
        if not self.config.paper_faults:
            return None
        x, y = (part[0, 0, 0].to(vlm.device) for part in self._learnt.prompts[:2])
        return y - vlm.base.weight(self.config.site_in(vlm)) @ x

    def state(self) -> dict[str, Tensor]:
        if self.learnt is None:
            return {}
        return {**self._learnt.prompts._asdict(), "length": self._learnt.length}

    def load_state(
        self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any], origin: Origin | None
    ) -> Self:
        if origin is None:
            return self.with_learnt(None, None)
        if tensors.keys() != {*Reading._fields, "length"}:
            raise EditorError(
                f"the editor has the tensors {', '.join(sorted(tensors)) or 'none'}; expected x, "
                "y, counts and length of irrelevant prompts; fit it anew"
            )
        prompts = Reading(*(tensors[name] for name in Reading._fields))
        sound = all(part.shape[:3] == prompts.counts.shape for part in prompts)
        if not sound or prompts.x.ndim != 4 or prompts.counts.dtype != torch.bool:
            raise EditorError(
                "the editor's tensors are not those of irrelevant prompts, [1, prompts, tokens, "
                "width]; fit it anew"
            )
        return self.with_learnt(Irrelevant(prompts, tensors["length"]), origin)


def irrelevant_prompts(cases: Sequence[EditCase]) -> list[Example]:
    """Return the locality probes of training cases; the requests, if they have none."""
    found = [
        example
        for case in cases
        for probe, examples in case.probes.items()
        if probe.is_locality
        for example in examples
    ]
    return found or [case.request for case in cases]


def require_shared(entries: Entries) -> None:
    """Raise EditError if each row has memories of its own."""
    if entries.visible is not None:
        raise EditError(
            "an edit cannot follow separate edits of WISE, whose side memories differ; make the "
            "edits one after the other with apply"
        )


def seeded(number: int) -> torch.Generator:
    """Return a generator of the same numbers on every device."""
    return torch.Generator().manual_seed(number)
