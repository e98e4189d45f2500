"""What an adapter is: all that is known about one model family. It knows networks and processors,
and nothing of editing.

A vision-language model runs in three stages: `vision` (pixels to patch features), `bridge` (to what
stands in for the image in the text: Q-Former and projection), `language`. What lies before the
first edited stage is frozen and can be cached.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor, nn

from mmedit.cases import Example

Stage = Literal["vision", "bridge", "language"]
PaddingSide = Literal["left", "right"]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """A batch of tokens as the network sees it: image placeholders, context, prompt, answer, and
    padding on one side.
    """

    input_ids: Int[Tensor, "batch sequence"]
    attention_mask: Int[Tensor, "batch sequence"]
    is_text: Bool[Tensor, "batch sequence"]
    """Prompt and answer; not the image, the context or padding."""
    is_answer: Bool[Tensor, "batch sequence"]
    image_rows: tuple[int, ...]
    """The rows that have an image; `image_features` come in this order."""


class Adapter(ABC):
    """One loaded network with its processor."""

    network: Any
    """The `nn.Module`; untyped, as the types of transformers' submodules say nothing."""

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all weights. Reads every one of them, the first time it is asked for."""
        return weights_hash(self.network)

    @abstractmethod
    def sites(self, stage: Stage) -> tuple[str, ...]:
        """The Linear weights that are edited by default in a stage."""

    @abstractmethod
    def stage(self, site: str) -> Stage:
        """The stage that a module belongs to, by its name."""

    @abstractmethod
    def image_key(self, example: Example) -> str:
        """What the image features of an example depend on; the cache's key."""

    @abstractmethod
    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Preprocessed images [n, ...], on the network's device and in its dtype."""

    @abstractmethod
    def vision(self, pixels: Tensor) -> Float[Tensor, "images patches vision"]:
        """The vision stage."""

    @abstractmethod
    def bridge(
        self, vision: Float[Tensor, "images patches vision"]
    ) -> Float[Tensor, "images queries hidden"]:
        """The bridge stage: what the language model gets instead of the image."""

    @abstractmethod
    def inputs(
        self, examples: Sequence[Example], *, padding_side: PaddingSide, with_target: bool = True
    ) -> Inputs:
        """Tokens of the examples. Context, prompt and answer are tokenised apart, so the answer
        mask is exact.
        """

    @abstractmethod
    def logits(
        self, inputs: Inputs, image_features: Float[Tensor, "images queries hidden"] | None
    ) -> Float[Tensor, "batch sequence vocab"]:
        """The network's own logits: position s is about token s + 1."""

    @abstractmethod
    def generate(
        self,
        inputs: Inputs,
        image_features: Float[Tensor, "images queries hidden"] | None,
        *,
        max_new_tokens: int,
    ) -> list[str]:
        """Greedy continuations, without special tokens, stripped. `inputs` must be padded on the
        left.
        """


def weights_hash(network: nn.Module) -> str:
    """32 hexadecimal digits that change when any weight does."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def pad(
    rows: Sequence[Sequence[Tensor]], padding: int | bool, side: PaddingSide, device: torch.device
) -> list[Tensor]:
    """Columns of ragged rows, each as one padded batch.

    `rows[b]` holds several parallel 1-d tensors of row b (ids, masks); the result holds one [batch,
    sequence] tensor for each. `padding` fills the first; the others are filled with zero.
    """
    columns = zip(*rows, strict=True)
    return [
        nn.utils.rnn.pad_sequence(
            list(column),
            batch_first=True,
            padding_value=float(padding) if number == 0 else 0.0,
            padding_side=side,
        ).to(device)
        for number, column in enumerate(columns)
    ]
