"""What an adapter is: all that is known about one model family. It knows networks and processors,
and nothing of editing.

A vision-language model runs in three stages: `vision` (pixels to patch features), `bridge` (to what
stands in for the image in the text: Q-Former, projection, merger), `language`. What lies before the
first edited stage is frozen and can be cached.
"""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple
from uuid import uuid4

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

from mmedit.adapters.inputs import Inputs, PaddingSide, Row, padded
from mmedit.adapters.prompts import PromptFormat, Segmenter
from mmedit.adapters.weights import weights_hash
from mmedit.cases import Example
from mmedit.errors import ModelError
from mmedit.images import image_key, open_image

Stage = Literal["vision", "bridge", "language"]
STAGES: tuple[Stage, ...] = ("vision", "bridge", "language")
Pixels = Mapping[str, Tensor]
"""What a processor makes of one image: `pixel_values` and what goes with them; the first axis is
that of images, tiles or patches.
"""

LAYOUTS = 4096
"""Images whose layout an adapter remembers."""
NO_TOKENS = torch.zeros(0, dtype=torch.long)
GREEDY: Mapping[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "temperature": None,
    "top_k": None,
    "top_p": None,
}
"""What makes `generate` take the likeliest token, whatever a checkpoint's own settings say."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How an image stands in the text: its tokens, and the sizes that positions depend on."""

    placeholder: tuple[int, ...]
    sizes: Mapping[str, Tensor] = field(default_factory=dict)

    @cached_property
    def tokens(self) -> Int[Tensor, " tokens"]:
        """`placeholder` as a tensor, on the CPU."""
        return torch.tensor(self.placeholder, dtype=torch.long)


class Segments(NamedTuple):
    """The texts of one example as token ids: without image and conversation markers."""

    context: tuple[int, ...]
    prompt: tuple[int, ...]
    answer: tuple[int, ...]


