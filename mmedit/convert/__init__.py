"""Original checkpoints of BLIP-2 and MiniGPT-4, as ordinary transformers folders.

LAVIS and MiniGPT-4 keep a vision tower, a Q-Former, a projection and a language model in files of
their own, under their own names. `convert` puts them together under transformers' names. Every
tensor of every source is used, or dropped for a reason that `conversion.json` tells; a missing,
extra or mis-shaped one is an error that names it. Only tensors are read (`weights_only=True`,
safetensors). User's view: docs/converting.md.
"""
