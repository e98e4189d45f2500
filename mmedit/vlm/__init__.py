"""A vision-language model as a value: a frozen network, the adapter that speaks to it, and the
edits it carries as deltas.

Axes in all public signatures: `batch` rows of a call; `text` prompt and answer tokens after the
image; `sequence` tokens as the network sees them (image placeholders, context, text, padding);
`vocab`; `in`, `out` widths of a Linear; `edits` separate edits, one per row; `rank` of a low-rank
delta.
"""

from mmedit.vlm.frozen import Frozen
from mmedit.vlm.interface import VLM, Captured, Identity, Predictions, WrappedVLM, reached
from mmedit.vlm.loading import BUILT_IN, DeviceMap, Quantization, load_vlm, resolve_vlm
from mmedit.vlm.network import NetworkVLM

__all__ = [
    "BUILT_IN",
    "VLM",
    "Captured",
    "DeviceMap",
    "Frozen",
    "Identity",
    "NetworkVLM",
    "Predictions",
    "Quantization",
    "WrappedVLM",
    "load_vlm",
    "reached",
    "resolve_vlm",
]
