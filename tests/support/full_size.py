"""The sizes of released checkpoints, as transformers configs, from the published configs.

They make networks without values (`meta`), or with random ones on machines with enough memory.
"""

# transformers' configs and processors take keywords that their signatures do not tell.
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tiny
import tiny_families
import torch
from transformers import (
    AutoModelForImageTextToText,
    Blip2Config,
    Blip2Processor,
    BlipImageProcessor,
    FastVlmConfig,
    InstructBlipConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaOnevisionConfig,
    OPTConfig,
    PretrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen3VLConfig,
    SmolVLMConfig,
)

LLAMA_7B: dict[str, Any] = {
    "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "vocab_size": 32001,
}  # fmt: skip
QWEN2_7B: dict[str, Any] = {
    "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
}  # fmt: skip
EVA_G_364 = {"image_size": 364}
"""The other sizes of EVA-g are the defaults of transformers' `Blip2VisionConfig`."""


def _opt(hidden: int) -> OPTConfig:
    return OPTConfig(
        hidden_size=hidden, word_embed_proj_dim=hidden, ffn_dim=4 * hidden, num_hidden_layers=32,
        num_attention_heads=32, vocab_size=50304, dropout=0.0,
    )  # fmt: skip


def _blip2(text: PretrainedConfig) -> Blip2Config:
    return Blip2Config(
        vision_config=EVA_G_364, qformer_config={}, text_config=text, image_token_index=50265
    )


def _minigpt4() -> Blip2Config:
    return Blip2Config(
        vision_config=EVA_G_364, qformer_config={}, text_config=LlamaConfig(**LLAMA_7B),
        image_token_index=32000,
    )  # fmt: skip


def _instructblip() -> InstructBlipConfig:
    return InstructBlipConfig(
        vision_config={}, qformer_config={}, text_config=LlamaConfig(**LLAMA_7B),
        image_token_index=32000,
    )  # fmt: skip


def _llava() -> LlavaConfig:
    clip = {
        "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096,
        "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 336, "patch_size": 14,
        "projection_dim": 768,
    }  # fmt: skip
    return LlavaConfig(vision_config=clip, text_config=LlamaConfig(**LLAMA_7B))


def _llava_onevision() -> LlavaOnevisionConfig:
    siglip = {
        "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304,
        "num_hidden_layers": 26, "num_attention_heads": 16, "image_size": 384, "patch_size": 14,
        "vision_use_head": False,
    }  # fmt: skip
    return LlavaOnevisionConfig(vision_config=siglip, text_config=Qwen2Config(**QWEN2_7B))


def _qwen2_vl() -> Qwen2VLConfig:
    vision = {"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "num_heads": 16}
    return Qwen2VLConfig(vision_config=vision, text_config=QWEN2_7B)


def _qwen2_5_vl() -> Qwen2_5_VLConfig:
    vision = {
        "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16,
        "out_hidden_size": 3584,
    }  # fmt: skip
    return Qwen2_5_VLConfig(vision_config=vision, text_config=QWEN2_7B)


def _qwen3_vl() -> Qwen3VLConfig:
    vision = {
        "depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16,
        "out_hidden_size": 2560, "deepstack_visual_indexes": [5, 11, 17],
    }  # fmt: skip
    text = {
        "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
    }  # fmt: skip
    return Qwen3VLConfig(vision_config=vision, text_config=text, tie_word_embeddings=True)


def _smolvlm() -> SmolVLMConfig:
    vision = {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12, "image_size": 512, "patch_size": 16,
    }  # fmt: skip
    text = LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, vocab_size=49280, max_position_embeddings=8192,
    )  # fmt: skip
    return SmolVLMConfig(vision_config=vision, text_config=text, scale_factor=4)


def _fast_vlm(**text: int) -> FastVlmConfig:
    """Return the config of FastViT-HD, on images of 1024 x 1024 pixels, with a Qwen2."""
    vision = {
        "model_type": "timm_wrapper", "architecture": "fastvit_mci3", "hidden_size": 3072,
        "model_args": {"inference_mode": True},
    }  # fmt: skip
    qwen2 = Qwen2Config(num_key_value_heads=2, vocab_size=152000, tie_word_embeddings=True, **text)
    return FastVlmConfig(
        vision_config=vision, text_config=qwen2, image_token_index=151646, image_seq_length=256,
        tie_word_embeddings=True,
    )  # fmt: skip


def _fastvlm_05b() -> FastVlmConfig:
    return _fast_vlm(
        hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14
    )


def _fastvlm_15b() -> FastVlmConfig:
    return _fast_vlm(
        hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12
    )


CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "blip2-opt-2.7b": lambda: _blip2(_opt(2560)),
    "blip2-opt-6.7b": lambda: _blip2(_opt(4096)),
    "minigpt4-vicuna-7b": _minigpt4,
    "instructblip-vicuna-7b": _instructblip,
    "llava-1.5-7b": _llava,
    "llava-onevision-qwen2-7b": _llava_onevision,
    "qwen2-vl-7b": _qwen2_vl,
    "qwen2.5-vl-7b": _qwen2_5_vl,
    "qwen3-vl-4b": _qwen3_vl,
    "smolvlm-256m": _smolvlm,
    "fastvlm-0.5b": _fastvlm_05b,
    "fastvlm-1.5b": _fastvlm_15b,
}
"""Configs by their names in `configs/vlm`."""


def without_values(name: str) -> PreTrainedModel:
    """Return the network with the shapes of all its weights, and no memory for them."""
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(CONFIGS[name]())


def with_random_values(
    name: str, dtype: torch.dtype, device: torch.device
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Return the network with random weights, and a processor.

    The processor makes images of the released size, with the small vocabulary of the tests.
    """
    config, processor = CONFIGS[name](), RUNNABLE[name]()
    token = processor.tokenizer.convert_tokens_to_ids("<image>")
    config.image_token_index = config.image_token_id = token
    with device:
        return AutoModelForImageTextToText.from_config(config, dtype=dtype), processor


def _blip2_processor() -> ProcessorMixin:
    processor = tiny.build_processor()
    size = {"height": 364, "width": 364}
    return Blip2Processor(BlipImageProcessor(size=size), processor.tokenizer, num_query_tokens=32)


def _smolvlm_processor() -> ProcessorMixin:
    """Return a processor with one tile of 512 pixels per image: thirteen take minutes on a CPU."""
    _, processor = tiny_families.build_family("smolvlm")
    processor.image_processor.do_image_splitting = False
    processor.image_processor.size = {"longest_edge": 512}
    processor.image_processor.max_image_size = {"longest_edge": 512}
    processor.image_seq_len = 64
    return processor


def _llava_processor() -> ProcessorMixin:
    _, processor = tiny_families.build_family("llava")
    processor.image_processor.size = {"shortest_edge": 336}
    processor.image_processor.crop_size = {"height": 336, "width": 336}
    return processor


RUNNABLE: dict[str, Callable[[], ProcessorMixin]] = {
    "blip2-opt-2.7b": _blip2_processor,
    "llava-1.5-7b": _llava_processor,
    "smolvlm-256m": _smolvlm_processor,
}
"""Processors by name, for the networks that can run."""
