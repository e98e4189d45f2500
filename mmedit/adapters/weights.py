"""The weights of a network as it runs: on a device, offloaded by Accelerate, or quantised."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from accelerate.utils import align_module_device
from jaxtyping import Float
from torch import Tensor, nn

from mmedit.errors import ModelError


def all_weights(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Give every tensor of the state dict with its name, in the order of the names.

    A tensor that Accelerate has offloaded is read back when it is given, one module at a time.
    """
    for name, tensor in sorted(network.state_dict().items()):
        yield name, read_back(network, name) if tensor.is_meta else tensor


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
    """Return 32 hexadecimal digits that change when any weight does. Reads every weight.

    Raises ModelError if a weight that was offloaded when the network was loaded is not finite.
    """
    digest = hashlib.blake2b(digest_size=16)
    offloaded = {name for name, tensor in network.state_dict().items() if tensor.is_meta}
    for name, tensor in all_weights(network):
        if name in offloaded:
            require_finite({name: tensor})
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def require_finite(weights: Mapping[str, Tensor]) -> None:
    """Raise ModelError, which names them, if weights hold NaN or infinity.

    Reads every weight once where it is, without a copy, and waits once for each device. Offloaded
    weights are passed over: `weights_hash` checks these. So are 8-bit and 4-bit numbers, which
    cannot hold NaN.
    """
    if broken := not_finite(weights):
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        raise ModelError(
            f"{len(broken)} of its weights hold NaN or infinity: {', '.join(broken[:3])}{more}; "
            "expected finite numbers. Fetch or save the checkpoint again, or, if its numbers are "
            "too large for float16, load it with dtype=bfloat16"
        )


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors that hold NaN or infinity. One wait for each device."""
    checked = {
        name: tensor.detach()
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and tensor.numel() and not tensor.is_meta
    }
    by_device: dict[torch.device, list[str]] = {}
    for name, tensor in checked.items():
        by_device.setdefault(tensor.device, []).append(name)
    broken = []
    for names in by_device.values():
        sound = torch.stack([_is_finite(checked[name]) for name in names]).tolist()
        broken += [name for name, is_sound in zip(names, sound, strict=True) if not is_sound]
    return broken


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


def _is_finite(tensor: Tensor) -> Tensor:
    """Return whether all numbers are finite, on their device: NaN and infinity reach the ends."""
    wide = tensor if tensor.element_size() > 1 else tensor.float()  # float8 has no aminmax
    return torch.stack(torch.aminmax(wide)).isfinite().all()


def read_back(network: nn.Module, name: str) -> Tensor:
    """Return a copy of one tensor of the state dict, also if Accelerate has offloaded it."""
    path, _, own = name.rpartition(".")
    module = network.get_submodule(path)
    with align_module_device(module):
        tensor = getattr(module, own)
        if tensor.is_meta:
            raise ModelError(
                f"its weight {name} is offloaded and cannot be read back; load the VLM with more "
                "memory, or with another offload_folder"
            )
        return tensor.detach().clone()


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
