"""The language model of a converted VLM, its tokenizer, and the conversation that MiniGPT-4 was
trained on, as a chat template.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    Blip2Processor,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from mmedit.errors import ModelError
from mmedit.storage import is_hub_id

Format = Literal["vicuna", "llama2"]
STOP_STRINGS: dict[Format | None, tuple[str, ...]] = {"vicuna": ("###",)}
"""What begins the next turn, where no end token does: a generated answer stops there."""


def _template(before: str, after: str) -> str:
    """Jinja for `before`, images, text, `after` of a user, and " " + answer of an assistant."""
    return (
        "{%- for message in messages -%}"
        "{%- if message['role'] == 'user' -%}"
        f"{{{{- {before!r} -}}}}"
        "{%- if message['content'] is string -%}{{- message['content'] -}}{%- else -%}"
        "{%- for part in message['content'] if part['type'] == 'image' -%}"
        "{{- '<Img><image></Img> ' -}}{%- endfor -%}"
        "{%- for part in message['content'] if part['type'] == 'text' -%}"
        "{{- part['text'] -}}{%- endfor -%}{%- endif -%}"
        f"{{{{- {after!r} -}}}}"
        "{%- elif message['role'] == 'assistant' -%}"
        "{{- ' ' -}}"
        "{%- if message['content'] is string -%}{{- message['content'] -}}{%- else -%}"
        "{%- for part in message['content'] -%}{{- part['text'] -}}{%- endfor -%}{%- endif -%}"
        "{%- endif -%}{%- endfor -%}"
    )


TEMPLATES: dict[Format, str] = {
    "vicuna": _template("###Human: ", "###Assistant:"),
    "llama2": _template("[INST] ", " [/INST]"),
}
"""`after` belongs to the question: a template with and without generation prompt is the same."""


def check_language(source: str) -> None:
    """Raise ModelError where a language model is plainly not there; nothing is read."""
    path = Path(source)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"--language {source} has no config.json; a transformers model folder "
                             "was wanted")  # fmt: skip
        if not any(path.glob("*.safetensors")):
            raise ModelError(
                f"--language {source} has no *.safetensors; pickled weights (.bin) are refused: "
                "save the model again with save_pretrained"
            )
    elif path.exists():
        raise ModelError(f"--language {source} is a file; a transformers model folder was wanted")
    elif not is_hub_id(source):
        raise ModelError(
            f"--language {source} does not exist; a transformers model folder or a hub id like "
            "facebook/opt-2.7b was wanted"
        )


def language_config(source: str) -> Any:
    """The config. Raises ModelError where the model is not a decoder-only one."""
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ModelError(f"--language {source} cannot be read: {error}") from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or config.is_encoder_decoder:
        raise ModelError(
            f"--language {source} is a {config.model_type}; a decoder-only language model (OPT, "
            "Llama) was wanted"
        )
    return config


def load_language(source: str, dtype: torch.dtype | None) -> Any:
    """The network from safetensors, in its own dtype by default. Raises ModelError, also where a
    weight is no number in that dtype.
    """
    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype or "auto",
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they are told below, with their names
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"--language {source} cannot be loaded: {error}") from error
    network, loading = cast("tuple[Any, dict[str, Any]]", loaded)
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(map(str, loading[what])):
            raise ModelError(
                f"--language {source}: {len(names)} {what.replace('_', ' ')}, for instance "
                f"{names[0]}"
            )
    for name, weight in network.named_parameters():
        if not bool(weight.float().isfinite().all()):
            raise ModelError(
                f"--language {source}: {name} has NaN or infinity in {str(weight.dtype)[6:]}; if "
                "that is too small for it, give another --dtype"
            )
    return network.eval()


def end_at_line_feed(language: Any, tokenizer: Any) -> None:
    """BLIP-2 with OPT was trained to end an answer with a line feed, and LAVIS stops there: it, and
    not OPT's </s>, becomes the end token of generation, as in the released transformers folders.
    """
    ids = tokenizer("\n", add_special_tokens=False)["input_ids"]
    if len(ids) == 1:
        language.config.eos_token_id = ids[0]
        language.generation_config.eos_token_id = ids[0]


def build_processor(
    source: str, *, image_size: int, image_tokens: int, format: Format | None
) -> Any:
    """Image processor as in MMEdit (square, bicubic, CLIP's mean and deviation) and the language
    model's tokenizer with `<image>`. With a format, its chat template; Vicuna's has no BOS, and so
    the tokenizer adds none. Raises ModelError.
    """
    try:
        tokenizer = cast("Any", AutoTokenizer.from_pretrained(source))
    except (OSError, ValueError) as error:
        raise ModelError(f"--language {source} has no tokenizer that loads: {error}") from error
    if not tokenizer("a", add_special_tokens=False)["input_ids"]:  # made from nothing but its class
        raise ModelError(f"--language {source} has no tokenizer; its files go beside the weights")
    tokenizer.chat_template = None if format is None else TEMPLATES[format]
    if format == "vicuna":
        tokenizer.add_bos_token = False
        alone, added = (
            tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True)
        )
        if alone != added:
            raise ModelError(
                f"the tokenizer of --language {source} cannot be kept from adding special tokens: "
                f"{tokenizer.convert_ids_to_tokens(added)}; the format vicuna has none"
            )
    size = {"height": image_size, "width": image_size}
    processor = cast("Any", Blip2Processor)(
        BlipImageProcessorPil(size=size), tokenizer, num_query_tokens=image_tokens
    )
    processor.chat_template = tokenizer.chat_template
    return processor


def image_token_of(processor: Any, source: str, rows: int) -> int:
    """The id of `<image>`. Raises ModelError where it lies behind the embeddings' next row: the
    tokenizer is that of another model.
    """
    image_token = processor.tokenizer.convert_tokens_to_ids(processor.image_token.content)
    if image_token > rows:
        raise ModelError(
            f"the tokenizer of --language {source} has {image_token} tokens, its embeddings {rows} "
            "rows; the tokenizer that belongs to the model was wanted"
        )
    return image_token


def with_row_for(language: Any, image_token: int) -> bool:
    """Append a row of zeros to embeddings and head where `<image>` has none; True if so.

    Image features take the place of that row, so that its values never matter as input. As output
    its logit is 0, where a mean row's would compete with real answers: 0 is in front only where
    all other logits are negative.
    """
    rows = language.get_input_embeddings().weight.shape[0]
    if image_token < rows:
        return False
    language.resize_token_embeddings(image_token + 1, mean_resizing=False)
    with torch.no_grad():
        for layer in (language.get_input_embeddings(), language.get_output_embeddings()):
            layer.weight[rows:] = 0
    return True
