"""The hashes of a loaded network with its processor: of all that its answers depend on."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

from PIL import Image

from mmedit.adapters.generation import Stops
from mmedit.adapters.processing import SAMPLE_SIZES, processing_hash, sample_image
from mmedit.adapters.prompts import PromptFormat
from mmedit.adapters.seen import Layout, Pixels
from mmedit.adapters.weights import config_hash, weights_hash

PROCESSING_VERSION = 1
"""The version of what `Hashed.processing_hash` covers."""


class Hashed(ABC):
    """A network with its processor, as far as its hashes need them."""

    network: Any  # transformers' types do not tell its submodules
    processor: Any
    tokenizer: Any
    text_format: PromptFormat
    image_format: PromptFormat
    stops: Stops

    @abstractmethod
    def prepare(self, image: Image.Image) -> tuple[Layout, Pixels]:
        """Preprocess one image: return its layout in the text, and its pixels."""

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all weights. Reads every one of them, the first time."""
        return weights_hash(self.network)

    @cached_property
    def config_hash(self) -> str:
        """A hash of the network's config."""
        return config_hash(self.network.config)

    @cached_property
    def processing_hash(self) -> str:
        """A hash of all that makes inputs of an example, and text of an answer's tokens.

        This is the tokenizer, the prompt format, the image processor, the number of an image's
        tokens, the end tokens and stop strings, and the adapter's class. Its first digit is the
        version of this list: hashes of different versions cannot be compared.
        """
        layouts = [self.prepare(sample_image(size))[0] for size in SAMPLE_SIZES]
        others = {
            "adapter": type(self).__name__,
            "formats": [asdict(self.text_format), asdict(self.image_format)],
            "image tokens": [list(layout.placeholder) for layout in layouts],
            "ends": self.stops.ends,
            "stops": self.stops.strings,
        }
        digest = processing_hash(self._tokenizers, self.processor.image_processor, others)
        return f"{PROCESSING_VERSION}-{digest}"

    @property
    def _tokenizers(self) -> Sequence[Any]:
        """The tokenizers that read an example."""
        return (self.tokenizer,)

    @cached_property
    def features_of(self) -> str:
        """A name for all that image features depend on, except the image.

        This is weights, config, processing, dtype, and the adapter's class.
        """
        settings = (
            self.network.config.to_json_string(),
            self.processor.image_processor.to_json_string(),
            self.processing_hash,
            type(self).__name__,
            str(self.network.dtype),
        )
        digest = hashlib.blake2b("\0".join(settings).encode(), digest_size=16).hexdigest()
        return f"{self.fingerprint}-{digest}"
