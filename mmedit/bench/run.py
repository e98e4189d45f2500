"""A benchmark run in a directory: fit what must be fitted, measure every editor on every case,
continue where it stopped. Under `accelerate launch` the processes share the jobs out; the main one
writes.

runs/x/manifest.json     what the run is: VLM, dataset, mode, settings, versions
runs/x/records.jsonl     one line per edit and test
runs/x/editors/LABEL/    editors fitted for this run
runs/x/state/            the deltas of a sequence under way
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import torch

from mmedit.bench.base_outputs import BaseOutputs
from mmedit.bench.jobs import Job, Past, together
from mmedit.bench.modes import READ_MODE, Batch, Mode, Sequential, require_sound
from mmedit.bench.plan import Plan, TrainingCases, editor_folder
from mmedit.bench.protocol import Applies, Meter, NoEdit
from mmedit.bench.sequential import SequenceOfEdits, sequences
from mmedit.bench.snapshots import STATE, Snapshot, States
from mmedit.cases import EditCase, dataset_hash
from mmedit.editors.base import Editor, Fitting
from mmedit.errors import RunError
from mmedit.processes import attempt, gather, number_of_processes, on_main, process_number
from mmedit.progress import Progress, named
from mmedit.records.schema import MODE, RUN, Key, Record
from mmedit.records.store import (
    MANIFEST,
    PACKED,
    RECORDS,
    RecordWriter,
    read_manifest,
    write_manifest,
)
from mmedit.report.scores import BASE
from mmedit.storage import make_folder
from mmedit.training.resume import discard, seconds_spent
from mmedit.vlm.interface import VLM


def run(
    plan: Plan,
    directory: Path,
    vlm: VLM,
    cases: Sequence[EditCase],
    training_cases: TrainingCases,
    *,
    progress: Progress,
) -> tuple[list[Record], dict[str, float]]:
    """All records of the run, the unedited model's first, and the seconds that each editor's fit
    took.

    A directory that already holds part of the same run is continued: records and fitted editors are
    kept. Raises RunError where it holds another run, or another process writes it. Must be called
    by all processes of `accelerate launch`; all of them get the records.
    """
    require_sound(plan.mode, len(cases))
    training_seconds = on_main(lambda: check_directory(plan, directory))
    hashes = on_main(lambda: _earlier_hashes(directory))
    _note(directory, hashes, {"vlm": vlm.identity.weights, "dataset": dataset_hash(cases)})
    speech = plan.speech.scorer()
    with ExitStack() as opened:
        writer = RecordWriter(directory / RECORDS)
        earlier = on_main(lambda: opened.enter_context(writer).earlier)
        known = {record.key: record for record in earlier}
        editors: dict[str, Editor | NoEdit] = {BASE: NoEdit()}
        read = cache(lambda: training_cases(named(progress, "reading training cases")))
        on_main(lambda: write_manifest(directory, plan.manifest(training_seconds, hashes)))
        for label, editor in plan.editors.items():
            editors[label] = fitted = _fitted(
                editor, label, directory, vlm, read, plan, training_seconds, progress
            )
            _note(directory, hashes, _learnt_hash(label, fitted))
            on_main(lambda: write_manifest(directory, plan.manifest(training_seconds, hashes)))
        base = BaseOutputs.of(vlm, cases=cases, rows=plan.batch_size)
        for label, editor in editors.items():
            meter = Meter(
                base,
                name=label,
                seed=plan.seed,
                rows=plan.batch_size,
                max_new_tokens=plan.max_new_tokens,
                speech=speech,
            )
            states = States(directory / STATE, label, vlm)
            items = jobs(plan.mode, meter, editor, cases, Past(known, states.restore))
            total = records_in(plan.mode, meter, editor, cases)
            done = sum(key.editor == label for key in known)
            for _ in _worked(items, known, writer, states):
                done += 1
                progress(f"measuring {label}", done, total, "")
            on_main(states.discard)
    order = {label: place for place, label in enumerate(editors)}
    return sorted(known.values(), key=lambda record: order[record.editor]), training_seconds


def _worked(
    items: Iterable[Job | Snapshot],
    known: dict[Key, Record],
    writer: RecordWriter,
    states: States,
) -> Iterator[Record]:
    """Runs what is missing, a job for each process at a time, and writes the records in the order
    of the jobs.

    Whole jobs are run again where any of their records is missing: so the batches, and with them
    the last digits, are those of an uninterrupted run.
    """
    mine = process_number()
    for group in _rounds(items, known, number_of_processes()):
        if isinstance(group, Snapshot):
            on_main(lambda found=group: states.save(found))
            continue
        made = attempt(lambda group=group: group[mine].run() if mine < len(group) else [])
        for record in (record for part in gather(made) for record in part):
            if record.key not in known:
                on_main(lambda record=record: writer.append(record))
                known[record.key] = record
                yield record


def _rounds(
    items: Iterable[Job | Snapshot], known: Mapping[Key, Record], processes: int
) -> Iterator[list[Job] | Snapshot]:
    """The jobs that lack a record, as many together as there are processes; all of them before the
    snapshot that follows them.
    """
    waiting: list[Job] = []
    for item in items:
        if isinstance(item, Job):
            waiting += [] if all(key in known for key in item.keys) else [item]
        if waiting and (isinstance(item, Snapshot) or len(waiting) == processes):
            yield waiting
            waiting = []
        if isinstance(item, Snapshot):
            yield item
    if waiting:
        yield waiting


def _fitted(
    editor: Editor,
    label: str,
    directory: Path,
    vlm: VLM,
    read_training_cases: Callable[[], Sequence[EditCase]],
    plan: Plan,
    training_seconds: dict[str, float],
    progress: Progress,
) -> Editor:
    """The editor, fitted: as given, from an earlier part of this run, or now."""
    if not editor.needs_fit or editor.is_fitted:
        return editor
    if label in plan.fitted:
        training_seconds[label] = plan.fitted[label].seconds
        return type(editor).load(plan.fitted[label].folder, label=editor.label)
    folder = editor_folder(directory, label)
    if label in training_seconds and folder.is_dir():
        return type(editor).load(folder, label=editor.label)
    cases = read_training_cases()
    begun = time.perf_counter() - seconds_spent(folder)
    fitting = Fitting(
        cases, seed=plan.seed, progress=named(progress, f"fitting {label}"), folder=folder
    )
    fitted = editor.fit(vlm, fitting)
    training_seconds[label] = time.perf_counter() - begun
    on_main(lambda: fitted.save(folder))
    on_main(lambda: discard(folder))
    return fitted


def check_directory(plan: Plan, directory: Path) -> dict[str, float]:
    """The training seconds noted in the directory, which must hold this very run or none: else
    RunError.
    """
    make_folder(directory)
    if not (directory / MANIFEST).exists():
        if (directory / RECORDS).exists():
            raise RunError(f"{directory} holds records without a {MANIFEST}; choose another --out")
        return {}
    if (directory / PACKED).exists() and not (directory / RECORDS).exists():
        raise RunError(
            f"{directory} holds packed records; to go on with that run, unpack them: "
            f"xz -d {directory / PACKED}"
        )
    earlier, now = read_manifest(directory), plan.manifest({})
    for name in ("vlm", "dataset", "limit", "seed", "editors", "config"):
        if _comparable(getattr(earlier, name)) != _comparable(getattr(now, name)):
            raise RunError(
                f"{directory} holds another run: its {name} is {getattr(earlier, name)!r}, here "
                f"{getattr(now, name)!r}. Choose another --out, or delete that folder."
            )
    return earlier.training_seconds


def _comparable(value: object) -> object:
    """A config with all settings of its mode: one that a later version added is as by default."""
    run = value.get(RUN) if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(run, dict) or MODE not in run:
        return value
    mode = READ_MODE.validate_python(run[MODE]).model_dump(mode="json")
    return value | {RUN: run | {MODE: mode}}


def _earlier_hashes(directory: Path) -> dict[str, str]:
    return dict(read_manifest(directory).hashes) if (directory / MANIFEST).exists() else {}


def _note(directory: Path, hashes: dict[str, str], found: Mapping[str, str]) -> None:
    """Add to the hashes. Raises RunError where there is another one of the name: the records in the
    directory are of other weights, cases or editors.
    """
    for name, value in found.items():
        if hashes.setdefault(name, value) != value:
            raise RunError(
                f"{directory} holds a run of another {name}, though of the same name: its hash is "
                f"{hashes[name]}, here {value}. Choose another --out, or delete that folder."
            )


def _learnt_hash(label: str, editor: Editor) -> dict[str, str]:
    """A hash of everything that an editor has learnt; nothing where it has learnt nothing."""
    tensors = editor.state()
    if not tensors:
        return {}
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        content = tensors[name].detach().cpu().contiguous().reshape(-1)
        digest.update(f"{name} {content.dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(content.view(torch.uint8).numpy().tobytes())
    return {label: digest.hexdigest()}


def jobs(
    mode: Mode, meter: Meter, editor: Applies, cases: Sequence[EditCase], past: Past
) -> Iterator[Job | Snapshot]:
    """All jobs of one editor. A sequence's edits are made while its jobs are drawn, from the last
    snapshot on, and not at all where nothing is missing.
    """
    if isinstance(mode, Sequential):
        yield from sequences(mode, meter, editor, cases, past)
    elif isinstance(mode, Batch):
        for start in range(0, len(cases), mode.k):
            yield together(meter, editor, cases[start : start + mode.k])
    else:
        for start in range(0, len(cases), meter.rows):
            chunk = cases[start : start + meter.rows]
            keys = tuple(Key(meter.name, 0, "edit", 1, case.id) for case in chunk)
            yield Job(keys, lambda chunk=chunk: meter.independent(editor, chunk))


def records_in(mode: Mode, meter: Meter, editor: Applies, cases: Sequence[EditCase]) -> int:
    """How many records the jobs make."""
    if not isinstance(mode, Sequential) or isinstance(editor, NoEdit):
        return len(cases)
    sequence = SequenceOfEdits(mode, meter, cases, 0, [])
    return mode.orders * sequence.tests
