"""Model families. A new family is one file and one row here."""

from typing import Any

from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from mmedit.adapters.auto import AutoAdapter
from mmedit.adapters.base import Adapter
from mmedit.adapters.blip2 import Blip2Adapter
from mmedit.adapters.fast_vlm import FastVlmAdapter
from mmedit.adapters.instructblip import InstructBlipAdapter
from mmedit.adapters.llava import LlavaAdapter, LlavaNextAdapter, LlavaOnevisionAdapter
from mmedit.adapters.minigpt4 import MiniGPT4Adapter
from mmedit.adapters.paligemma import PaliGemmaAdapter
from mmedit.adapters.qwen_vl import Qwen2VLAdapter, Qwen3VLAdapter, Qwen25VLAdapter
from mmedit.errors import ModelError

ADAPTERS: dict[str, type[Adapter]] = {
    "blip2": Blip2Adapter,
    "minigpt4": MiniGPT4Adapter,
    "instructblip": InstructBlipAdapter,
    "llava": LlavaAdapter,
    "llava-next": LlavaNextAdapter,
    "llava-onevision": LlavaOnevisionAdapter,
    "qwen2-vl": Qwen2VLAdapter,
    "qwen2.5-vl": Qwen25VLAdapter,
    "qwen3-vl": Qwen3VLAdapter,
    "paligemma": PaliGemmaAdapter,
    "fast-vlm": FastVlmAdapter,
    "auto": AutoAdapter,
}
"""Adapters by family. `auto` is for every other family of transformers."""


def adapter_for(config: Any) -> type[Adapter]:
    """Return the adapter of a transformers config, by its model type. Raises ModelError."""
    for adapter in ADAPTERS.values():
        if config.model_type in adapter.model_types:
            return adapter
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoAdapter
    known = sorted(name for adapter in ADAPTERS.values() for name in adapter.model_types)
    raise ModelError(
        f"its model type {config.model_type!r} is not an image-text-to-text model of transformers; "
        f"there are adapters for {', '.join(known)}, and for every other model that "
        "AutoModelForImageTextToText loads"
    )
