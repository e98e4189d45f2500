"""Costs of an edit: wall time and peak memory, on every device that the VLM's network is on."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Sequence

import torch

from mmedit.vlm.interface import VLM


def forget_peak_memory(devices: Sequence[torch.device]) -> None:
    """Start a new measurement of the peak memory of all GPUs."""
    for gpu in _gpus(devices):
        torch.cuda.reset_peak_memory_stats(gpu)


def peak_memory_bytes(devices: Sequence[torch.device]) -> int:
    """Return the peak memory in bytes: the sum of the GPUs' own peaks since the last start, of
    tensors; without a GPU, that of the whole process.
    """
    if gpus := _gpus(devices):
        return sum(torch.cuda.max_memory_allocated(gpu) for gpu in gpus)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def timed(make: Callable[[], VLM], devices: Sequence[torch.device]) -> tuple[VLM, float]:
    """Return what `make` gives, and the wall time that it took on all devices, in seconds."""
    _synchronize(devices)
    begun = time.perf_counter()
    made = make()
    _synchronize(devices)
    return made, time.perf_counter() - begun


def _synchronize(devices: Sequence[torch.device]) -> None:
    for gpu in _gpus(devices):
        torch.cuda.synchronize(gpu)


def _gpus(devices: Sequence[torch.device]) -> list[torch.device]:
    return [device for device in devices if device.type == "cuda"]
