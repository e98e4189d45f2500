"""Training for editors that learn: one outer loop, its checkpoints. It knows no method."""

from mmedit.training.checkpoints import Checkpoint, Checkpoints
from mmedit.training.loop import Learner, Report, TrainingConfig, batch_indices, silent, train

__all__ = [
    "Checkpoint",
    "Checkpoints",
    "Learner",
    "Report",
    "TrainingConfig",
    "batch_indices",
    "silent",
    "train",
]
