"""Original checkpoints of BLIP-2 and MiniGPT-4, as ordinary transformers folders.

LAVIS and MiniGPT-4 keep a vision tower, a Q-Former, a projection and a language model in separate
files, under their own names. `convert` puts them together under transformers' names. Every tensor
of every source is used, or dropped for a reason that `conversion.json` gives; a missing, extra or
mis-shaped tensor is an error that names it. Only tensors are read (`weights_only=True`,
safetensors). For users: docs/converting.md.
"""
