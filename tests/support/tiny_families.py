"""Tiny random models of thirteen vision-language families, saved as the released ones are.

The classes are the released checkpoints' own: network, image processor, video processor and chat
format. Only sizes, weights and vocabulary are small: each tokenizer is a byte-level BPE trained
here, with the family's special tokens, so that any prompt tokenises without a download.
"""

# transformers' configs and processors take keywords that their signatures do not tell.
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportReturnType=false

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    BertTokenizer,
    BlipImageProcessor,
    CLIPImageProcessor,
    CLIPVisionConfig,
    FastVlmConfig,
    FastVlmForConditionalGeneration,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    Gemma3TextConfig,
    GemmaConfig,
    GenerationConfig,
    GotOcr2ImageProcessor,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    InstructBlipQFormerConfig,
    InstructBlipVisionConfig,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    InternVLVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    LlavaProcessor,
    MistralConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PixtralImageProcessor,
    PixtralProcessor,
    PixtralVisionConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
    TimmWrapperConfig,
)

from mmedit.convert import photo

CORPUS = (
    "what color is the shape?",
    "which color does the rectangle have?",
    "is there a red circle in the image?",
    "a photo of",
    "what is the capital of Albania?",
    " a small teal triangle on a light background",
    " Tirana yes no blue",
    "You are a helpful assistant. system user assistant model USER: ASSISTANT: User: Assistant:",
)
VOCABULARY = 340

LLAMA = ("<unk>", "<s>", "</s>", "<pad>")
QWEN = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
QWEN_VISION = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
GEMMA = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")

# What follows are formats, written for one kind of content: a list of {"type": ...} parts, which
# the processors make of a plain string too.
_IMAGES_FIRST = (
    "{%- macro parts(message, image, text) -%}"
    "{%- for part in message['content'] if part['type'] == 'image' -%}{{ image }}{%- endfor -%}"
    "{%- for part in message['content'] if part['type'] == 'text' -%}"
    "{{ text[0] + part['text'] + text[1] }}"
    "{%- endfor -%}"
    "{%- endmacro -%}"
)
LLAVA_CHAT = _IMAGES_FIRST + (
    "{%- for message in messages -%}"
    "{{- '' if message['role'] == 'system' else message['role'] | upper + ': ' -}}"
    "{{- parts(message, '<image>\\n', ('', ' ')) -}}"
    "{%- endfor -%}"
    "{{- 'ASSISTANT:' if add_generation_prompt else '' -}}"
)
LLAVA_NEXT_CHAT = _IMAGES_FIRST + (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}"
    "{{- '<<SYS>>\\n' + parts(message, '', ('', '')) + '\\n<</SYS>>\\n\\n' -}}"
    "{%- elif message['role'] == 'user' -%}"
    "{{- '[INST] ' + parts(message, '<image>\\n', ('', '')) + ' [/INST]' -}}"
    "{%- else -%}"
    "{{- ' ' + parts(message, '', ('', '')) + '</s> ' -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
)
PIXTRAL_CHAT = _IMAGES_FIRST + (
    "{{- bos_token -}}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}"
    "{{- '[INST]' + parts(message, '[IMG]', ('', '')) + '[/INST]' -}}"
    "{%- else -%}"
    "{{- parts(message, '', ('', '')) + '</s>' -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
)
LLAVA_ONEVISION_CHAT = _IMAGES_FIRST + (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + ' ' -}}"
    "{{- parts(message, '<image>', ('\\n', '')) + '<|im_end|>' -}}"
    "{%- endfor -%}"
    "{{- '<|im_start|>assistant\\n' if add_generation_prompt else '' -}}"
)

FAST_VLM_CHAT = _IMAGES_FIRST + (
    "{%- for message in messages -%}"
    "{%- if loop.first and message['role'] != 'system' -%}"
    "{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}"
    "{%- endif -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' -}}"
    "{{- parts(message, '<image>', ('\\n', '')) + '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{{- '<|im_start|>assistant\\n' if add_generation_prompt else '' -}}"
)


