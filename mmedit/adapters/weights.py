"""The weights of a network as it runs: on a device, offloaded by Accelerate, or quantised."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, cast

import torch
from accelerate.utils import align_module_device
from accelerate.utils.modeling import get_state_dict_offloaded_model
from jaxtyping import Float
from torch import Tensor, nn


def all_weights(network: nn.Module) -> dict[str, Tensor]:
    """Return the state dict, with the weights that Accelerate has offloaded."""
    weights = network.state_dict()
    if not any(tensor.is_meta for tensor in weights.values()):
        return weights
    here = {name: tensor for name, tensor in weights.items() if not tensor.is_meta}
    return {**get_state_dict_offloaded_model(network), **here}  # the first lacks the root's own


def devices_of(network: nn.Module) -> tuple[torch.device, ...]:
    """Return the devices that the modules of a network run on.

    An offloaded module runs on the device that Accelerate brings its weights to.
    """
    held = (tensor.device for tensor in (*network.parameters(), *network.buffers()))
    hooks = (getattr(module, "_hf_hook", None) for module in network.modules())
    brought = (getattr(hook, "execution_device", None) for hook in hooks)
    run = [*held, *(_device(device) for device in brought if device is not None)]
    return tuple(dict.fromkeys(device for device in run if device.type != "meta"))


def _device(named: torch.device | str | int) -> torch.device:
    return torch.device("cuda", named) if isinstance(named, int) else torch.device(named)


def weights_hash(network: nn.Module) -> str:
    """Return 32 hexadecimal digits that change when any weight does. Reads every weight."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(all_weights(network).items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def config_hash(config: Any) -> str:
    """Return 32 hexadecimal digits that change when the config of a network does.

    It leaves out values that may differ for one and the same network: its folder, how its numbers
    are stored, and the version of transformers that wrote it.
    """
    text = json.dumps(_described(config.to_dict()), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def weight_of(linear: nn.Linear) -> Float[Tensor, "out in"]:
    """Return a copy of a Linear's weight in float32.

    An offloaded weight is read back; one that bitsandbytes keeps in 8 or 4 bits is dequantised.
    """
    with align_module_device(linear):
        plain = linear.weight if type(linear) is nn.Linear else _dequantised(linear)
        return plain.detach().float().clone()


def _dequantised(linear: nn.Linear) -> Tensor:
    # Imports bitsandbytes, which prints warnings and is needed for quantised weights alone.
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    weight = cast("nn.Parameter", linear.weight)
    return dequantize_bnb_weight(weight, state=getattr(linear, "state", None))


def keep_weights_in_place(network: nn.Module) -> None:
    """Keep bitsandbytes from packing 4-bit weights again in the first forward on a CPU.

    Unpacked, such weights differ from the original ones (bitsandbytes 0.50), and gradients through
    packed weights are wrong.
    """
    for module in network.modules():
        if "support_avx512bf16_for_cpu" in vars(module):
            vars(module)["support_avx512bf16_for_cpu"] = False


def _described(config: Mapping[Any, Any]) -> dict[str, Any]:
    left_out = {"_name_or_path", "name_or_path", "transformers_version", "dtype", "torch_dtype"}
    left_out |= {"quantization_config", "_attn_implementation_autoset"}
    return {
        str(key): _described(value) if isinstance(value, dict) else str(value)
        for key, value in config.items()
        if key not in left_out
    }
