"""The folder of a run, which a later command may continue or extend.

runs/x/manifest.json     how the records were made: VLM, dataset, mode, settings, versions
runs/x/records.jsonl     one line per edit and test
runs/x/editors/LABEL/    editors fitted for this run
runs/x/state/            the deltas of a sequence that is not finished
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from mmedit.bench.continuation import (
    continued,
    earlier_manifest,
    kept_length,
    require_same_content,
    require_same_hash,
)
from mmedit.bench.generation import (
    answer_length,
    examples_of,
    longest_answer,
    room_behind,
)
from mmedit.bench.plan import Plan, editor_folder
from mmedit.bench.snapshots import STATE, Snapshots
from mmedit.cases import EditCase, dataset_hash
from mmedit.editors.base import Editor
from mmedit.errors import RunError
from mmedit.processes import on_main
from mmedit.records.checks import require_of_run
from mmedit.records.schema import Key, Record, RunManifest
from mmedit.records.store import RECORDS, RecordWriter, write_manifest
from mmedit.vlm.interface import VLM


class RunFolder:
    """An open run folder: its manifest, its records and its fitted editors.

    Under `accelerate launch` the main process reads and writes, and all processes hold the same.
    """

    def __init__(
        self, directory: Path, manifest: RunManifest, writer: RecordWriter, known: Sequence[Record]
    ) -> None:
        self.directory = directory
        self.manifest = manifest
        self._writer = writer
        self._known = {record.key: record for record in known}
        self._write_manifest(manifest)

    @classmethod
    @contextmanager
    def open(
        cls, directory: Path, plan: Plan, vlm: VLM, cases: Sequence[EditCase]
    ) -> Iterator[RunFolder]:
        """Open the folder for the plan, new or with an earlier part of the same run.

        Raises RunError if it holds another run, or if another process writes it.
        """
        earlier = on_main(lambda: earlier_manifest(plan, directory))
        length = generation_length(plan, earlier, vlm, cases)
        plan = replace(plan, max_new_tokens=length)
        now = _manifest(plan, vlm, cases)
        if earlier is not None:
            require_same_content(directory, earlier, now, cases)
        with ExitStack() as opened:
            writer = RecordWriter(directory / RECORDS)
            known = on_main(lambda: opened.enter_context(writer).earlier)
            require_of_run(known, earlier or now, directory / RECORDS)
            yield cls(directory, continued(earlier, now, len(known)), writer, known)

    @property
    def known(self) -> Mapping[Key, Record]:
        """All records that are written so far, by key."""
        return self._known

    def add(self, records: Sequence[Record]) -> None:
        """Write records in one block. Raises RunError if they cannot be written."""
        on_main(lambda: self._writer.append(*records))
        self._known |= {record.key: record for record in records}

    def records(self, first: Sequence[str]) -> list[Record]:
        """Return all records: those of the editors in `first` in this order, then the others."""
        order = {label: place for place, label in enumerate(first)}
        return sorted(self._known.values(), key=lambda r: order.get(r.editor, len(order)))

    def fitted_editor(self, label: str) -> Path | None:
        """Return the folder of an editor that an earlier part of the run has fitted, if any."""
        folder = editor_folder(self.directory, label)
        return folder if label in self.manifest.training_seconds and folder.is_dir() else None

    def note_training(self, label: str, seconds: float) -> None:
        """Note in the manifest how long an editor's training took."""
        noted = {**self.manifest.training_seconds, label: seconds}
        self._write_manifest(self.manifest.model_copy(update={"training_seconds": noted}))

    def note_latency(self, label: str, seconds: float) -> None:
        """Note in the manifest how long one more edit took that was made by itself."""
        earlier = self.manifest.latencies
        noted = {**earlier, label: (*earlier.get(label, ()), seconds)}
        self._write_manifest(self.manifest.model_copy(update={"latencies": noted}))

    def note_learnt(self, label: str, editor: Editor) -> None:
        """Note a hash of all that an editor has learnt. Raises RunError if another one is noted."""
        learnt = _learnt_hash(editor)
        if learnt is None:
            return
        earlier = self.manifest.hashes.get(label, learnt)
        require_same_hash(self.directory, label, earlier, learnt)
        noted = {**self.manifest.hashes, label: learnt}
        self._write_manifest(self.manifest.model_copy(update={"hashes": noted}))

    def snapshots(self, label: str, vlm: VLM) -> Snapshots:
        """Return the snapshots of an editor's sequences."""
        return Snapshots(self.directory / STATE, label, vlm)

    def _write_manifest(self, manifest: RunManifest) -> None:
        on_main(lambda: write_manifest(self.directory, manifest))
        self.manifest = manifest


def generation_length(
    plan: Plan, earlier: RunManifest | None, vlm: VLM, cases: Sequence[EditCase]
) -> int:
    """Return the largest length of a generation: that of the plan, else that of the run that is
    continued, else what the accepted answers need.

    Raises RunError if the run that is continued leaves too little for an accepted answer.
    """
    kept = kept_length(plan, earlier)
    if kept is None:
        return answer_length(vlm, cases)
    if plan.max_new_tokens is not None:
        return kept
    examples = list(examples_of(cases))
    needed = longest_answer(vlm, examples)
    if needed > kept and room_behind(vlm, examples) > kept:
        raise RunError(
            f"the run has generations of at most {kept} tokens, and the longest accepted answer "
            f"now has {needed}. Choose another --out, or keep that length with --set "
            f"generation.max_new_tokens={kept}: longer answers are then cut off."
        )
    return kept


def _manifest(plan: Plan, vlm: VLM, cases: Sequence[EditCase]) -> RunManifest:
    """Return the manifest of a plan, with what is known once the VLM is loaded."""
    manifest = plan.manifest({})
    sites = {label: editor.edited_sites(vlm) for label, editor in plan.editors.items()}
    return manifest.model_copy(
        update={
            "cases": len(cases),
            "hashes": {"vlm": vlm.identity.hash, "dataset": dataset_hash(cases)},
            "sites": {label: names for label, names in sites.items() if names},
            "run": manifest.run.model_copy(update={"protocol": dict(vlm.protocol)}),
        }
    )


def _learnt_hash(editor: Editor) -> str | None:
    """Return a hash of everything that an editor has learnt; None if it has learnt nothing."""
    tensors = editor.state()
    if not tensors:
        return None
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        content = tensors[name].detach().cpu().contiguous().reshape(-1)
        digest.update(f"{name} {content.dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(content.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