def _chatml(image: str, *, system: str = "") -> str:
    """Return a chat template with turns between <|im_start|> and <|im_end|>, parts in order."""
    first = f"<|im_start|>system\\n{system}<|im_end|>\\n" if system else ""
    return (
        "{%- for message in messages -%}"
        f"{{{{- '{first}' if loop.first and message['role'] != 'system' else '' -}}}}"
        "{{- '<|im_start|>' + message['role'] + '\\n' -}}"
        "{%- if message['content'] is string -%}{{ message['content'] }}{%- else -%}"
        "{%- for part in message['content'] -%}"
        f"{{{{- '{image}' if part['type'] == 'image' else part['text'] -}}}}"
        "{%- endfor -%}{%- endif -%}"
        "{{- '<|im_end|>\\n' -}}"
        "{%- endfor -%}"
        "{{- '<|im_start|>assistant\\n' if add_generation_prompt else '' -}}"
    )


QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
QWEN2_VL_CHAT = _chatml(QWEN_IMAGE, system="You are a helpful assistant.")
QWEN3_VL_CHAT = _chatml(QWEN_IMAGE)
INTERNVL_CHAT = _chatml("<IMG_CONTEXT>\\n")
SMOLVLM_CHAT = (
    "{{- '<|im_start|>' -}}"
    "{%- for message in messages -%}"
    "{{- message['role'] | capitalize -}}"
    "{{- ':' if message['content'][0]['type'] == 'image' else ': ' -}}"
    "{%- for part in message['content'] -%}"
    "{{- '<image>' if part['type'] == 'image' else part['text'] -}}"
    "{%- endfor -%}"
    "{{- '<end_of_utterance>\\n' -}}"
    "{%- endfor -%}"
    "{{- 'Assistant:' if add_generation_prompt else '' -}}"
)
GEMMA3_CHAT = (
    "{%- macro parts(message) -%}"
    "{%- if message['content'] is string -%}{{- message['content'] | trim -}}{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{{- '<start_of_image>' if part['type'] == 'image' else part['text'] | trim -}}"
    "{%- endfor -%}{%- endif -%}"
    "{%- endmacro -%}"
    "{{- bos_token -}}"
    "{%- set has_system = messages[0]['role'] == 'system' -%}"
    "{%- for message in (messages[1:] if has_system else messages) -%}"
    "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}"
    "{{- raise_exception('user and assistant must take turns') -}}"
    "{%- endif -%}"
    "{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}"
    "{{- '<start_of_turn>' + role + '\\n' -}}"
    "{{- parts(messages[0]) + '\\n\\n' if has_system and loop.first else '' -}}"
    "{{- parts(message) + '<end_of_turn>\\n' -}}"
    "{%- endfor -%}"
    "{{- '<start_of_turn>model\\n' if add_generation_prompt else '' -}}"
)


def _tokenizer(special: Sequence[str], **options: Any) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE whose first ids are the special tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(CORPUS * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, padding_side="left", **options)


