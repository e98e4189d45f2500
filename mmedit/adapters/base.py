"""The interface of an adapter, which holds all that is known about one model family. It knows
networks and processors, and nothing of editing.

A vision-language model runs in three stages: `vision` (pixels to patch features), `bridge` (patch
features to image tokens: Q-Former, projection, merger), and `language`. The stages before the first
edited one are frozen, so their outputs can be cached.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple
from uuid import uuid4

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmedit.adapters.generation import (
    Answer,
    Decoding,
    Generate,
    generate_answers,
    read_stops,
    require_room,
    set_greedy,
    text_before,
)
from mmedit.adapters.hashed import Hashed
from mmedit.adapters.inputs import Inputs, PaddingSide, Row, content_hash, padded
from mmedit.adapters.layers import Layered
from mmedit.adapters.processing import require_tokenizer
from mmedit.adapters.prompts import PromptFormat, Segmenter
from mmedit.adapters.rows import Limits, row_fault
from mmedit.adapters.seen import Layout, SeenImage, Sees
from mmedit.adapters.weights import devices_of
from mmedit.cases import Example
from mmedit.errors import ModelError

Stage = Literal["vision", "bridge", "language"]
STAGES: tuple[Stage, ...] = ("vision", "bridge", "language")

NO_TOKENS = torch.zeros(0, dtype=torch.long)


class Segments(NamedTuple):
    """The texts of one example as token ids: without image and conversation markers."""

    context: tuple[int, ...]
    prompt: tuple[int, ...]
    answer: tuple[int, ...]


class Adapter(Hashed, Layered, Sees):
    """One loaded network with its processor."""

    model_types: ClassVar[tuple[str, ...]] = ()
    """The `model_type`s of transformers configs that this adapter serves."""
    compiled_whole: ClassVar[bool] = False
    """Whether `vlm.compile` takes the vision tower as one layer, because its layers differ in
    shape.
    """

    def __init__(self, network: Any, processor: Any) -> None:
        self.network = network
        self.processor = processor
        self.tokenizer = processor.tokenizer
        require_tokenizer(self.tokenizer)
        if processor.chat_template is None:  # it may stand in the tokenizer's files alone
            processor.chat_template = self.tokenizer.chat_template
        self.text_format, self.image_format = self.formats()
        self.tokenize = Segmenter(self.tokenizer)
        self.layouts: OrderedDict[str, Layout] = OrderedDict()
        self.stops = read_stops(network, self.tokenizer)
        set_greedy(network, self.stops)
        self.token = uuid4().hex  # tells this network's features from others' within a process

    @classmethod
    def unsupported(cls, config: Any) -> str | None:
        """Return why a network with this config cannot be served, or None if it can."""
        return None

    @property
    def device(self) -> torch.device:
        """The device of inputs: the one that runs the embeddings."""
        embeddings = self.network.get_input_embeddings()
        hook = getattr(embeddings, "_hf_hook", None)  # Accelerate's, for offloaded weights
        device = getattr(hook, "execution_device", None)
        return embeddings.weight.device if device is None else torch.device(device)

    @cached_property
    def devices(self) -> tuple[torch.device, ...]:
        """All devices that the network runs on."""
        return devices_of(self.network)

    @property
    @abstractmethod
    def image_token(self) -> int:
        """The id of the tokens that image features replace."""

    @abstractmethod
    def formats(self) -> tuple[PromptFormat, PromptFormat]:
        """Return the tokens around a prompt: without an image, and with one."""

    @abstractmethod
    def sites(self, stage: Stage) -> tuple[str, ...]:
        """Return the Linear weights that are edited by default in a stage."""

    @abstractmethod
    def stage(self, site: str) -> Stage:
        """Return the stage that a module belongs to, by its name."""

    @abstractmethod
    def vision(self, images: Sequence[SeenImage]) -> list[Tensor]:
        """Run the vision stage: return the patch features of every image. One forward."""

    @abstractmethod
    def bridge(self, vision: Sequence[Tensor], images: Sequence[SeenImage]) -> list[Tensor]:
        """Run the bridge stage on the output of `vision`: return the features of every image."""

    def encode(self, images: Sequence[SeenImage]) -> list[Tensor]:
        """Run vision and bridge: return the features of every image for the language model."""
        return self.bridge(self.vision(images), images)

    @abstractmethod
    def logits(
        self, inputs: Inputs, features: Sequence[Tensor]
    ) -> Float[Tensor, "batch text vocab"]:
        """Return the network's logits at `inputs.before`: entry t predicts scored token t.

        `features` may be left out where the layers that read them are skipped
        (`mmedit.adapters.layers.resumed`).
        """

    @abstractmethod
    def generate(
        self,
        inputs: Inputs,
        features: Sequence[Tensor],
        *,
        max_new_tokens: int,
        decoding: Decoding | None = None,
    ) -> list[Answer]:
        """Return continuations of `inputs`, which must be padded on the left.

        They are greedy without a decoding.
        """

    def feature_count(self, features: Tensor) -> int:
        """Return for how many tokens the features of one image are."""
        return features.numel() // features.shape[-1]

    def feature_key(self, image: SeenImage) -> str:
        """Return a name for all that the bridge's output depends on.

        The output of the vision stage depends on `image.key` alone.
        """
        return image.key

    def image_grid(self, image: SeenImage) -> tuple[int, int] | None:
        """Return the rows and columns of an image's tokens, which stand for equal parts of it, row
        by row. None if they stand for no places (the queries of a Q-Former, an overview beside
        tiles), or if it is not known.
        """
        return None

    def extras(self, inputs: Inputs, images: Sequence[SeenImage]) -> dict[str, Tensor]:
        """Return the value of `Inputs.extras`."""
        return {}

    def inputs(
        self,
        examples: Sequence[Example],
        images: Mapping[int, SeenImage],
        *,
        padding_side: PaddingSide,
        with_target: bool = True,
        answers_only: Sequence[bool] | None = None,
    ) -> Inputs:
        """Return the tokens of the examples; `images` is by row, and so is `answers_only`: whether
        logits are computed about the answer alone.

        Context, prompt and answer are tokenised separately, so the answer mask is exact. Raises
        ModelError if a row is too long, starts with its answer, or contains the image token.
        """
        rows = []
        for number, (example, text) in enumerate(
            zip(examples, self.segments(examples), strict=True)
        ):
            form = self.format_of(example)
            context, prompt, answer = text if with_target else text._replace(answer=())
            image = images[number].layout.tokens if number in images else NO_TOKENS
            before = torch.tensor(form.before_prompt + context, dtype=torch.long)
            head = torch.cat([torch.tensor(form.before_image, dtype=torch.long), image, before])
            tail = torch.tensor([*prompt, *form.after_prompt, *answer], dtype=torch.long)
            row = Row(torch.cat([head, tail]), len(head), len(prompt), len(answer))
            texts, around = (context, prompt, answer), form.markers + len(image)
            if fault := row_fault(example, texts, around=around, limits=self.limits):
                raise ModelError(fault)
            rows.append(row)
        inputs = padded(rows, self._padding, padding_side, self.device, answers_only)
        seen = list(images.values())
        names = tuple(self.feature_key(image) for image in seen)
        inputs = replace(
            inputs, image_rows=tuple(images), content=content_hash(rows, padding_side, names)
        )
        return replace(inputs, extras=self.extras(inputs, seen))

    def segments(self, examples: Sequence[Example]) -> list[Segments]:
        """Return the texts of every example as token ids, each part tokenised by itself.

        One call of the tokenizer for all.
        """
        texts = [
            text
            for form, e in zip(map(self.format_of, examples), examples, strict=True)
            for text in (form.context(e.context), form.prompt(e.prompt), form.answer(e.target))
        ]
        ids = [tuple(text) for text in self.tokenize(texts)]
        return [Segments(*ids[at : at + 3]) for at in range(0, len(ids), 3)]

    def format_of(self, example: Example) -> PromptFormat:
        """Return the tokens around an example."""
        return self.text_format if example.image is None else self.image_format

    def decode(self, tokens: Int[Tensor, "batch new"]) -> list[str]:
        """Return the text of tokens, stripped, without special tokens.

        The text ends before the checkpoint's stop strings.
        """
        texts = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [text_before(self.stops.strings, text) for text in texts]

    def answers_of(
        self,
        generate: Generate,
        inputs: Inputs,
        *,
        max_new_tokens: int,
        decoding: Decoding | None = None,
    ) -> list[Answer]:
        """Generate after `inputs`, and return the answers. Raises ModelError without room."""
        new = max(decoding.limits(max_new_tokens)) if decoding else max_new_tokens
        require_room(inputs.input_ids.shape[1], self.max_tokens, new)
        return generate_answers(
            generate,
            self.tokenizer,
            self.stops,
            max_new_tokens=max_new_tokens,
            decoding=decoding,
        )

    @property
    def max_tokens(self) -> int:
        """Length of the longest sequence that the language model takes, in tokens."""
        return self.network.config.get_text_config().max_position_embeddings

    @cached_property
    def limits(self) -> Limits:
        """The limits that every row must keep to."""

        def name() -> str:
            return str(self.tokenizer.convert_ids_to_tokens(self.image_token))

        return Limits(self.max_tokens, self.image_token, name)

    @property
    def _padding(self) -> int:
        """The padding token. Without one it is the end token, as padding is masked."""
        token = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if token is None else token
