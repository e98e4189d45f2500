"""The effect of a processor on texts and images: checked when a VLM is loaded, and as a hash.

Files of a processor change with the version of transformers that wrote them. So the hash is one of
effects where they can be seen (the tokens of texts, of a conversation, and of an image), and of
settings only for the pixels, which differ in the last digit between machines.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from PIL import Image
from transformers import PreTrainedTokenizerBase
from transformers.image_processing_base import ImageProcessingMixin

from mmedit.errors import ModelError

SAMPLE_TEXTS = (
    "What color is the shape on the left?",
    " the capital of Albania is Tirana, isn't it? In 1.234,5 of 100% it's NOT so.",
    "UPPER lower  two spaces\n\nnew line\ttab (a) [b] {c} <d> #e @f 'g' \"h\" - i_j",
    "Ünïcödé e\u0301 你好世界 مرحبا привет 😀",
)
"""Texts of several scripts: their tokens show how a tokenizer normalises and splits."""
SAMPLE_SIZES = ((64, 64), (96, 40))
"""Width and height of pictures whose tokens show how a processor counts, in pixels."""
NO_EFFECT = frozenset({"processor_class", "feature_extractor_type", "auto_map"})
"""Keys of an image processor that say where it comes from."""


def sample_image(size: tuple[int, int]) -> Image.Image:
    """Return a grey picture of this width and height, in pixels."""
    return Image.new("RGB", size, (128, 128, 128))


def processing_hash(tokenizers: Sequence[Any], image_processor: Any, others: object) -> str:
    """Return 32 hexadecimal digits that change with what a processor makes of texts and images.

    `others` is plain JSON that counts too. Reads every vocabulary.
    """
    described = {
        "tokenizers": [_described(tokenizer) for tokenizer in tokenizers],
        "images": _image_settings(image_processor),
        "others": others,
    }
    text = json.dumps(described, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def require_tokenizer(tokenizer: Any) -> None:
    """Raise ModelError unless a tokenizer makes tokens of a text.

    Transformers makes an empty one for a folder without the files of a tokenizer.
    """
    if not tokenizer(["a"], add_special_tokens=False)["input_ids"][0]:
        raise ModelError(
            "its tokenizer makes no tokens of a text; expected the files of the tokenizer that the "
            "model was released with (tokenizer.json): put them into the folder"
        )


def _described(tokenizer: Any) -> object:
    """Return what a tokenizer makes of texts. One of your own counts by the sample texts alone."""
    samples = tokenizer(list(SAMPLE_TEXTS), add_special_tokens=False)["input_ids"]
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        return samples
    added = tokenizer.added_tokens_decoder
    special = {str(number): [str(token), token.special] for number, token in added.items()}
    backend = getattr(tokenizer, "backend_tokenizer", None)  # tokenizers in Python have none
    return {
        "vocabulary": _hash(sorted(f"{n} {token}" for token, n in tokenizer.get_vocab().items())),
        "merges": _merges(backend),
        "added": special,
        "samples": samples,
    }


def _image_settings(image_processor: Any) -> object:
    if not isinstance(image_processor, ImageProcessingMixin):
        return f"{type(image_processor).__module__}.{type(image_processor).__qualname__}"
    return _settings(image_processor.to_dict())


def _merges(backend: Any) -> str:
    """Return a hash of the order of merges, or of the pieces with their scores."""
    if backend is None:
        return ""
    model = json.loads(backend.to_str())["model"]
    pieces = model.get("merges") or (model["vocab"] if model["type"] == "Unigram" else ())
    return _hash(json.dumps(piece) for piece in pieces)


def _hash(lines: Iterable[str]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for line in lines:
        digest.update(line.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()


def _settings(value: Any) -> Any:
    """Return settings as plain JSON, without those that are not set or have no effect."""
    if isinstance(value, Mapping):
        kept = {str(key): _settings(inner) for key, inner in value.items() if key not in NO_EFFECT}
        return {key: inner for key, inner in kept.items() if inner is not None}
    if isinstance(value, list | tuple):
        return [_settings(inner) for inner in value]
    return value if value is None or isinstance(value, str | int | float) else str(value)