def _llama_tokenizer(**more: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer that begins every text with <s>, as Llama's does."""
    return _tokenizer(
        (*LLAMA, *more.values()), unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        pad_token="<pad>", add_bos_token=True, extra_special_tokens=more,
    )  # fmt: skip


def _qwen_tokenizer(*unnamed: str, **more: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer that adds no token before a text."""
    return _tokenizer(
        (*QWEN, *unnamed, *more.values()), eos_token="<|im_end|>", pad_token="<|endoftext|>",
        extra_special_tokens=more,
    )  # fmt: skip


def _gemma_tokenizer(**more: str) -> PreTrainedTokenizerFast:
    return _tokenizer(
        (*GEMMA, *more.values()), unk_token="<unk>", bos_token="<bos>", eos_token="<eos>",
        pad_token="<pad>", add_bos_token=True, extra_special_tokens=more,
    )  # fmt: skip


def _qformer_tokenizer() -> BertTokenizer:
    """Return a tokenizer of words and letters, as BERT's, for the Q-Former of InstructBLIP."""
    words = sorted({word for line in CORPUS for word in line.lower().split() if word.isalpha()})
    letters = "abcdefghijklmnopqrstuvwxyz0123456789?.,:"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    vocabulary = dict.fromkeys([*pieces, *words])
    return BertTokenizer(vocab={token: number for number, token in enumerate(vocabulary)})


def _bos(tokenizer: PreTrainedTokenizerFast) -> int | None:
    """Return the id of <|endoftext|>, which Qwen's configs name and its tokenizer does not add."""
    return tokenizer.pad_token_id if tokenizer.bos_token is None else tokenizer.bos_token_id


def _text(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Return the settings that all language models share, and the tokenizer's ids."""
    return {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1,
        "max_position_embeddings": 4096, "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": _bos(tokenizer), "eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip


def _vision(*, image_size: int, patch_size: int) -> dict[str, Any]:
    return {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3,
        "num_attention_heads": 2, "image_size": image_size, "patch_size": patch_size,
    }  # fmt: skip


def _id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    number = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(number, int)
    return number


def _square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


def _ends_with(network: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, *also: str) -> None:
    """Return the generation config: the tokenizer's ids, and further tokens that end an answer."""
    ends = [tokenizer.eos_token_id, *(_id(tokenizer, token) for token in also)]
    network.generation_config = GenerationConfig(
        bos_token_id=_bos(tokenizer),
        eos_token_id=ends if also else ends[0],
        pad_token_id=tokenizer.pad_token_id,
    )


def _llava() -> tuple[PreTrainedModel, ProcessorMixin]:
    tokenizer = _llama_tokenizer(image_token="<image>")
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(projection_dim=16, **_vision(image_size=28, patch_size=14)),
        text_config=LlamaConfig(**_text(tokenizer)),
        image_token_index=_id(tokenizer, "<image>"),
        image_seq_length=4,
    )
    network = LlavaForConditionalGeneration(config)
    _ends_with(network, tokenizer)
    images = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=_square(28))
    return network, LlavaProcessor(
        images, tokenizer, patch_size=14, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=LLAVA_CHAT,
    )  # fmt: skip


def _pixtral() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Images of all sizes, with one token for a break after each row of patches."""
    names = {
        "image_token": "[IMG]", "image_break_token": "[IMG_BREAK]", "image_end_token": "[IMG_END]",
    }  # fmt: skip
    turns = ("[INST]", "[/INST]")
    tokenizer = _tokenizer(
        (*LLAMA, *names.values(), *turns), unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        pad_token="<pad>", add_bos_token=True, extra_special_tokens=names,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=PixtralVisionConfig(**_vision(image_size=64, patch_size=8)),
        text_config=MistralConfig(sliding_window=None, **_text(tokenizer)),
        image_token_index=_id(tokenizer, "[IMG]"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        projector_hidden_act="gelu",
    )
    network = LlavaForConditionalGeneration(config)
    _ends_with(network, tokenizer)
    images = PixtralImageProcessor(size={"longest_edge": 64}, patch_size=_square(8))
    return network, PixtralProcessor(
        images, tokenizer, patch_size=8, spatial_merge_size=1, chat_template=PIXTRAL_CHAT
    )


def _llava_next() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Tiles of 9 tokens: two beside each other, two above each other, or four."""
    tokenizer = _llama_tokenizer(image_token="<image>")
    grids = [[21, 42], [42, 21], [42, 42]]
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(projection_dim=16, **_vision(image_size=21, patch_size=7)),
        text_config=MistralConfig(sliding_window=None, **_text(tokenizer)),
        image_token_index=_id(tokenizer, "<image>"),
        image_grid_pinpoints=grids,
        image_seq_length=9,
    )
    network = LlavaNextForConditionalGeneration(config)
    _ends_with(network, tokenizer)
    images = LlavaNextImageProcessor(
        size={"shortest_edge": 21}, crop_size=_square(21), image_grid_pinpoints=grids
    )
    return network, LlavaNextProcessor(
        images, tokenizer, patch_size=7, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=LLAVA_NEXT_CHAT,
    )  # fmt: skip


def _llava_onevision() -> tuple[PreTrainedModel, ProcessorMixin]:
    tokenizer = _qwen_tokenizer(image_token="<image>", video_token="<video>")
    grids = [[21, 21], [21, 42], [42, 21], [42, 42]]
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(
            vision_use_head=False, **_vision(image_size=21, patch_size=7)
        ),
        text_config=Qwen2Config(**_text(tokenizer)),
        image_token_index=_id(tokenizer, "<image>"),
        video_token_index=_id(tokenizer, "<video>"),
        image_grid_pinpoints=grids,
    )
    network = LlavaOnevisionForConditionalGeneration(config)
    _ends_with(network, tokenizer, "<|endoftext|>")
    return network, LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=_square(21), image_grid_pinpoints=grids),
        tokenizer,
        LlavaOnevisionVideoProcessor(size=_square(21)),
        num_image_tokens=9,
        vision_feature_select_strategy="full",
        chat_template=LLAVA_ONEVISION_CHAT,
    )


