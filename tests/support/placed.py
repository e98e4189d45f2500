"""VLMs whose weights are in two places."""

from __future__ import annotations

from pathlib import Path

from mmedit.vlm.loading import load_vlm
from mmedit.vlm.network import NetworkVLM


def half_on_disk(folder: Path, offloaded: Path, whole: NetworkVLM) -> NetworkVLM:
    """Return the model of a folder with room in memory for half of it, the rest in `offloaded`."""
    size = sum(p.nbytes for p in whole.adapter.network.parameters())
    return load_vlm(
        folder, device_map="auto", max_memory={"cpu": size // 2}, offload_folder=offloaded
    )
