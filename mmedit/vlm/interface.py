"""The interface of a VLM, and the base of edits that wrap one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mmedit.adapters.base import Stage
from mmedit.adapters.generation import Answer, Decoding
from mmedit.adapters.places import Places
from mmedit.arguments import check_arguments
from mmedit.cases import Example
from mmedit.deltas import Delta
from mmedit.errors import DataError, EditError, ModelError, UnknownNameError, shortened
from mmedit.image_inputs import ImageInput
from mmedit.vlm.doors import DOORS
from mmedit.vlm.edit import MADE_APART, Edit, stack
from mmedit.vlm.edit_files import write_edits
from mmedit.vlm.frozen import Frozen
from mmedit.vlm.identity import Identity
from mmedit.vlm.outputs import Captured, Observed, Predictions

MAX_NEW_TOKENS = 64
"""Length of an answer to a person, in tokens, at most."""


class VLM(ABC):
    """A vision-language model that predicts, generates and is edited.

    Editors whose edit is not a weight delta return a `WrappedVLM` of their own. Arguments are
    checked before they reach a method of a subclass (`DOORS`).
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        check_arguments(cls, DOORS)

    @property
    def protocol(self) -> Mapping[str, object]:
        """Image size and text format (`mmedit.adapters.protocol`); empty if it cannot say."""
        return {}

    @property
    @abstractmethod
    def name(self) -> str:
        """The name, folder or hub id that it was loaded by; "" for one made by hand."""

    @abstractmethod
    def predict(
        self, examples: Sequence[Example], *, answers_only: Sequence[bool] | None = None
    ) -> Predictions:
        """Return teacher-forced predictions.

        A row whose entry of `answers_only` is true has predictions of its answer's tokens alone,
        which saves the head the others. They are differentiable with respect to the deltas. Costs
        one forward of the language model, for an edited model from the first edited layer on if the
        base model or another edited one answered the same batch; and one of vision and bridge for
        images that are not cached. Raises DataError without examples, ModelError if one is too
        long.
        """

    @abstractmethod
    def answer(
        self,
        examples: Sequence[Example],
        *,
        max_new_tokens: int,
        decoding: Decoding | None = None,
    ) -> list[Answer]:
        """Return continuations of the prompts. Targets are not read.

        They are greedy, or as a decoding says (`mmedit.vlm.decoding`), which has a row for each
        example. Costs one forward per new token, until every row has ended or has `max_new_tokens`:
        a larger number costs only where the VLM does not stop by itself. The first forward, over
        the prompts, begins at the first edited layer if the batch was answered before.
        """

    def prompt_tokens(
        self, examples: Sequence[Example], *, new_tokens: int | Sequence[int] = 0
    ) -> list[int]:
        """Return how many tokens the VLM reads before each answer: image, markers, context, prompt.

        `new_tokens` is the room for a generation, one number or one for each example: in-context
        edits leave it free. No forward.
        """
        return self.frozen.prompt_tokens(examples)

    def generate(self, examples: Sequence[Example], *, max_new_tokens: int) -> list[str]:
        """Return the texts of `answer`, stripped."""
        return [answer.text for answer in self.answer(examples, max_new_tokens=max_new_tokens)]

    @abstractmethod
    def capture(self, examples: Sequence[Example], sites: Sequence[str]) -> Captured:
        """Return inputs x and output gradients δ at Linear sites.

        Costs a forward, of the layers from the first site on if the batch was asked before, and a
        backward down to that site.
        """

    @abstractmethod
    def observe(
        self, examples: Sequence[Example], sites: Sequence[str], *, after: Sequence[int] = ()
    ) -> Observed:
        """Return what Linear sites of the language model take and give, and the hidden states after
        the first k decoder layers for each k of `after`. No gradient goes through them.

        Costs a forward up to the last layer that is asked for. Raises SiteError.
        """

    @abstractmethod
    def places(self, examples: Sequence[Example]) -> Places:
        """Return the positions of image, prompt, subject and answer in `observe` and `capture` of
        the same examples. No forward.
        """

    @abstractmethod
    def represent(self, examples: Sequence[Example]) -> Float[Tensor, "batch hidden"]:
        """Return one vector for each image and prompt, in float32, for nearest-neighbour search.

        It is the input of the language model's first default site at the last prompt token. Costs
        a forward up to that site.
        """

    @abstractmethod
    def sites(self, where: Stage) -> tuple[str, ...]:
        """Return the default edit sites in the language model, the bridge or the vision tower."""

    @property
    @abstractmethod
    def value_sites(self) -> tuple[str, ...]:
        """The weight that ends the feed-forward block of each decoder layer, in order: "fc2" of
        OPT, "mlp.down_proj" of Llama and Qwen. Methods that locate facts write there.
        """

    @property
    @abstractmethod
    def ffn_inputs(self) -> tuple[str, ...]:
        """A weight that takes the input of the feed-forward block of each decoder layer, in order:
        "fc1" of OPT, "mlp.up_proj" of Llama and Qwen. Neurons beside a block read there.
        """

    @property
    @abstractmethod
    def layer_sites(self) -> tuple[str, ...]:
        """The names of the decoder layers, in order. A delta there adds to the hidden states that
        the layer gives, and reads them.
        """

    @property
    @abstractmethod
    def activation(self) -> Callable[[Tensor], Tensor]:
        """The activation function of the language model's feed-forward blocks: relu of OPT, silu of
        Llama. Raises SiteError if it is not known.
        """

    @abstractmethod
    def shape(self, site: str) -> tuple[int, int]:
        """Return (out, in) of the weight at a site; of a decoder layer, its width twice. Raises
        SiteError with the nearest name.
        """

    @abstractmethod
    def weight(self, site: str) -> Float[Tensor, "*edits out in"]:
        """Return a copy of the weight at a site with the deltas it carries, in float32."""

    @abstractmethod
    def require_reach(self, examples: Sequence[Example], sites: Sequence[str]) -> None:
        """Raise SiteError if an example does not pass through a site.

        An example without image passes through no site of the vision tower or the bridge.
        """

    @abstractmethod
    def with_deltas(self, deltas: Mapping[str, Delta], *, edit: Edit | None = None) -> VLM:
        """Return the VLM with these deltas added to the ones it already carries.

        `edit` is the edit that they are, for `edits`; by default one without a maker.
        """

    @property
    @abstractmethod
    def edits(self) -> tuple[Edit, ...]:
        """The edits that this VLM holds, in the order in which they were added."""

    @abstractmethod
    def noting(self, edit: Edit) -> VLM:
        """Return the same VLM with one more entry in `edits`; for edits that wrap a VLM."""

    @abstractmethod
    def merged(self) -> VLM:
        """Return a VLM that answers the same and holds one edit of weights, the sum of all it had.

        None of them can be taken out any more, and their own weights are free: for long sequences,
        whose questions then cost as much as those of the base model (up to rounding, in float32).
        """

    def with_edit(self, edit: Edit) -> VLM:
        """Return the VLM with an edit, or a stack of edits, added after those it holds.

        Costs no forward. Raises EditError if it was made on another VLM: comparing two VLMs reads
        every weight, the first time.
        """
        vlm: VLM = self
        for part in edit.parts:
            part.require_fits(vlm)
            vlm = part.change.added_to(vlm, part)
        return vlm

    def without(self, name: str) -> VLM:
        """Return the VLM without one of its edits: the others are added to the base model again.

        Those made after it stay as they were made. Raises UnknownNameError.
        """
        names = [edit.name for edit in self.edits]
        if name not in names:
            raise UnknownNameError("edit of this VLM", str(name), names)
        vlm = self.base
        for edit in self.edits:
            vlm = vlm if edit.name == name else vlm.with_edit(edit)
        return vlm

    @property
    def wrappers(self) -> tuple[str, ...]:
        """Names of the classes of this VLM and of those inside it, the outermost first."""
        return (type(self).__name__,)

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write all edits of this VLM as one folder, which `mmedit.load_edit` reads.

        One edit alone takes the folder's name. Raises EditError: there is nothing to write, the
        folder exists (unless it is an edit and is to be overwritten), or it cannot be written.
        """
        save_edits(path, self, overwrite=overwrite)

    def ask(
        self, prompt: str, image: ImageInput | None = None, *, max_new_tokens: int = MAX_NEW_TOKENS
    ) -> str:
        """Return the greedy answer to one question, with an image or without.

        Costs one forward per new token. An answer longer than `max_new_tokens`, or than the VLM has
        room for, is cut off. Raises DataError, ImageError, ModelError.
        """
        asked = [Example(prompt=prompt, target="?", image=image)]
        if not prompt.strip():
            raise DataError("the question is empty")
        for fault in self.frozen.faults(asked, new_tokens=1):
            if fault is not None:
                raise DataError(fault)
        room = self.frozen.room(asked, 1)[0] + 1
        if len(self.wrappers) > 1:  # in-context edits need room too: half of it is left to them
            room = max(room // 2, 1)
        return self.generate(asked, max_new_tokens=min(max_new_tokens, room))[0]

    @abstractmethod
    def select(self, rows: Sequence[int]) -> VLM:
        """Return the VLM that answers row i under separate edit rows[i].

        A VLM without separate edits returns an equal one.
        """

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The device of inputs and of new parameters."""

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """All devices that the network is on, that of inputs first."""
        return (self.device,)

    @property
    @abstractmethod
    def frozen(self) -> Frozen:
        """The parts that no edit changes: tokens, embeddings, image features of the base model."""

    @property
    @abstractmethod
    def identity(self) -> Identity:
        """The identity of the base model, which a trained editor belongs to.

        It is the same for edited models. Reads every weight, the first time.
        """

    @property
    @abstractmethod
    def base(self) -> VLM:
        """The base model: this VLM without its edits."""

    @property
    @abstractmethod
    def extra_parameters(self) -> int:
        """Number of values that an edit adds to the network; of separate edits, each one."""