def _qwen_vl_tokenizer() -> PreTrainedTokenizerFast:
    """These processors know their tokens by their text, and give them no name."""
    return _tokenizer(
        (*QWEN, *QWEN_VISION), eos_token="<|im_end|>", pad_token="<|endoftext|>",
        extra_special_tokens=list(QWEN_VISION),
    )  # fmt: skip


def _qwen_vl_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    names = ("vision_start", "vision_end", "image", "video")
    return {
        f"{name}_token_id": _id(tokenizer, token)
        for name, token in zip(names, QWEN_VISION, strict=True)
    }


QWEN_PATCH = 4
QWEN_SIZES: dict[str, Any] = {
    "patch_size": QWEN_PATCH, "temporal_patch_size": 2, "merge_size": 2,
    "size": {"shortest_edge": 16 * QWEN_PATCH**2, "longest_edge": 64 * QWEN_PATCH**2},
}  # fmt: skip
"""An image is 4 to 16 tokens, each of 2 × 2 patches."""
QWEN_ROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
QWEN3_ROPE = QWEN_ROPE | {"rope_theta": 5e6, "mrope_section": [4, 2, 2], "mrope_interleaved": True}


def _qwen2_vl() -> tuple[PreTrainedModel, ProcessorMixin]:
    tokenizer = _qwen_vl_tokenizer()
    config = Qwen2VLConfig(
        vision_config={
            "depth": 3, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2,
            "patch_size": QWEN_PATCH,
        },
        text_config=_text(tokenizer) | {"rope_parameters": dict(QWEN_ROPE)},
        **_qwen_vl_ids(tokenizer),
    )  # fmt: skip
    network = Qwen2VLForConditionalGeneration(config)
    _ends_with(network, tokenizer, "<|endoftext|>")
    return network, Qwen2VLProcessor(
        Qwen2VLImageProcessor(**QWEN_SIZES), tokenizer, Qwen2VLVideoProcessor(**QWEN_SIZES),
        chat_template=QWEN2_VL_CHAT,
    )  # fmt: skip


def _qwen2_5_vl() -> tuple[PreTrainedModel, ProcessorMixin]:
    """The middle one of three vision layers sees the whole image, the others 2 × 2 tokens."""
    tokenizer = _qwen_vl_tokenizer()
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 3, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2,
            "out_hidden_size": 32, "patch_size": QWEN_PATCH, "window_size": 4 * QWEN_PATCH,
            "fullatt_block_indexes": [1],
        },
        text_config=_text(tokenizer) | {"rope_parameters": dict(QWEN_ROPE)},
        **_qwen_vl_ids(tokenizer),
    )  # fmt: skip
    network = Qwen2_5_VLForConditionalGeneration(config)
    _ends_with(network, tokenizer, "<|endoftext|>")
    return network, Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(**QWEN_SIZES), tokenizer, Qwen2VLVideoProcessor(**QWEN_SIZES),
        chat_template=QWEN2_VL_CHAT,
    )  # fmt: skip


