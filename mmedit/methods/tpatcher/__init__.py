"""T-Patcher (Huang et al. 2023, Transformer-Patcher: One Mistake worth One Neuron), in a VLM.

    FFN'(x) = FFN(x) + Σ_j relu(k_j · x + b_j) v_j

The last feed-forward block gets a neuron for every answer token that is predicted wrong. Its key
begins as q / ‖q‖², where q is what the block takes at the position that predicts the token: so it
is active there. Keys, biases and values are searched for by Adam on

    NLL(answer) + λ_a · activation loss + λ_m · memory loss         (`losses`)

where the memory holds what the block takes at tokens of other questions, at which no neuron may be
active. Neurons of earlier edits stay, and a sequence collects them. They are no change of a weight,
so such an edit is not exported, but saved, stacked, taken out and served as any other.

Differences from the published code, and from LiveEdit's port to VLMs; `paper_faults` brings back
those marked *:

- * The NLL is always that of the edit's own answer. The port overwrites its input with a text of
  the memory, so that from the second step on it fits the answer at the end of a foreign text
  (`port`).
- The memory holds text tokens of training questions with and without image. The port draws a new
  sentence of Wikipedia in every step; `paper_faults` takes training questions without image.
- * A neuron is for the query that predicts its token, as in the paper. The port has one neuron that
  starts at 0, where the NLL has no gradient, and activates it at all tokens.
- Values start at 0 instead of at random: at an activation of 1 they have a gradient, and the edit
  begins with the model as it is.
- The gradient is clipped for each edit, and the search for it ends when its NLL is small and no
  state of the memory activates a neuron.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from mmedit.cases import Example
from mmedit.chunks import chunks
from mmedit.editors.base import Editor
from mmedit.editors.config import EditorConfig
from mmedit.editors.fitting import Fitting, progress_of
from mmedit.editors.saved import Origin, origin_of
from mmedit.errors import DataError, EditorError
from mmedit.methods.tpatcher.block import Block
from mmedit.methods.tpatcher.config import TPatcherConfig
from mmedit.methods.tpatcher.memory import memory_states
from mmedit.methods.tpatcher.patch import find_patch, queries_of
from mmedit.methods.tpatcher.port import find_port, foreign_texts, notes_of, texts_in
from mmedit.neurons import Neurons, stacked
from mmedit.vlm.edit import Change, DeltaChange
from mmedit.vlm.interface import VLM


class TPatcher(Editor[TPatcherConfig]):
    """Neurons beside the last feed-forward block. `fit` reads what the block takes at tokens of
    training questions. An edit costs two forwards, and at most `steps` forwards and backwards of
    the layers from the block on.
    """

    method: ClassVar[str] = "tpatcher"
    title: ClassVar[str] = "T-Patcher"
    paper: ClassVar[str] = "Huang et al. 2023, Transformer-Patcher: One Mistake worth One Neuron"
    config_class: ClassVar[type[EditorConfig]] = TPatcherConfig

    @property
    def needs_fit(self) -> bool:
        return True

    def require_fits(self, vlm: VLM) -> None:
        super().require_fits(vlm)
        self.config.block_of(vlm)

    def edited_sites(self, vlm: VLM) -> tuple[str, ...]:
        return (self.config.block_of(vlm).site,)

    def fit(self, vlm: VLM, fitting: Fitting) -> Self:
        if not fitting.cases:
            raise DataError(
                f"{self.label} needs training cases, at whose questions its neurons must not be "
                "active; none were given"
            )
        block = self.config.block_of(vlm)
        origin = origin_of(vlm, block, fitting.cases, fitting.seed)
        if self.config.paper_faults:
            return self.with_learnt(foreign_texts(vlm, fitting.cases, fitting.seed), origin)
        memory = memory_states(
            vlm,
            fitting.cases,
            block.reads,
            most=self.config.memory,
            seed=fitting.seed,
            progress=progress_of(self.label, fitting.progress),
        )
        return self.with_learnt(memory, origin)

    def change(self, vlm: VLM, requests: Sequence[Example]) -> Change:
        block = self._block(vlm)
        return DeltaChange({block.site: self._found(vlm, requests, block, separate=False)})

    def apply_each(self, vlm: VLM, requests: Sequence[Example]) -> VLM:
        if not requests:
            return vlm
        block = self._block(vlm)
        found = [
            self._found(vlm.select(rows), [requests[row] for row in rows], block, separate=True)
            for rows in chunks(range(len(requests)), self.config.together)
        ]
        return vlm.with_deltas({block.site: stacked(found)})

    def _found(
        self, vlm: VLM, requests: Sequence[Example], block: Block, *, separate: bool
    ) -> Neurons:
        config = self.config
        if config.paper_faults:
            return find_port(vlm, requests, block, self.learnt, config, separate=separate)
        queries = queries_of(vlm, requests, block.reads, neurons=config.neurons)
        if not separate:
            queries = queries.together()
        memory = self.learnt.to(vlm.device)
        return find_patch(vlm, requests, block, queries, memory, config, separate=separate)

    def _block(self, vlm: VLM) -> Block:
        self.require_fitted_on(vlm)
        return self.config.block_of(vlm)

    def state(self) -> dict[str, Tensor]:
        return {"memory": self.learnt} if isinstance(self.learnt, Tensor) else {}

    def notes(self) -> dict[str, Any]:
        if self.learnt is None or not self.config.paper_faults:
            return {}
        return notes_of(self.learnt)

    def load_state(
        self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any], origin: Origin | None
    ) -> Self:
        if origin is None:
            return self.with_learnt(None, None)
        if self.config.paper_faults:
            return self.with_learnt(texts_in(notes), origin)
        memory = tensors["memory"]
        if len(tensors) > 1 or memory.ndim != 2 or memory.dtype != torch.float32 or not len(memory):
            raise EditorError(
                f"the tensors of the editor are {', '.join(tensors)}, with a memory of "
                f"{memory.dtype} of shape {list(memory.shape)}; expected a float32 matrix of "
                "states alone; fit the editor anew"
            )
        return self.with_learnt(memory, origin)
