"""mmedit: edit knowledge in vision-language models, and measure what else changed.

The names below are imported when they are first used, as torch and transformers take seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmedit.bench.protocol import evaluate
    from mmedit.cases import EditCase, Example, Probe
    from mmedit.config import load_cases, load_editor, load_vlm
    from mmedit.metrics.multiclass_log_probs import multiclass_log_probs
    from mmedit.vlm.interface import VLM

_HOMES = {
    "EditCase": "mmedit.cases",
    "Example": "mmedit.cases",
    "Probe": "mmedit.cases",
    "VLM": "mmedit.vlm.interface",
    "evaluate": "mmedit.bench.protocol",
    "load_cases": "mmedit.config",
    "load_editor": "mmedit.config",
    "load_vlm": "mmedit.config",
    "multiclass_log_probs": "mmedit.metrics.multiclass_log_probs",
}

__all__ = [
    "VLM",
    "EditCase",
    "Example",
    "Probe",
    "evaluate",
    "load_cases",
    "load_editor",
    "load_vlm",
    "multiclass_log_probs",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'mmedit' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
