"""What no edit changes: how texts are cut to tokens, what the unedited vision tower and bridge make
of an image, the token embeddings. Shared by all VLM values over one network.

Methods that learn a model of their own beside the VLM (SERAC's counterfactual model, KE's
conditioner) build on it, and so need not know the model family.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmedit.adapters.base import Adapter, SeenImage, Segments
from mmedit.cache import TensorCache
from mmedit.cases import Example

AT_ONCE = 32
"""Images that go through frozen vision together: bounds the memory, not the number of images."""


@final
class Frozen:
    """The parts of one loaded network that stay as they are, with the cache of image features."""

    def __init__(self, adapter: Adapter, features: TensorCache) -> None:
        self._adapter = adapter
        self.features = features

    @property
    def vocabulary(self) -> int:
        """The number of tokens that logits are about."""
        return self._adapter.network.get_output_embeddings().out_features

    @property
    def hidden(self) -> int:
        """The width of a token embedding, and of what stands for one of an image's tokens."""
        return self._adapter.network.config.get_text_config().hidden_size

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return self._adapter.device

    @property
    def ends(self) -> tuple[int, ...]:
        """The tokens at which generation stops, the usual one first."""
        generation = self._adapter.network.generation_config.eos_token_id
        ends = generation if isinstance(generation, list) else [generation]
        known = [int(end) for end in ends if end is not None]
        return tuple(known) or (int(self._adapter.tokenizer.eos_token_id),)

    @property
    def max_tokens(self) -> int:
        """The longest sequence that the language model takes."""
        return self._adapter.max_tokens

    def segments(self, examples: Sequence[Example]) -> list[Segments]:
        """Context, prompt and answer of every example as token ids: those that `predict` is about,
        without image and conversation markers.
        """
        return self._adapter.segments(examples)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts as they stand, without special tokens."""
        return self._adapter.tokenize(texts)

    def decode(self, ids: Int[Tensor, "batch new"]) -> list[str]:
        """Generated tokens as text, as `VLM.generate` gives it."""
        return self._adapter.decode(ids)

    @torch.no_grad()
    def embed(self, ids: Int[Tensor, "*batch tokens"]) -> Float[Tensor, "*batch tokens hidden"]:
        """Token embeddings in float32."""
        return self._adapter.network.get_input_embeddings()(ids).float()

    def image_features(
        self, examples: Sequence[Example]
    ) -> list[Float[Tensor, "_tokens hidden"] | None]:
        """What vision and bridge make of every image, as the language model gets it, in float32;
        None where an example has no image.

        Each distinct image costs one pass through vision and bridge, once for all VLMs over this
        network.
        """
        seen = self.see(examples)
        made = dict(zip(seen, self.stage("bridge", list(seen.values())), strict=True))
        return [
            made[row].reshape(-1, made[row].shape[-1]).float() if row in made else None
            for row in range(len(examples))
        ]

    def see(self, examples: Sequence[Example]) -> dict[int, SeenImage]:
        """The images, by row."""
        return {
            row: self._adapter.see(example)
            for row, example in enumerate(examples)
            if example.image is not None
        }

    def stage(self, last: Literal["vision", "bridge"], images: Sequence[SeenImage]) -> list[Tensor]:
        """The output of the last frozen stage: computed for the distinct images not seen before,
        else looked up.
        """
        run = self._adapter.vision if last == "vision" else self._adapter.encode
        names = [
            image.key if last == "vision" else self._adapter.feature_key(image) for image in images
        ]

        @torch.no_grad()
        def compute(positions: Sequence[int]) -> Sequence[Tensor]:
            parts = [positions[at : at + AT_ONCE] for at in range(0, len(positions), AT_ONCE)]
            return [tensor for part in parts for tensor in run([images[place] for place in part])]

        keys = [f"{last}-{self._namespace}-{name}" for name in names]
        found = self.features.lookup(keys, compute)
        return [tensor.to(self._adapter.device) for tensor in found]  # read from disk: on the CPU

    @property
    def _namespace(self) -> str:
        """Whose features they are: a cache may be shared by hand, and files outlive a process."""
        return self._adapter.features_of if self.features.on_disk else self._adapter.token
