"""The parts of a network that no edit changes: tokenizer, token embeddings, and the base model's
image features and hidden states. All VLM values over one network share them.

Methods that learn a model of their own beside the VLM (SERAC's counterfactual model, KE's
conditioner) build on these parts, so they need not know the model family.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmedit.adapters.base import Adapter, Segments
from mmedit.adapters.faults import faults, prompt_tokens, tokens_around
from mmedit.adapters.generation import Answer, Decoding, Generate, generate_answers
from mmedit.adapters.seen import SeenImage
from mmedit.cache import TensorCache
from mmedit.cases import Example
from mmedit.progress import Progress, silent
from mmedit.vlm.prefills import Prefills
from mmedit.vlm.prepared import Asked, prepared
from mmedit.vlm.states import States

GROUP = 4
"""Images in one forward of the frozen vision tower: a small tower takes as long for one of them."""


@final
class Frozen:
    """The parts of one loaded network that no edit changes, with the base model's image features
    and hidden states.
    """

    def __init__(self, adapter: Adapter, features: TensorCache) -> None:
        self._adapter = adapter
        self.features = features
        self.states = States(adapter)
        self.prefills = Prefills(adapter)

    def prepared(
        self, asked: Asked, *, folder: Path | None = None, progress: Progress = silent
    ) -> AbstractContextManager[None]:
        """Keep the hidden states of examples that are asked again and again while the context
        lasts (`mmedit.vlm.prepared`).
        """
        return prepared(self.states, self, self._adapter, asked, folder=folder, progress=progress)

    @property
    def vocabulary(self) -> int:
        """Number of tokens in the vocabulary, the last axis of the logits."""
        return self._adapter.network.get_output_embeddings().out_features

    @property
    def hidden(self) -> int:
        """Width of a token embedding and of an image feature."""
        return self._adapter.network.config.get_text_config().hidden_size

    @property
    def device(self) -> torch.device:
        """The device of inputs."""
        return self._adapter.device

    @property
    def ends(self) -> tuple[int, ...]:
        """The tokens that end a generation, the usual one first."""
        return self._adapter.stops.ends

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """The texts that end an answer, besides the end tokens. They are not part of it."""
        return self._adapter.stops.strings

    @property
    def max_tokens(self) -> int:
        """Length of the longest sequence that the language model takes, in tokens."""
        return self._adapter.max_tokens

    def segments(self, examples: Sequence[Example]) -> list[Segments]:
        """Return context, prompt and answer of every example as token ids.

        These are the tokens of `predict`, without image and conversation markers.
        """
        return self._adapter.segments(examples)

    def room(self, examples: Sequence[Example], new_tokens: int | Sequence[int] = 0) -> list[int]:
        """Return the number of tokens that the context of every example has room for.

        That is what the language model takes, less image, conversation markers, prompt and answer.
        With `new_tokens`, one number or one for each example, the answer is to be generated, and
        they count in its place.
        """
        texts = self.segments(examples)
        last = new_tokens or [len(text.answer) for text in texts]
        last = [last] * len(texts) if isinstance(last, int) else last
        return [
            self.max_tokens - tokens_around(self._adapter, example) - len(text.prompt) - new
            for example, text, new in zip(examples, texts, last, strict=True)
        ]

    def prompt_tokens(self, examples: Sequence[Example]) -> list[int]:
        """Return how many tokens the base model reads before each answer. No forward."""
        return prompt_tokens(self._adapter, examples)

    def faults(self, examples: Sequence[Example], *, new_tokens: int = 0) -> list[str | None]:
        """Return, for every example, why the VLM cannot be asked it, or None if it can.

        `new_tokens` is the room for a generation. No forward; costs: `mmedit.adapters.faults`.
        """
        return faults(self._adapter, examples, new_tokens=new_tokens)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of texts, without special tokens."""
        return self._adapter.tokenize(texts)

    def decode(self, ids: Int[Tensor, "batch new"]) -> list[str]:
        """Return generated tokens as text, as `VLM.generate` does."""
        return self._adapter.decode(ids)

    def answers_of(
        self,
        generate: Generate,
        *,
        ends: Sequence[int],
        max_new_tokens: int,
        decoding: Decoding | None = None,
    ) -> list[Answer]:
        """Let another model generate that knows these end tokens, and return its answers as
        `VLM.answer` does.
        """
        adapter = self._adapter
        return generate_answers(
            generate,
            adapter.tokenizer,
            adapter.stops.with_ends(ends),
            max_new_tokens=max_new_tokens,
            decoding=decoding,
        )

    @torch.no_grad()
    def embed(self, ids: Int[Tensor, "*batch tokens"]) -> Float[Tensor, "*batch tokens hidden"]:
        """Return token embeddings in float32."""
        return self._adapter.network.get_input_embeddings()(ids).float()

    def image_features(
        self, examples: Sequence[Example]
    ) -> list[Float[Tensor, "_tokens hidden"] | None]:
        """Return the features of every image as the language model gets them, in float32.

        An example without image has None.

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
        """Return the images, by row."""
        return {
            row: self._adapter.see(example)
            for row, example in enumerate(examples)
            if example.image is not None
        }

    def stage(self, last: Literal["vision", "bridge"], images: Sequence[SeenImage]) -> list[Tensor]:
        """Return the output of a stage of the base model for every image.

        It is computed once for each distinct image, and then looked up. Images go through in groups
        of one shape and of `GROUP` images, the last group filled up: so the last digits of an
        image's features do not depend on how many others were looked up, and so not on whether a
        run was continued.
        """
        run = self._adapter.vision if last == "vision" else self._adapter.encode
        names = [
            image.key if last == "vision" else self._adapter.feature_key(image) for image in images
        ]

        @torch.no_grad()
        def compute(positions: Sequence[int]) -> Sequence[Tensor]:
            made: dict[int, Tensor] = {}
            for alike in _alike(images, names, positions):
                found = in_groups(alike, lambda places: run([images[place] for place in places]))
                made |= zip(alike, found, strict=True)
            return [made[place] for place in positions]

        keys = [f"{last}-{self._namespace}-{name}" for name in names]
        found = self.features.lookup(keys, compute)
        return [tensor.to(self._adapter.device) for tensor in found]  # read from disk: on the CPU

    @property
    def _namespace(self) -> str:
        """A name for this network in cache keys: networks may share a cache, and files stay."""
        return self._adapter.features_of if self.features.on_disk else self._adapter.token


def in_groups(
    positions: Sequence[int], run: Callable[[Sequence[int]], Sequence[Tensor]]
) -> list[Tensor]:
    """Return what `run` gives for every position. It gets `GROUP` of them at a time; the last group
    is filled up with its last one.
    """
    found: list[Tensor] = []
    for at in range(0, len(positions), GROUP):
        part = positions[at : at + GROUP]
        found += run([*part, *[part[-1]] * (GROUP - len(part))])[: len(part)]
    return found


def _alike(
    images: Sequence[SeenImage], names: Sequence[str], positions: Sequence[int]
) -> list[list[int]]:
    """Return the positions by shape of the image. Where features depend on the question too, also
    by question.
    """
    alike: dict[object, list[int]] = {}
    for place in positions:
        image = images[place]
        asked = None if names[place] == image.key else image.example.prompt
        alike.setdefault((image.shapes, asked), []).append(place)
    return list(alike.values())