def _qwen3_vl() -> tuple[PreTrainedModel, ProcessorMixin]:
    """The first two vision layers also reach the first two language layers."""
    tokenizer = _qwen_vl_tokenizer()
    config = Qwen3VLConfig(
        vision_config={
            "depth": 3, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2,
            "out_hidden_size": 32, "patch_size": QWEN_PATCH, "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        },
        text_config=_text(tokenizer) | {"head_dim": 16, "rope_parameters": dict(QWEN3_ROPE)},
        tie_word_embeddings=True,
        **_qwen_vl_ids(tokenizer),
    )  # fmt: skip
    network = Qwen3VLForConditionalGeneration(config)
    _ends_with(network, tokenizer, "<|endoftext|>")
    mean = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    return network, Qwen3VLProcessor(
        Qwen2VLImageProcessor(**QWEN_SIZES, **mean), tokenizer, Qwen3VLVideoProcessor(**QWEN_SIZES),
        chat_template=QWEN3_VL_CHAT,
    )  # fmt: skip


def _smolvlm() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Tiles of 32 pixels and 4 tokens: at most 2 × 2 of them, then the whole image."""
    tiles = [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
    named = {
        "fake_image_token": "<fake_token_around_image>", "image_token": "<image>",
        "end_of_utterance_token": "<end_of_utterance>", "global_image_token": "<global-img>",
    }  # fmt: skip
    tokenizer = _tokenizer(
        (*QWEN, *named.values(), *tiles), unk_token="<|endoftext|>", bos_token="<|im_start|>",
        eos_token="<end_of_utterance>", pad_token="<|im_end|>", extra_special_tokens=named,
    )  # fmt: skip
    config = SmolVLMConfig(
        vision_config=_vision(image_size=32, patch_size=8),
        text_config=LlamaConfig(**_text(tokenizer)),
        image_token_id=_id(tokenizer, "<image>"),
        pad_token_id=tokenizer.pad_token_id,
        scale_factor=2,
    )
    network = SmolVLMForConditionalGeneration(config)
    _ends_with(network, tokenizer)
    sizes = {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}}
    sampling = {"fps": 1, "max_frames": 4, "video_size": {"longest_edge": 32}}
    return network, SmolVLMProcessor(
        SmolVLMImageProcessor(**sizes), tokenizer,
        SmolVLMVideoProcessor(**sizes, video_sampling=sampling),
        image_seq_len=4, chat_template=SMOLVLM_CHAT,
    )  # fmt: skip


def _paligemma() -> tuple[PreTrainedModel, ProcessorMixin]:
    """The processor adds 1152 tokens for places and segments, hence the larger vocabulary."""
    tokenizer = _gemma_tokenizer(image_token="<image>")
    images = SiglipImageProcessor(size=_square(28))
    images.image_seq_length = 4
    processor = PaliGemmaProcessor(images, tokenizer)
    config = PaliGemmaConfig(
        vision_config=SiglipVisionConfig(
            vision_use_head=False, **_vision(image_size=28, patch_size=14)
        ),
        text_config=GemmaConfig(head_dim=16, **_text(tokenizer)),
        image_token_index=_id(tokenizer, "<image>"),
        vocab_size=len(tokenizer),
        projection_dim=32,
        hidden_size=32,
    )
    network = PaliGemmaForConditionalGeneration(config)
    _ends_with(network, tokenizer)
    return network, processor


def _internvl() -> tuple[PreTrainedModel, ProcessorMixin]:
    """At most four tiles of 4 tokens, and where there are several the whole image as one more."""
    tokenizer = _qwen_tokenizer(
        start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )  # fmt: skip
    vision = InternVLVisionConfig(attention_bias=True, **_vision(image_size=28, patch_size=7))
    config = InternVLConfig(
        vision_config=vision,
        text_config=Qwen2Config(**_text(tokenizer)),
        image_token_id=_id(tokenizer, "<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    network = InternVLForConditionalGeneration(config)
    _ends_with(network, tokenizer, "<|endoftext|>")
    return network, InternVLProcessor(
        GotOcr2ImageProcessor(size=_square(28), crop_to_patches=True, max_patches=4), tokenizer,
        InternVLVideoProcessor(size=_square(28)), image_seq_length=4, chat_template=INTERNVL_CHAT,
    )  # fmt: skip


def _gemma3() -> tuple[PreTrainedModel, ProcessorMixin]:
    tokenizer = _gemma_tokenizer(
        boi_token="<start_of_image>", eoi_token="<end_of_image>", image_token="<image_soft_token>"
    )
    text = Gemma3TextConfig(
        head_dim=16, query_pre_attn_scalar=16, sliding_window=512,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        **_text(tokenizer),
    )  # fmt: skip
    config = Gemma3Config(
        vision_config=SiglipVisionConfig(
            vision_use_head=False, **_vision(image_size=28, patch_size=7)
        ),
        text_config=text,
        mm_tokens_per_image=4,
        boi_token_index=_id(tokenizer, "<start_of_image>"),
        eoi_token_index=_id(tokenizer, "<end_of_image>"),
        image_token_index=_id(tokenizer, "<image_soft_token>"),
    )
    network = Gemma3ForConditionalGeneration(config)
    _ends_with(network, tokenizer, "<end_of_turn>")
    return network, Gemma3Processor(
        Gemma3ImageProcessor(size=_square(28)), tokenizer,
        image_seq_length=4, chat_template=GEMMA3_CHAT,
    )  # fmt: skip


def _instructblip() -> tuple[PreTrainedModel, ProcessorMixin]:
    """The processor adds <image> itself: it cannot work with a tokenizer that names one."""
    tokenizer, qformer_tokenizer = _llama_tokenizer(), _qformer_tokenizer()
    images = BlipImageProcessor(size=_square(28))
    processor = InstructBlipProcessor(images, tokenizer, qformer_tokenizer, num_query_tokens=4)
    qformer = InstructBlipQFormerConfig(
        vocab_size=len(qformer_tokenizer), hidden_size=16, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=32, encoder_hidden_size=16,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        pad_token_id=qformer_tokenizer.pad_token_id,
    )  # fmt: skip
    config = InstructBlipConfig(
        vision_config=InstructBlipVisionConfig(**_vision(image_size=28, patch_size=14)),
        qformer_config=qformer,
        text_config=LlamaConfig(**_text(tokenizer)),
        num_query_tokens=4,
        image_token_index=_id(tokenizer, "<image>"),
    )
    network = InstructBlipForConditionalGeneration(config)
    _ends_with(network, tokenizer)
    return network, processor


def _fast_vlm() -> tuple[PreTrainedModel, ProcessorMixin]:
    """A FastViT of two stages, the second one with attention: 4 × 4 places of 8 × 8 pixels."""
    tokenizer = _qwen_tokenizer(image_token="<image>")
    sizes = {
        "layers": [1, 1], "embed_dims": [8, 32], "mlp_ratios": [2, 2],
        "se_downsamples": [False, False], "downsamples": [False, True], "pos_embs": [None, None],
        "token_mixers": ["repmixer", "attention"], "lkc_use_act": True,
        "stem_use_scale_branch": False, "inference_mode": True,
    }  # fmt: skip
    config = FastVlmConfig(
        vision_config=TimmWrapperConfig(
            architecture="fastvit_mci3", model_args=sizes, hidden_size=64
        ),
        text_config=Qwen2Config(**_text(tokenizer)),
        image_token_index=_id(tokenizer, "<image>"),
    )
    network = FastVlmForConditionalGeneration(config)
    _ends_with(network, tokenizer)
    images = CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size=_square(32), image_mean=[0.0] * 3, image_std=[1.0] * 3
    )
    return network, LlavaProcessor(images, tokenizer, patch_size=8, chat_template=FAST_VLM_CHAT)


def _photo() -> tuple[PreTrainedModel, ProcessorMixin]:
    """A FastVLM of EfficientNet-Lite0, which has no Linear, and a Llama with tied embeddings."""
    tokenizer = _tokenizer(
        (*QWEN, "<image>"), unk_token="<|endoftext|>", bos_token="<|im_start|>",
        eos_token="<|im_end|>", pad_token="<|im_end|>",
        extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip
    text = LlamaConfig(tie_word_embeddings=True, **_text(tokenizer))
    network = photo.build_network(text, _id(tokenizer, "<image>"), pixels=64)
    _ends_with(network, tokenizer)
    return network, photo.build_processor(tokenizer, pixels=64)


FAMILIES: dict[str, Callable[[], tuple[PreTrainedModel, ProcessorMixin]]] = {
    "llava": _llava,
    "pixtral": _pixtral,
    "llava_next": _llava_next,
    "llava_onevision": _llava_onevision,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "smolvlm": _smolvlm,
    "paligemma": _paligemma,
    "internvl": _internvl,
    "gemma3": _gemma3,
    "instructblip": _instructblip,
    "fast_vlm": _fast_vlm,
    "photo": _photo,
}
"""Network and processor by `model_type` (Pixtral's is `llava`, that of photo is `fast_vlm`);
`build_family` sets the weights.
"""


def build_family(name: str, *, seed: int = 0) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Return a network in evaluation mode and float32, whose logits depend on image and prompt."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network, processor = FAMILIES[name]()
        for parameter in network.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.2)
            elif not bool((parameter == 1).all()):  # biases; the scales of norms stay
                nn.init.normal_(parameter, std=0.1)
        _scale_convolutions(network)
    return network.eval(), processor


@torch.no_grad()
def _scale_convolutions(network: PreTrainedModel) -> None:
    """Give a convolutional tower weights by their number, and every BatchNorm the statistics of
    random pictures: so that features do not vanish or grow with its depth.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms:
        return
    tower = network.get_encoder(modality="image")
    for module in tower.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    for norm in norms:
        norm.train().momentum = None  # the mean over all batches, of which there is one
    tower(torch.rand(4, 3, 64, 64))


def save_family(name: str, folder: Path, *, seed: int = 0) -> Path:
    """Save network and processor as a transformers folder."""
    network, processor = build_family(name, seed=seed)
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
