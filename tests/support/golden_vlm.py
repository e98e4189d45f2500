"""A golden language model behind the real adapter: golden numbers run through the real code.

`tiny_opt` or `tiny_llama` (tests/golden/README.md) takes the place of the language model in a
BLIP-2 whose vision part is tiny and random. Texts are space-separated token ids, "5 7 9": an
`Example` carries golden ids as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import cast

import numpy as np
import torch
from golden_files import golden_files, read_golden_json
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    LlamaConfig,
    OPTConfig,
)

from mmedit.adapters.blip2 import Blip2Family, through_qformer
from mmedit.adapters.inputs import PaddingSide
from mmedit.adapters.seen import SeenImage
from mmedit.cases import Example
from mmedit.metrics.multiclass_log_probs import NOT_SCORED
from mmedit.vlm.interface import VLM
from mmedit.vlm.network import NetworkVLM

PAD = 1
"""The id at padding, which no mask lets through: also in place of tiny_llama's own, which is the
image placeholder.
"""
LANGUAGE = {"opt": OPTConfig, "llama": LlamaConfig}
IMAGE = 0
"""The image placeholder; golden texts, which have no image, may use it as any other id."""
PIXELS = 28
QUERIES = 2


class TokenIds:
    """A tokenizer whose words are token ids; every other word is one that is never looked at."""

    pad_token_id = PAD
    chat_template = None

    def __call__(self, texts: Sequence[str], *, add_special_tokens: bool) -> dict[str, list]:
        assert not add_special_tokens
        words = [text.split() for text in texts]
        return {"input_ids": [[int(w) if w.isdigit() else PAD for w in row] for row in words]}


def to_pixels(*, images: Sequence[Image.Image], return_tensors: str) -> dict[str, Tensor]:
    """An image processor: the size that the vision part takes, values from -1 to 1."""
    assert return_tensors == "pt"
    resized = [np.asarray(image.convert("RGB").resize((PIXELS, PIXELS))) for image in images]
    values = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)
    return {"pixel_values": values.float() / 127.5 - 1}


def golden_network(
    base: str = "tiny_opt", *, vision_seed: int = 0
) -> Blip2ForConditionalGeneration:
    """A BLIP-2 with a golden language model, frozen, in evaluation mode."""
    (config_file,) = golden_files(f"{base}/config.json")
    described = read_golden_json(config_file)
    described.pop("torch_dtype", None)
    language = LANGUAGE[described["model_type"]](**described)
    vision = Blip2VisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=PIXELS,
        patch_size=14,
    )
    qformer = Blip2QFormerConfig(
        vocab_size=4,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        encoder_hidden_size=16,
        cross_attention_frequency=1,
        max_position_embeddings=QUERIES,
    )
    config = Blip2Config(
        vision_config=vision,
        qformer_config=qformer,
        text_config=language,
        num_query_tokens=QUERIES,
        image_token_index=IMAGE,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(vision_seed)
        network = Blip2ForConditionalGeneration(config)
        for parameter in network.parameters():
            if parameter.ndim > 1:  # large enough that the image matters
                nn.init.normal_(parameter, std=0.3)
    tensors = load_file(config_file.with_name("model.safetensors"))
    if language.tie_word_embeddings:
        tensors["lm_head.weight"] = tensors["model.decoder.embed_tokens.weight"]
    network.language_model.load_state_dict(tensors)
    network.set_attn_implementation("eager")
    return network.eval().requires_grad_(False)


class GoldenAdapter(Blip2Family):
    """BLIP-2 whose texts without image may contain the placeholder's id as any other."""

    def bridge(self, vision: Sequence[Tensor], images: Sequence[SeenImage]) -> list[Tensor]:
        return through_qformer(self.network, vision)

    def _require_no_placeholder(self, ids: Sequence[Sequence[int]], example: Example) -> None:
        assert example.image is None or not any(IMAGE in tokens for tokens in ids)


def golden_vlm(
    network: Blip2ForConditionalGeneration | None = None,
    *,
    base: str = "tiny_opt",
    padding_side: PaddingSide = "right",
) -> NetworkVLM:
    """The VLM around a golden network, or around a changed copy of it."""
    processor = SimpleNamespace(tokenizer=TokenIds(), image_processor=to_pixels, chat_template=None)
    adapter = GoldenAdapter(network or golden_network(base), cast(Blip2Processor, processor))
    return NetworkVLM(adapter, padding_side=padding_side)


def site_of(parameter: str) -> str:
    """The site that a golden name stands for, `model.decoder.layers.1.fc1`, with `.weight` or
    without.
    """
    return f"language_model.{parameter.removesuffix('.weight')}"


def as_text(ids: Tensor | Sequence[int]) -> str:
    """Token ids as a text that `TokenIds` reads."""
    return " ".join(str(int(token)) for token in ids)


def examples_of(batch: Mapping[str, Tensor]) -> list[Example]:
    """The rows of a golden batch: `labels` say where the answer begins, it ends where the row does.

    A row without labels, which only a KL looks at, gets its last token as answer.
    """
    examples = []
    for ids, mask, labels in zip(
        batch["input_ids"], batch["attention_mask"].bool(), batch["labels"], strict=True
    ):
        ids, labels = ids[mask], labels[mask]
        first = next((t for t, label in enumerate(labels) if label != NOT_SCORED), len(ids) - 1)
        assert first == len(ids) - 1 or torch.equal(ids[first:], labels[first:])
        examples.append(Example(prompt=as_text(ids[:first]), target=as_text(ids[first:])))
    return examples


def logits_of(vlm: VLM, batch: Mapping[str, Tensor]) -> Tensor:
    """The logits at all attended positions of all rows [positions, vocab].

    `predict` gives the logits about a token, so every row gets one token more, for its last
    position's logits: what follows does not reach back.
    """
    rows = [ids[mask] for ids, mask in zip(*_ids_and_mask(batch), strict=True)]
    more = [Example(prompt=as_text(ids), target=as_text([PAD])) for ids in rows]
    logits = vlm.predict(more).logits
    return torch.cat([logits[row, 1 : len(ids) + 1] for row, ids in enumerate(rows)])


def attended(tensor: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """The attended positions of a golden [rows, tokens, width], or [rows * tokens, width]."""
    mask = batch["attention_mask"].bool()
    return tensor.reshape(*mask.shape, tensor.shape[-1])[mask]


def _ids_and_mask(batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    return batch["input_ids"], batch["attention_mask"].bool()
