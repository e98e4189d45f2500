"""Imports of `mmedit` in processes of its own, done once for all of them (`processes.start`)."""

import accelerate.state
import torch.distributed
from transformers import AutoModelForImageTextToText, AutoProcessor

import mmedit.bench.run
import mmedit.cli
import mmedit.config
import mmedit.methods
import mmedit.suite
import mmedit.training.loop
import mmedit.vlm.loading

__all__ = ["AutoModelForImageTextToText", "AutoProcessor", "accelerate", "mmedit", "torch"]
