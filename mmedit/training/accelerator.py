"""The Accelerator of a training."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import imports as installed

from mmedit.errors import ConfigError
from mmedit.processes import number_of_processes
from mmedit.training.settings import TrainingConfig


def require_trackers(config: TrainingConfig) -> None:
    """Raise ConfigError if a tracker is not installed."""
    available = {
        "tensorboard": installed.is_tensorboard_available,
        "wandb": installed.is_wandb_available,
        "trackio": installed.is_trackio_available,
    }
    for tracker in config.trackers:
        if not available[tracker]():
            raise ConfigError(
                f"the tracker {tracker!r} is not installed: pip install {tracker}; or train "
                "without it: --set editor.training.trackers=[]"
            )


def accelerator_for(
    config: TrainingConfig, device: torch.device, folder: Path | None
) -> Accelerator:
    """Return a new Accelerator for this training. Raises ConfigError if a tracker is missing."""
    require_trackers(config)
    if "tensorboard" in config.trackers and folder is None:
        raise ConfigError("tensorboard writes into the training's folder; name a folder")
    # A process may train several editors, each with its own precision. Without other processes,
    # each may also have its own device.
    AcceleratorState._reset_state(reset_partial_state=number_of_processes() == 1)
    return Accelerator(
        device_placement=False,  # the learner is made where the VLM is
        cpu=device.type == "cpu",
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.accumulate,
        log_with=list(config.trackers) or None,
        project_dir=folder,
    )


def autocast(config: TrainingConfig, device: torch.device) -> torch.autocast:
    """Return the precision that the Accelerator gives to the forwards of this training."""
    half = torch.float16 if config.mixed_precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=half, enabled=config.mixed_precision != "no")


def cuda_devices() -> list[int]:
    """Return the numbers of all GPUs."""
    return list(range(torch.cuda.device_count()))
