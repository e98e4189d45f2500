"""What a test that starts `mmedit` in processes of its own needs, imported once for all of them."""

import accelerate.state
import torch.distributed
import transformers

import mmedit.bench.run
import mmedit.cli
import mmedit.config
import mmedit.methods
import mmedit.suite
import mmedit.training.loop
import mmedit.vlm.loading

transformers.AutoModelForImageTextToText, transformers.AutoProcessor  # imported when first asked for

__all__ = ["accelerate", "mmedit", "torch", "transformers"]
