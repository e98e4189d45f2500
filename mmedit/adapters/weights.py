"""The weights of a network as it runs: on a device, offloaded by Accelerate, or quantised."""

from __future__ import annotations

import hashlib
from typing import cast

import torch
from accelerate.utils import align_module_device
from accelerate.utils.modeling import get_state_dict_offloaded_model
from jaxtyping import Float
from torch import Tensor, nn


def all_weights(network: nn.Module) -> dict[str, Tensor]:
    """The state dict, with what Accelerate has offloaded."""
    weights = network.state_dict()
    if not any(tensor.is_meta for tensor in weights.values()):
        return weights
    here = {name: tensor for name, tensor in weights.items() if not tensor.is_meta}
    return {**get_state_dict_offloaded_model(network), **here}  # the former lacks the root's own


def weights_hash(network: nn.Module) -> str:
    """32 hexadecimal digits that change when any weight does. Reads every one of them."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(all_weights(network).items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def weight_of(linear: nn.Linear) -> Float[Tensor, "out in"]:
    """A copy of a Linear's weight in float32: read back where it is offloaded, dequantised where
    bitsandbytes keeps it in 8 or 4 bits.
    """
    with align_module_device(linear):
        plain = linear.weight if type(linear) is nn.Linear else _dequantised(linear)
        return plain.detach().float().clone()


def _dequantised(linear: nn.Linear) -> Tensor:
    # Imports bitsandbytes, which has things to say; and only who quantised needs it.
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    weight = cast("nn.Parameter", linear.weight)
    return dequantize_bnb_weight(weight, state=getattr(linear, "state", None))


def keep_weights_in_place(network: nn.Module) -> None:
    """Keep bitsandbytes from packing 4-bit weights anew in the first forward on a CPU: unpacked,
    they are no longer what they were (bitsandbytes 0.50), and the packed ones have wrong gradients.
    """
    for module in network.modules():
        if "support_avx512bf16_for_cpu" in vars(module):
            vars(module)["support_avx512bf16_for_cpu"] = False