class SeenImage:
    """The image of one example during one call: its layout, and its pixels when they are needed."""

    def __init__(
        self, example: Example, key: str, layout: Layout, pixels: Callable[[], Pixels]
    ) -> None:
        self.example = example
        self.key = key
        self.layout = layout
        self._pixels = pixels

    @cached_property
    def pixels(self) -> Pixels:
        """Preprocessed, on the CPU, in float32."""
        return self._pixels()

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Equal for images that a stage can treat as rows of one batch."""
        return tuple(tuple(tensor.shape) for tensor in self.pixels.values())


class Adapter(ABC):
    """One loaded network with its processor."""

    model_types: ClassVar[tuple[str, ...]] = ()
    """The `model_type`s of transformers configs that this adapter speaks to."""

    def __init__(self, network: Any, processor: Any) -> None:
        self.network: Any = network  # transformers' types say nothing of submodules
        self.processor: Any = processor
        self.tokenizer: Any = processor.tokenizer
        self.text_format, self.image_format = self.formats()
        self.tokenize = Segmenter(self.tokenizer)
        self._layouts: OrderedDict[str, Layout] = OrderedDict()
        self._stops = tuple(network.generation_config.stop_strings or ())
        self.token = uuid4().hex  # tells this network's features from others' within a process

    @classmethod
    def unsupported(cls, config: Any) -> str | None:
        """Why a network of this config of the family cannot be served; None where it can."""
        return None

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all weights. Reads every one of them, the first time it is asked for."""
        return weights_hash(self.network)

    @cached_property
    def config_hash(self) -> str:
        """A hash of the network's config, without what the same network may differ in: where it
        lies, how its numbers are stored, which transformers wrote it.
        """
        return hashlib.blake2b(
            json.dumps(_described(self.network.config.to_dict()), sort_keys=True).encode(),
            digest_size=16,
        ).hexdigest()

    @cached_property
    def features_of(self) -> str:
        """What image features depend on beside the image: weights, config, image processing, and
        this adapter's way of taking them.
        """
        settings = (
            self.network.config.to_json_string(),
            self.processor.image_processor.to_json_string(),
            type(self).__name__,
            str(self.network.dtype),
        )
        digest = hashlib.blake2b("\0".join(settings).encode(), digest_size=16).hexdigest()
        return f"{self.fingerprint}-{digest}"

    @property
    def device(self) -> torch.device:
        """Where inputs go: the device that the embeddings are executed on."""
        embeddings = self.network.get_input_embeddings()
        hook = getattr(embeddings, "_hf_hook", None)  # Accelerate's, where weights are offloaded
        device = getattr(hook, "execution_device", None)
        return embeddings.weight.device if device is None else torch.device(device)

    @property
    @abstractmethod
    def image_token(self) -> int:
        """The id of the tokens that image features take the place of."""

    @abstractmethod
    def formats(self) -> tuple[PromptFormat, PromptFormat]:
        """What stands around a prompt without, and with an image."""

    @abstractmethod
    def sites(self, stage: Stage) -> tuple[str, ...]:
        """The Linear weights that are edited by default in a stage."""

    @abstractmethod
    def stage(self, site: str) -> Stage:
        """The stage that a module belongs to, by its name."""

    @abstractmethod
    def prepare(self, image: Image.Image) -> tuple[Layout, Pixels]:
        """Preprocess one image."""

    @abstractmethod
    def vision(self, images: Sequence[SeenImage]) -> list[Tensor]:
        """The vision stage: patch features of every image, in one forward."""

    @abstractmethod
    def bridge(self, vision: Sequence[Tensor], images: Sequence[SeenImage]) -> list[Tensor]:
        """The bridge stage, of what `vision` gave: the features of every image."""

    def encode(self, images: Sequence[SeenImage]) -> list[Tensor]:
        """Vision and bridge: what the language model gets instead of every image."""
        return self.bridge(self.vision(images), images)

    @abstractmethod
    def logits(
        self, inputs: Inputs, features: Sequence[Tensor]
    ) -> Float[Tensor, "batch text vocab"]:
        """The network's own logits at `inputs.before`: entry t is about text token t."""

    @abstractmethod
    def generate(
        self, inputs: Inputs, features: Sequence[Tensor], *, max_new_tokens: int
    ) -> list[str]:
        """Greedy continuations of `inputs`, which must be padded on the left: stripped, without
        special tokens.
        """

    def feature_key(self, image: SeenImage) -> str:
        """What the bridge's output depends on; the vision stage's depends on `image.key` alone."""
        return image.key

    def extras(self, inputs: Inputs, images: Sequence[SeenImage]) -> dict[str, Tensor]:
        """What goes into `Inputs.extras`."""
        return {}

    def see(self, example: Example) -> SeenImage:
        """The example's image. It is decoded now if its layout is not known yet, else on demand."""
        if example.image is None:
            raise ValueError("an example without image was given as one with image")
        image, key = example.image, image_key(example.image)
        if (layout := self._known_layout(key)) is not None:
            return SeenImage(example, key, layout, lambda: self.prepare(open_image(image))[1])
        layout, pixels = self.prepare(open_image(image))
        self._layouts[key] = layout
        if len(self._layouts) > LAYOUTS:
            self._layouts.popitem(last=False)
        return SeenImage(example, key, layout, lambda: pixels)

    def _known_layout(self, key: str) -> Layout | None:
        """The layout of an image that was prepared before, or that every image has."""
        layout = self._layouts.get(key)
        if layout is not None:
            self._layouts.move_to_end(key)
        return layout

    def inputs(
        self,
        examples: Sequence[Example],
        images: Mapping[int, SeenImage],
        *,
        padding_side: PaddingSide,
        with_target: bool = True,
    ) -> Inputs:
        """Tokens of the examples; `images` by row. Context, prompt and answer are tokenised apart,
        so the answer mask is exact.

        Raises ModelError where a row is too long, starts with its answer, or holds the image token.
        """
        rows = []
        for number, (example, text) in enumerate(
            zip(examples, self.segments(examples), strict=True)
        ):
            form = self._format(example)
            context, prompt = text.context, text.prompt
            answer = text.answer if with_target else ()
            self._require_no_placeholder((context, prompt, answer), example)
            image = images[number].layout.tokens if number in images else NO_TOKENS
            before = torch.tensor(form.before_prompt + context, dtype=torch.long)
            head = torch.cat([torch.tensor(form.before_image, dtype=torch.long), image, before])
            tail = torch.tensor([*prompt, *form.after_prompt, *answer], dtype=torch.long)
            row = Row(torch.cat([head, tail]), len(head), len(prompt), len(answer))
            self._check(row, example, context=len(context))
            rows.append(row)
        inputs = replace(
            padded(rows, self._padding, padding_side, self.device), image_rows=tuple(images)
        )
        return replace(inputs, extras=self.extras(inputs, list(images.values())))

    def segments(self, examples: Sequence[Example]) -> list[Segments]:
        """The texts of every example as token ids, each part tokenised by itself; one call of the
        tokenizer for all.
        """
        texts = [
            text
            for form, e in zip(map(self._format, examples), examples, strict=True)
            for text in (form.context(e.context), form.prompt(e.prompt), form.answer(e.target))
        ]
        ids = [tuple(text) for text in self.tokenize(texts)]
        return [Segments(*ids[at : at + 3]) for at in range(0, len(ids), 3)]

    def _format(self, example: Example) -> PromptFormat:
        return self.text_format if example.image is None else self.image_format

    def require_room(self, inputs: Inputs, max_new_tokens: int) -> None:
        """Raise ModelError where so many new tokens do not fit behind the prompts."""
        length = inputs.input_ids.shape[1]
        if length + max_new_tokens > self.max_tokens:
            raise ModelError(
                f"{max_new_tokens} new tokens do not fit behind a prompt of {length} tokens; this "
                f"model takes {self.max_tokens} in all"
            )

    def decode(self, tokens: Int[Tensor, "batch new"]) -> list[str]:
        """Without special tokens, up to where the checkpoint says that answers stop, stripped."""
        texts = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        for stop in self._stops:
            texts = [text.partition(stop)[0] for text in texts]
        return [text.strip() for text in texts]

    @property
    def max_tokens(self) -> int:
        """The longest sequence that the language model takes."""
        return self.network.config.get_text_config().max_position_embeddings

    @property
    def _padding(self) -> int:
        """Any token will do where there is no padding token: padding is masked."""
        token = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if token is None else token

    def _require_no_placeholder(self, ids: Sequence[Sequence[int]], example: Example) -> None:
        if any(self.image_token in tokens for tokens in ids):
            name = self.tokenizer.convert_ids_to_tokens(self.image_token)
            raise ModelError(
                f"{example.prompt[:60]!r} or its context or answer holds {name!r}, which stands "
                "for the image; leave it out: the image comes before the text by itself."
            )

    def _check(self, row: Row, example: Example, *, context: int) -> None:
        length = len(row.tokens)
        if length == row.answer:
            raise ModelError(
                f"nothing stands before the answer {example.target!r}, so nothing predicts its "
                "first token; give an image, a context or a prompt"
            )
        if length > self.max_tokens:
            around = length - context - row.prompt - row.answer
            raise ModelError(
                f"{example.prompt[:60]!r} makes a sequence of {length} tokens (image and markers "
                f"{around}, context {context}, prompt {row.prompt}, answer {row.answer}); this "
                f"model takes {self.max_tokens}. Shorten it (with IKE: a smaller k)."
            )


def _described(config: Mapping[Any, Any]) -> dict[str, Any]:
    left_out = {"_name_or_path", "name_or_path", "transformers_version", "dtype", "torch_dtype"}
    left_out |= {"quantization_config", "_attn_implementation_autoset"}
    return {
        str(key): _described(value) if isinstance(value, dict) else str(value)
        for key, value in config.items()
        if key not in left_out
    }


def sites_in(
    network: nn.Module, pattern: re.Pattern[str], *, last: int, until: int | None = None
) -> tuple[str, ...]:
    """The Linear modules whose name matches, of the `last` layers (the pattern's first group)
    before layer `until`.
    """
    found = [
        (int(match[1]), name)
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and (match := pattern.search(name))
    ]
    layers = sorted({layer for layer, _ in found if until is None or layer < until})[-last:]
    return tuple(name for layer, name in found if layer in layers)


def linears(module: nn.Module, prefix: str) -> tuple[str, ...]:
    """The names of all Linear modules inside one, in order."""
    return tuple(
        f"{prefix}.{name}" if name else prefix
        for name, inner in module.named_modules()
        if isinstance(inner, nn.Linear)
    )
