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

from mmedit.adapters.checkpoint import require_no_adapter, require_sentencepiece
from mmedit.errors import ModelError
from mmedit.storage import is_hub_id

Format = Literal["vicuna", "llama2"]
STOP_STRINGS: dict[Format | None, tuple[str, ...]] = {"vicuna": ("###",)}
"""Texts that begin the next turn, for formats without an end token. An answer is cut there."""


def _template(before: str, after: str) -> str:
    """Return Jinja for a user's images and text between two texts, and for " " + an answer."""
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
"""Templates by format. They are the same with and without generation prompt."""


def check_language(source: str) -> None:
    """Raise ModelError if a language model does not exist. No weight is read."""
    path = Path(source)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(
                f"--language {source} has no config.json; expected a transformers model folder"
            )
        if not any(path.glob("*.safetensors")):
            raise ModelError(
                f"--language {source} has no *.safetensors; pickled weights (.bin) are refused: "
                "save the model again with save_pretrained"
            )
    elif path.exists():
        raise ModelError(f"--language {source} is a file; expected a transformers model folder")
    elif not is_hub_id(source):
        raise ModelError(
            f"--language {source} does not exist; expected a transformers model folder or a hub id "
            "like facebook/opt-2.7b"
        )


def language_config(source: str) -> Any:
    """Return the config.

    Raises ModelError if the model is not a decoder-only one, if its tokenizer needs packages that
    are not installed, or if an adapter lies beside its weights.
    """
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ModelError(f"--language {source} cannot be read: {error}") from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or config.is_encoder_decoder:
        raise ModelError(
            f"--language {source} is a {config.model_type}; expected a decoder-only language model "
            "(OPT, Llama)"
        )
    try:
        require_no_adapter(source)
        require_sentencepiece(Path(source))
    except ModelError as error:
        raise ModelError(f"--language {source} cannot be used: {error}") from error
    return config


def load_language(source: str, dtype: torch.dtype | None) -> Any:
    """Load the network from safetensors, in its own dtype by default.

    Raises ModelError, also if a weight is not finite in that dtype.
    """
    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype or "auto",
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # reported below, with their names
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"--language {source} cannot be loaded: {error}") from error
    network, loading = cast("tuple[Any, dict[str, Any]]", loaded)
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(map(str, loading[what])):
            raise ModelError(
                f"--language {source}: {len(names)} {what.replace('_', ' ')}, for example "
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
    """Make the line feed the end token of generation.

    BLIP-2 with OPT was trained to end an answer with a line feed and not with OPT's </s>; LAVIS and
    the released transformers folders stop there too.
    """
    ids = tokenizer("\n", add_special_tokens=False)["input_ids"]
    if len(ids) == 1:
        language.config.eos_token_id = ids[0]
        language.generation_config.eos_token_id = ids[0]


def build_processor(
    source: str, *, image_size: int, image_tokens: int, format: Format | None
) -> Any:
    """Return the processor: MMEdit's image processor and the language model's tokenizer.

    The image processor is square and bicubic, with CLIP's mean and deviation; `<image>` is added to
    the tokenizer. With a format it has a chat template; Vicuna's has no BOS, so the tokenizer adds
    none. Raises ModelError.
    """
    try:
        tokenizer = cast("Any", AutoTokenizer.from_pretrained(source))
    except (OSError, ValueError) as error:
        raise ModelError(f"--language {source} has no tokenizer that loads: {error}") from error
    if not tokenizer("a", add_special_tokens=False)["input_ids"]:  # made from nothing but its class
        raise ModelError(f"--language {source} has no tokenizer; put its files beside the weights")
    tokenizer.chat_template = None if format is None else TEMPLATES[format]
    if format == "vicuna":
        tokenizer.add_bos_token = False
        alone, added = (
            tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True)
        )
        if alone != added:
            raise ModelError(
                f"the tokenizer of --language {source} always adds special tokens: "
                f"{tokenizer.convert_ids_to_tokens(added)}; the format vicuna has none"
            )
    size = {"height": image_size, "width": image_size}
    processor = cast("Any", Blip2Processor)(
        BlipImageProcessorPil(size=size), tokenizer, num_query_tokens=image_tokens
    )
    processor.chat_template = tokenizer.chat_template
    return processor


def image_token_of(processor: Any, source: str, rows: int) -> int:
    """Return the id of `<image>`.

    Raises ModelError if it is beyond the row after the embeddings' last: the tokenizer is then that
    of another model.
    """
    image_token = processor.tokenizer.convert_tokens_to_ids(processor.image_token.content)
    if image_token > rows:
        raise ModelError(
            f"the tokenizer of --language {source} has {image_token} tokens, its embeddings {rows} "
            "rows; expected the tokenizer that belongs to the model"
        )
    return image_token


def with_row_for(language: Any, image_token: int) -> bool:
    """Append a row of zeros to embeddings and head if `<image>` has none. Return whether it did.

    Image features replace that row, so its values do not matter as input. As output its logit is 0,
    which wins only if all other logits are negative; the logit of a mean row would compete with
    real answers.
    """
    rows = language.get_input_embeddings().weight.shape[0]
    if image_token < rows:
        return False
    language.resize_token_embeddings(image_token + 1, mean_resizing=False)
    with torch.no_grad():
        for layer in (language.get_input_embeddings(), language.get_output_embeddings()):
            layer.weight[rows:] = 0
    return True
