"""What an adapter is: all that is known about one model family. It knows networks and processors,
and nothing of editing.

A vision-language model runs in three stages: `vision` (pixels to patch features), `bridge` (to what
stands in for the image in the text: Q-Former, projection, merger), `language`. What lies before the
first edited stage is frozen and can be cached.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor, nn

from mmedit.adapters.prompts import PromptFormat, Segmenter
from mmedit.adapters.weights import weights_hash
from mmedit.cases import Example
from mmedit.errors import ModelError
from mmedit.images import image_key, open_image

Stage = Literal["vision", "bridge", "language"]
STAGES: tuple[Stage, ...] = ("vision", "bridge", "language")
PaddingSide = Literal["left", "right"]
Pixels = Mapping[str, Tensor]
"""What a processor makes of one image: `pixel_values` and what goes with them; the first axis is
that of images, tiles or patches.
"""

LAYOUTS = 4096
"""Images whose layout an adapter remembers."""
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
class Inputs:
    """A batch of tokens as the network sees it: image placeholders, context, prompt, answer, the
    family's conversation markers around them, and padding on one side.
    """

    input_ids: Int[Tensor, "batch sequence"]
    attention_mask: Int[Tensor, "batch sequence"]
    is_text: Bool[Tensor, "batch sequence"]
    """Prompt and answer; not the image, the context, markers or padding."""
    is_answer: Bool[Tensor, "batch sequence"]
    image_rows: tuple[int, ...]
    """The rows that have an image; image features come in this order."""
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    """What else the family's language model wants to know: image grids, token types."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How an image stands in the text: its tokens, and the sizes that positions depend on."""

    placeholder: tuple[int, ...]
    sizes: Mapping[str, Tensor] = field(default_factory=dict)


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
        self._segment = Segmenter(self.tokenizer)
        self._layouts: OrderedDict[str, Layout] = OrderedDict()

    @classmethod
    def unsupported(cls, config: Any) -> str | None:
        """Why a network of this config of the family cannot be served; None where it can."""
        return None

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all weights. Reads every one of them, the first time it is asked for."""
        return weights_hash(self.network)

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
    ) -> Float[Tensor, "batch sequence vocab"]:
        """The network's own logits: position s is about token s + 1."""

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
        if (layout := self._layouts.get(key)) is not None:
            self._layouts.move_to_end(key)
            return SeenImage(example, key, layout, lambda: self.prepare(open_image(image))[1])
        layout, pixels = self.prepare(open_image(image))
        self._layouts[key] = layout
        if len(self._layouts) > LAYOUTS:
            self._layouts.popitem(last=False)
        return SeenImage(example, key, layout, lambda: pixels)

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
        formats = [self.image_format if e.image is not None else self.text_format for e in examples]
        texts = [
            text
            for form, e in zip(formats, examples, strict=True)
            for text in (
                form.context(e.context),
                form.prompt(e.prompt),
                form.answer(e.target) if with_target else "",
            )
        ]
        ids = self._segment(texts)
        rows = []
        for number, (form, example) in enumerate(zip(formats, examples, strict=True)):
            context, prompt, answer = ids[3 * number : 3 * number + 3]
            self._require_no_placeholder((context, prompt, answer), example)
            image = images[number].layout.placeholder if number in images else ()
            before = [*form.before_image, *image, *form.before_prompt]
            rows.append(self._row(before, context, prompt, form.after_prompt, answer, example))
        input_ids, attention_mask, is_text, is_answer = pad(
            rows, self._padding, padding_side, self.device
        )
        inputs = Inputs(
            input_ids=input_ids,
            attention_mask=attention_mask,
            is_text=is_text,
            is_answer=is_answer,
            image_rows=tuple(images),
        )
        return replace(inputs, extras=self.extras(inputs, list(images.values())))

    def require_room(self, inputs: Inputs, max_new_tokens: int) -> None:
        """Raise ModelError where so many new tokens do not fit behind the prompts."""
        length = inputs.input_ids.shape[1]
        if length + max_new_tokens > self.max_tokens:
            raise ModelError(
                f"{max_new_tokens} new tokens do not fit behind a prompt of {length} tokens; this "
                f"model takes {self.max_tokens} in all"
            )

    def decode(self, tokens: Int[Tensor, "batch new"]) -> list[str]:
        """Without special tokens, stripped."""
        return [
            text.strip() for text in self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        ]

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

    def _row(
        self,
        before: list[int],
        context: list[int],
        prompt: list[int],
        after: Sequence[int],
        answer: list[int],
        example: Example,
    ) -> tuple[Tensor, ...]:
        """Tokens, attention, and which are text and answer."""
        asked = [*before, *context, *prompt, *after]
        if not asked:
            raise ModelError(
                f"nothing stands before the answer {example.target!r}, so nothing predicts its "
                "first token; give an image, a context or a prompt"
            )
        tokens = torch.tensor([*asked, *answer])
        if len(tokens) > self.max_tokens:
            raise ModelError(
                f"{example.prompt[:60]!r} makes a sequence of {len(tokens)} tokens (image and "
                f"markers {len(before) + len(after)}, context {len(context)}, prompt "
                f"{len(prompt)}, answer {len(answer)}); this model takes {self.max_tokens}. "
                "Shorten it (with IKE: a smaller k)."
            )
        place = torch.arange(len(tokens))
        is_answer = place >= len(asked)
        start = len(before) + len(context)
        is_prompt = (place >= start) & (place < start + len(prompt))
        return tokens, torch.ones_like(tokens), is_prompt | is_answer, is_answer


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


def linears(module: nn.Module, prefix: str) -> tuple[str, ...]:
    """The names of all Linear modules inside one, in order."""
    return tuple(
        f"{prefix}.{name}" if name else prefix
        for name, inner in module.named_modules()
        if isinstance(inner, nn.Linear)
    )
