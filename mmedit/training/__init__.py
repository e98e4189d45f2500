"""Training for editors that learn: one outer loop, its checkpoints. It knows no method."""

from mmedit.training.batches import batch_indices
from mmedit.training.checkpoints import (
    Checkpoint,
    Checkpoints,
    discard,
    seconds_spent,
    steps_done,
)
from mmedit.training.loop import Learner, Report, silent, train
from mmedit.training.processes import is_main_process, number_of_processes
from mmedit.training.settings import TrainingConfig

__all__ = [
    "Checkpoint",
    "Checkpoints",
    "Learner",
    "Report",
    "TrainingConfig",
    "batch_indices",
    "discard",
    "is_main_process",
    "number_of_processes",
    "seconds_spent",
    "silent",
    "steps_done",
    "train",
]
