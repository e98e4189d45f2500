"""Accelerate, set up for one training."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import imports as installed

from mmedit.errors import ConfigError
from mmedit.processes import number_of_processes
from mmedit.training.settings import TrainingConfig


def accelerator_for(
    config: TrainingConfig, device: torch.device, folder: Path | None
) -> Accelerator:
    """Accelerate, set up anew. Raises ConfigError where a tracker is not installed."""
    available = {
        "tensorboard": installed.is_tensorboard_available,
        "wandb": installed.is_wandb_available,
        "trackio": installed.is_trackio_available,
    }
    for tracker in config.trackers:
        if not available[tracker]():
            raise ConfigError(
                f"the tracker {tracker!r} is not installed: pip install {tracker}; or train "
                "without: --set editor.training.trackers=[]"
            )
    if "tensorboard" in config.trackers and folder is None:
        raise ConfigError("tensorboard writes into the training's folder; give one")
    # One process may train several editors, each with its own precision, and alone also device.
    AcceleratorState._reset_state(reset_partial_state=number_of_processes() == 1)
    return Accelerator(
        device_placement=False,  # the learner is made where the VLM is
        cpu=device.type == "cpu",
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.accumulate,
        log_with=list(config.trackers) or None,
        project_dir=folder,
    )


def cuda_devices() -> list[int]:
    """All GPUs, by number."""
    return list(range(torch.cuda.device_count()))
