"""Run folders as a run writes them, with given records."""

from __future__ import annotations

from pathlib import Path

from made_records import LOC, REL, asked, kept, record

from mmedit.records.schema import Record, RunManifest, RunSettings
from mmedit.records.store import RECORDS, RecordWriter, write_manifest

BATCH = {"kind": "batch", "k": 10}
SEQUENTIAL = {"kind": "sequential", "orders": 1}


def edits(editor, scores, *, seed=0):
    """One record per score, as exact match of the request and of an image-locality probe."""
    return [
        record(
            str(i),
            {REL: (asked(s, s, image=f"{i}.png"),), LOC: (kept(s, s),)},
            editor=editor,
            seed=seed,
        )
        for i, s in enumerate(scores)
    ]


def retested(editor, checkpoint, *, order=0, right=1.0, cases="abcdefgh"):
    """Return the records of a checkpoint of a sequence, of the first edits of an order."""
    return [
        record(case, {REL: (asked(right, right, image=f"{case}.png"),)}, editor=editor).model_copy(
            update={"test": "checkpoint", "edits": checkpoint, "place": place, "order": order}
        )
        for place, case in enumerate(cases[:checkpoint], start=1)
    ]


def write_run(folder: Path, *records: Record, training=(), mode=None, **manifest) -> Path:
    """Write records and a manifest that names their editors; `manifest` are other fields of it."""
    with RecordWriter(folder / RECORDS) as writer:
        for one in records:
            writer.append(one)
    named = dict.fromkeys(one.editor for one in records if one.editor != "base")
    fields = {
        "command": "mmedit bench", "versions": {}, "vlm": "vlm", "dataset": "data", "limit": None,
        "seed": 0, "editors": tuple(named), "config": {}, "training_seconds": dict(training),
        "run": RunSettings(**({"mode": mode} if mode else {})),
    }  # fmt: skip
    write_manifest(folder, RunManifest(**fields | manifest))
    return folder
