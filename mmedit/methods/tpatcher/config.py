"""Settings of T-Patcher."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from mmedit.editors.config import EditorConfig, layer_in
from mmedit.methods.tpatcher.block import Block
from mmedit.vlm.interface import VLM


class TPatcherConfig(EditorConfig):
    """Settings of T-Patcher. Defaults are the paper's for zsRE."""

    layer: int | None = None
    """Decoder layer beside whose feed-forward block neurons stand, from 0; null: the last."""
    neurons: int = Field(default=5, ge=1)
    """Neurons of a request at most, one for every answer token that is predicted wrong. Paper: 5.
    """
    steps: int = Field(default=200, ge=1)
    """Steps of the search at most."""
    lr: float = Field(default=1e-2, gt=0)
    """Learning rate of Adam. Paper: 1e-2."""
    weight_decay: float = Field(default=1e-2, ge=0)
    """Weight decay, added to the gradient. Paper: 1e-2."""
    clip: float = Field(default=5.0, gt=0)
    """Largest norm of the gradient of an edit. Paper: 5."""
    stop_loss: float = Field(default=0.05, ge=0)
    """The search for an edit ends when the NLL of its answer is below this, and no state of the
    memory activates a neuron; 0: never before the last step.
    """
    a_weight: float = Field(default=1.0, ge=0)
    """Weight of the activation loss. Paper: 1."""
    a_margin: float = 0.0
    """Margin of the activation loss. Paper: 0."""
    a_largest: int = Field(default=5, ge=1)
    """Number of largest terms of the activation loss. Paper: 5."""
    m_weight: float = Field(default=10.0, ge=0)
    """Weight of the memory loss. Paper: 10 (zsRE), 5 (FEVER)."""
    m_margins: tuple[float, float] = (3.0, -3.0)
    """Margins of the memory loss: distance to a neuron's own activation, and largest activation.
    Paper: 3 and -3.
    """
    m_largest: tuple[int, int] = (1000, 1000)
    """Numbers of largest terms of the two parts of the memory loss. Paper: 1000 and 1000."""
    memory: int = Field(default=10_000, ge=1)
    """Number of states that `fit` keeps. Paper: 40,000."""
    together: int = Field(default=32, ge=1)
    """Separate edits that are searched for in one batch."""
    paper_faults: bool = False
    """Whether to search as LiveEdit's port to VLMs does, to see what its faults are worth: from the
    second step on the answer is fitted at the end of a foreign text, by one neuron that starts at 0
    and counts at all tokens. Its settings: steps 25, lr 1e-2, weight_decay 0, a_weight 1e-4,
    m_weight 1e-4.
    """

    after_fit: ClassVar[frozenset[str]] = frozenset(
        {
            "neurons", "steps", "lr", "weight_decay", "clip", "stop_loss", "a_weight", "a_margin",
            "a_largest", "m_weight", "m_margins", "m_largest", "together",
        }
    )  # fmt: skip

    def idle(self) -> dict[str, str]:
        without = (
            "neurons", "clip", "stop_loss", "a_margin", "a_largest", "m_margins", "m_largest",
            "memory",
        )  # fmt: skip
        return dict.fromkeys(without, "with paper_faults") if self.paper_faults else {}

    def block_of(self, vlm: VLM) -> Block:
        """Return the block on this VLM. Raises SiteError."""
        depth = min(len(vlm.value_sites), len(vlm.ffn_inputs))
        layer = layer_in(
            depth,
            self.layer,
            usual=depth - 1,
            unknown="the feed-forward blocks of this VLM's language model are not known by name, "
            "so no neuron can stand beside one; use a method that names its sites (ft, mend)",
        )
        return Block(vlm.ffn_inputs[layer], vlm.value_sites[layer])
