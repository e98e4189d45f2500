"""Wall time and peak memory are those of all devices of a network."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
import torch
from counted_vlm import CountedVLM
from torch import nn

from mmedit.adapters.weights import devices_of
from mmedit.bench.costs import forget_peak_memory, peak_memory_bytes, timed
from mmedit.vlm.interface import VLM
from mmedit.vlm.network import NetworkVLM

CPU, FIRST, SECOND = (torch.device(name) for name in ("cpu", "cuda:0", "cuda:1"))


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, torch.device]]:
    """Calls of torch's functions for GPUs, which are not there."""
    calls: list[tuple[str, torch.device]] = []
    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda gpu, name=name: calls.append((name, gpu)))
    peaks = {FIRST: 5, SECOND: 7}
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", peaks.__getitem__)
    return calls


def test_peak_memory_is_that_of_all_gpus_together(noted):
    forget_peak_memory((FIRST, CPU, SECOND))
    assert noted == [("reset_peak_memory_stats", FIRST), ("reset_peak_memory_stats", SECOND)]
    assert peak_memory_bytes((FIRST, CPU, SECOND)) == 12
    assert peak_memory_bytes((SECOND,)) == 7
    assert peak_memory_bytes((CPU,)) > 2**20  # the process's


def test_an_edit_is_timed_until_all_gpus_are_done(noted, tiny_vlm: NetworkVLM):
    def make() -> VLM:
        noted.append(("make", CPU))
        return tiny_vlm

    _, seconds = timed(make, (FIRST, SECOND, CPU))
    both = [("synchronize", FIRST), ("synchronize", SECOND)]
    assert noted == [*both, ("make", CPU), *both]
    assert seconds > 0


def test_devices_are_those_of_weights_and_of_offloaded_modules():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta"), nn.Linear(2, 2))
    hooks: list[object] = [SimpleNamespace(execution_device=1), SimpleNamespace()]
    for module, hook in zip(list(network)[1:], hooks, strict=True):
        module._hf_hook = cast(nn.Module, hook)
    assert devices_of(network) == (CPU, SECOND)


def test_an_edited_vlm_is_on_the_devices_of_the_one_inside(tiny_vlm: NetworkVLM):
    assert tiny_vlm.devices == CountedVLM(tiny_vlm).devices == (tiny_vlm.device,)
