"""mmedit: edit knowledge in vision-language models, and measure what else changed.

    vlm = load_vlm("embedded")
    editor = load_editor("ft", vlm, steps=20)
    records = list(evaluate(vlm, editor, load_cases("easyvqa", "test", limit=10)))

The names below are imported when they are first used, because torch and transformers take seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmedit.bench.protocol import evaluate
    from mmedit.cases import EditCase, Example, Probe
    from mmedit.config import load_cases, load_editor, load_vlm
    from mmedit.config_files import Block
    from mmedit.editors.base import Editor
    from mmedit.edits.loading import load_edit
    from mmedit.metrics.multiclass_log_probs import multiclass_log_probs
    from mmedit.records.store import read_records
    from mmedit.report.table import method_table
    from mmedit.suite import RunOptions, run_suite
    from mmedit.trace.run import run_trace
    from mmedit.trace.settings import TraceSettings
    from mmedit.trace.summary import read_trace
    from mmedit.tune.search import run_search
    from mmedit.vlm.edit import Edit
    from mmedit.vlm.interface import VLM

    __version__: str

_HOMES = {
    "Block": "mmedit.config_files",
    "Edit": "mmedit.vlm.edit",
    "EditCase": "mmedit.cases",
    "Editor": "mmedit.editors.base",
    "Example": "mmedit.cases",
    "Probe": "mmedit.cases",
    "RunOptions": "mmedit.suite",
    "TraceSettings": "mmedit.trace.settings",
    "VLM": "mmedit.vlm.interface",
    "evaluate": "mmedit.bench.protocol",
    "load_cases": "mmedit.config",
    "load_edit": "mmedit.edits.loading",
    "load_editor": "mmedit.config",
    "load_vlm": "mmedit.config",
    "method_table": "mmedit.report.table",
    "multiclass_log_probs": "mmedit.metrics.multiclass_log_probs",
    "read_records": "mmedit.records.store",
    "read_trace": "mmedit.trace.summary",
    "run_search": "mmedit.tune.search",
    "run_suite": "mmedit.suite",
    "run_trace": "mmedit.trace.run",
}

__all__ = [
    "VLM",
    "Block",
    "Edit",
    "EditCase",
    "Editor",
    "Example",
    "Probe",
    "RunOptions",
    "TraceSettings",
    "__version__",
    "evaluate",
    "load_cases",
    "load_edit",
    "load_editor",
    "load_vlm",
    "method_table",
    "multiclass_log_probs",
    "read_records",
    "read_trace",
    "run_search",
    "run_suite",
    "run_trace",
]


def __getattr__(name: str) -> object:
    if name == "__version__":
        return import_module("importlib.metadata").version("mmedit")
    if name not in _HOMES:
        raise AttributeError(f"module 'mmedit' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """Return the public names, for completion with the Tab key."""
    return __all__
