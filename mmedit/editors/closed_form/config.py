"""Settings that ROME, MEMIT and AlphaEdit share."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from mmedit.editors.closed_form.contexts import MOST_CONTEXTS
from mmedit.editors.closed_form.moments import Tokens
from mmedit.editors.closed_form.positions import Position
from mmedit.editors.closed_form.values import ValueConfig
from mmedit.editors.config import EditorConfig
from mmedit.errors import SiteError
from mmedit.vlm.interface import VLM


class LocatedConfig(EditorConfig):
    """Settings of a method that writes facts into the weight that ends a feed-forward block."""

    after_fit: ClassVar[frozenset[str]] = frozenset(
        {"position", "contexts", "value", "together", "together_tokens"}
    )
    layers: tuple[int, ...] = ()
    """Decoder layers that are written, from 0, lowest first (`mmedit trace` shows which matter);
    empty: the layers of the paper's models, as shares of the depth.
    """
    position: Position = "last_subject"
    """Position of the fact: last_subject, last_prompt, answer or image_mean. Without a subject in
    the prompt last_subject is last_prompt.
    """
    tokens: Tokens = "balanced"
    """Tokens whose second moment an edit should leave: text, image, all, or balanced, one half
    each. Where the training cases have no images it is text.
    """
    shrink: float | None = Field(default=0.05, ge=0, le=1)
    """Share of the identity that is mixed into a second moment with fewer tokens than five times
    its width; null: such a second moment is refused.
    """
    contexts: int = Field(default=5, ge=0, le=MOST_CONTEXTS)
    """Number of texts before the question, beside the question alone. ROME: 20, MEMIT: 5."""
    value: ValueConfig = ValueConfig()
    """Search for the value vectors."""
    together: int = Field(default=32, ge=1)
    """Requests whose value vectors are searched for in one batch, at most."""
    together_tokens: int = Field(default=8192, ge=1)
    """Tokens of prompts in such a batch, in all contexts and with padding, at most. One request may
    have more. A 7B network in half precision keeps about 5 MB for each of them.
    """

    def layers_of(self, vlm: VLM, usual: tuple[float, ...]) -> tuple[int, ...]:
        """Return the layers on this VLM; `usual` are shares of its depth. Raises SiteError."""
        depth = len(vlm.value_sites)
        if not depth:
            raise SiteError(
                "the feed-forward blocks of this VLM's language model are not known by name, so no "
                "fact can be located in it; use a method that names its sites (ft, mend)"
            )
        for layer in self.layers:
            if not 0 <= layer < depth:
                raise SiteError(
                    f"editor.layers names layer {layer}; this VLM has the layers 0 to {depth - 1}"
                )
        found = self.layers or tuple(int(share * depth) for share in usual)
        return tuple(sorted(set(found)))

    def sites_in(self, vlm: VLM, usual: tuple[float, ...]) -> tuple[str, ...]:
        """Return the weights that are written, lowest layer first. Raises SiteError."""
        return tuple(vlm.value_sites[layer] for layer in self.layers_of(vlm, usual))