check_arguments(VLM, DOORS)


def save_edits(path: str | Path, vlm: VLM, *, overwrite: bool) -> None:
    """Write the edits of a VLM. Raises EditError, also for a wrapper that no edit stands for."""
    if not vlm.edits:
        raise EditError("this VLM holds no edit, so there is nothing to save")
    for edit in vlm.edits:
        if edit.change.is_separate:
            raise EditError(f"the edit {edit.name!r} {MADE_APART}")
    again = vlm.base.with_edit(stack("all", vlm.edits))
    if (found := vlm.wrappers) != (known := again.wrappers):
        missing = next((kind for kind in found if kind not in known), found[0])
        raise EditError(
            f"a {missing} in this VLM is not the work of a known edit, so it would be lost; its "
            "editor must implement `change` (docs/adding-a-method.md)"
        )
    write_edits(path, vlm.edits, vlm.identity, vlm_name=vlm.name, overwrite=overwrite)


def as_vlm(given: Any) -> VLM:
    """Return a VLM as it is. Raises ModelError for anything else, such as the name of one."""
    if isinstance(given, VLM):
        return given
    name = given if isinstance(given, str) else "embedded"
    raise ModelError(
        f"{shortened(given)} was given where a VLM is expected; load one: "
        f"vlm = mmedit.load_vlm({shortened(name)})"
    )
