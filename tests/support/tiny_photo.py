"""The parts of the VLM photo in small: a GGUF file, a tower's file, and what is trained."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import tiny
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import TimmWrapperModel
from transformers.models.timm_wrapper import TimmWrapperConfig

from mmedit.convert.photo import AROUND, INVERTED, REPEATS, SEPARABLE, PhotoParts

WIDTH, MIDDLE, LAYERS, RANK, ALPHA = 32, 64, 2, 4, 8.0
LINEARS = {
    "self_attn.q_proj": (WIDTH, WIDTH), "self_attn.k_proj": (WIDTH // 2, WIDTH),
    "self_attn.v_proj": (WIDTH // 2, WIDTH), "self_attn.o_proj": (WIDTH, WIDTH),
    "mlp.gate_proj": (MIDDLE, WIDTH), "mlp.up_proj": (MIDDLE, WIDTH),
    "mlp.down_proj": (WIDTH, MIDDLE),
}  # fmt: skip
"""Shape [out, in] of each Linear of a layer."""
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<reponame>")


def write_gguf(file: Path) -> None:
    """Write a random Llama of two layers with a byte-level tokenizer, its matrices in 4 bits."""
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import quantize
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = [*SPECIAL, *sorted(ByteLevel.alphabet()), "Ġa", "th"]
    writer = GGUFWriter(file, "llama")
    writer.add_name("tiny")
    writer.add_block_count(LAYERS)
    writer.add_context_length(256)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(MIDDLE)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    writer.add_token_merges(["Ġ a", "t h"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    rng, four_bits = np.random.default_rng(0), GGMLQuantizationType.Q4_1

    def add(name: str, *shape: int) -> None:
        values = rng.normal(size=shape).astype(np.float32)
        if name.startswith("blk") and len(shape) == 2:
            writer.add_tensor(name, quantize(values, four_bits), raw_dtype=four_bits)
        else:
            writer.add_tensor(name, values)

    add("token_embd.weight", len(tokens), WIDTH)
    add("output_norm.weight", WIDTH)
    named = dict(zip(LINEARS, ("q", "k", "v", "output", "gate", "up", "down"), strict=True))
    for layer in range(LAYERS):
        for name, short in named.items():
            group = "attn" if name.startswith("self_attn") else "ffn"
            add(f"blk.{layer}.{group}_{short}.weight", *LINEARS[name])
        add(f"blk.{layer}.attn_norm.weight", WIDTH)
        add(f"blk.{layer}.ffn_norm.weight", WIDTH)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def released_tower() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return a random tower's weights by the released file's names, and by timm's."""
    torch.manual_seed(0)
    config = TimmWrapperConfig(architecture="tf_efficientnet_lite0", do_pooling=False)
    state = TimmWrapperModel(config).timm_model.state_dict()
    around = {timm: name for name, timm in AROUND.items()}
    released = {"_fc.weight": torch.zeros(2, 1280), "_fc.bias": torch.zeros(2)}
    for name, tensor in state.items():
        if not name.startswith("blocks."):
            module, _, kind = name.partition(".")
            released[f"{around[module]}.{kind}"] = tensor
            continue
        _, stage, i, module, kind = name.split(".")
        names = INVERTED if int(stage) else SEPARABLE
        number = sum(REPEATS[: int(stage)]) + int(i)
        module = next(key for key, timm in names.items() if timm == module)
        released[f"_blocks.{number}.{module}.{kind}"] = tensor
    return released, state


def trained_tensors() -> dict[str, Tensor]:
    """Return a random projector and LoRA, as the training writes them."""
    torch.manual_seed(1)
    shapes = {
        "projector.linear_1.weight": (WIDTH, 1280), "projector.linear_1.bias": (WIDTH,),
        "projector.linear_2.weight": (WIDTH, WIDTH), "projector.linear_2.bias": (WIDTH,),
    }  # fmt: skip
    for layer in range(LAYERS):
        for name, (out, into) in LINEARS.items():
            shapes[f"lora.layers.{layer}.{name}.A"] = (RANK, into)
            shapes[f"lora.layers.{layer}.{name}.B"] = (out, RANK)
    return {name: torch.randn(shape).half() for name, shape in shapes.items()}


def write_trained(file: Path, tensors: dict[str, Tensor], **metadata: str) -> Path:
    save_file(tensors, file, metadata={"alpha": str(ALPHA), **metadata})
    return file


def write_parts(folder: Path) -> PhotoParts:
    """Write the three files, with a photograph and a question whose answer is not known yet."""
    folder.mkdir(parents=True, exist_ok=True)
    write_gguf(folder / "language.gguf")
    torch.save(released_tower()[0], folder / "tower.pth")
    write_trained(folder / "trained.safetensors", trained_tensors())
    tiny.random_image(0).save(folder / "sample.jpg")
    return PhotoParts(
        language=folder / "language.gguf",
        tower=folder / "tower.pth",
        trained=folder / "trained.safetensors",
    )


def write_known_answer(folder: Path, answer: str) -> None:
    known = {"image": "sample.jpg", "prompt": "What is this?", "answer": answer}
    (folder / "known_answer.json").write_text(json.dumps(known))
