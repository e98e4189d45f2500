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
from mmedit.training.processes import (
    attempted,
    from_main,
    gathered,
    is_main_process,
    leave,
    number_of_processes,
    process_number,
)
from mmedit.training.settings import TrainingConfig

__all__ = [
    "Checkpoint",
    "Checkpoints",
    "Learner",
    "Report",
    "TrainingConfig",
    "attempted",
    "batch_indices",
    "discard",
    "from_main",
    "gathered",
    "is_main_process",
    "leave",
    "number_of_processes",
    "process_number",
    "seconds_spent",
    "silent",
    "steps_done",
    "train",
]
