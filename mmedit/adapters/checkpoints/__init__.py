"""Original checkpoints of BLIP-2 and MiniGPT-4, as ordinary transformers folders.

LAVIS and MiniGPT-4 keep a vision tower, a Q-Former, a projection and a language model in files of
their own, under their own names. `convert` puts them together under transformers' names. Every
tensor of every source is used, or dropped for a reason that `conversion.json` tells; a missing,
extra or mis-shaped one is an error that names it. Only tensors are read (`weights_only=True`,
safetensors). User's view: docs/converting.md.
"""

from mmedit.adapters.checkpoints.account import Account, Conversion
from mmedit.adapters.checkpoints.conversion import DTYPES, FAMILIES, Options, convert
from mmedit.adapters.checkpoints.parts import Sources

__all__ = ["DTYPES", "FAMILIES", "Account", "Conversion", "Options", "Sources", "convert"]
