"""Seconds of edits that are made one at a time, as a user who has one edit waits for them.

The edits of a run are timed in batches, and a batch's seconds divided by its edits are less than
an edit by itself takes. These edits are not tested, and the manifest of the run holds their times.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmedit.bench.costs import timed
from mmedit.bench.folder import RunFolder
from mmedit.cases import EditCase, Example
from mmedit.editors.base import Editor
from mmedit.errors import ConfigError
from mmedit.processes import on_main
from mmedit.progress import Progress
from mmedit.vlm.interface import VLM


def require_enough(number: int, cases: int) -> None:
    """Raise ConfigError if more edits are to be timed than there are cases."""
    if not 0 <= number <= cases:
        raise ConfigError(
            f"--latency {number} times {number} edits one at a time, and the run has {cases} "
            f"cases; choose a number from 0 (none) to {cases}"
        )


def measure_latency(
    folder: RunFolder,
    label: str,
    editor: Editor,
    vlm: VLM,
    cases: Sequence[EditCase],
    progress: Progress,
) -> None:
    """Time one edit of the base model after another, of all cases that are not timed yet, and note
    the seconds in the manifest.

    One edit before them is not timed. The images are encoded before. Under `accelerate launch` the
    main process alone works. Costs one `apply` for each.
    """
    done = len(folder.manifest.latencies.get(label, ()))
    missing = [case.requests for case in cases[done:]]
    if not missing:
        return
    on_main(lambda: _seconds(editor, vlm, missing[0]))
    for requests in missing:
        progress(f"timing {label}", done, len(cases), "")
        seconds = on_main(lambda requests=requests: _seconds(editor, vlm, requests))
        folder.note_latency(label, seconds)
        done += 1
    progress(f"timing {label}", done, len(cases), "")


def _seconds(editor: Editor, vlm: VLM, requests: Sequence[Example]) -> float:
    vlm.frozen.image_features(requests)
    return timed(lambda: editor.apply(vlm, requests), vlm.devices)[1]
