"""A benchmark run in a folder: fit what must be fitted, then measure every editor on every case.

Under `accelerate launch` the processes share the jobs, and the main one writes the records in the
order of the jobs. A run that was stopped resumes by skipping the jobs whose records are all there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from mmedit.bench.base_outputs import BaseOutputs, require_finite
from mmedit.bench.folder import RunFolder
from mmedit.bench.jobs import Job, Past, joint_jobs, separate_jobs
from mmedit.bench.latency import measure_latency, require_enough
from mmedit.bench.modes import Batch, Mode, Sequential, require_sound
from mmedit.bench.plan import Plan, TrainingCases, editor_folder
from mmedit.bench.protocol import Meter, NoEdit
from mmedit.bench.rows import require_sound_rows
from mmedit.bench.scoring import OWN_ANSWER_TOKENS
from mmedit.bench.sequential import Schedule, sequential_jobs
from mmedit.bench.snapshots import Snapshot, Snapshots
from mmedit.cases import OWN_ANSWER, EditCase, Probe, require_distinct_ids
from mmedit.editors.base import Editor
from mmedit.editors.fitting import Fitting, progress_of
from mmedit.processes import attempt, gather, number_of_processes, on_main, process_number
from mmedit.progress import Progress, named
from mmedit.records.schema import BASE, Key, Record
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
    """Return all records of the run folder, the base model's first, and the seconds that the fit of
    each editor took.

    A folder with an earlier part of the same run is continued: its records and fitted editors are
    kept. Must be called by all processes of `accelerate launch`; all of them get the records.
    Raises RunError if the folder holds another run or another process writes it. Raises, before
    anything is measured, SiteError or EditorError if an editor does not fit the VLM, ModelError if
    the VLM's outputs are not finite, and DataError if the VLM cannot be asked a row.
    """
    _require_measurable(plan, vlm, cases, progress)
    scorer = plan.generation.scorer()
    with RunFolder.open(directory, plan, vlm, cases) as folder:
        fitted = _fit_all(plan, folder, vlm, training_cases, progress)
        editors: dict[str, Editor] = {BASE: NoEdit(), **fitted}
        meter = Meter(
            BaseOutputs(vlm),
            name=BASE,
            seed=plan.seed,
            batch_size=plan.batch_size,
            max_new_tokens=folder.manifest.run.max_new_tokens or 0,
            scorer=scorer,
        )
        for label, editor in editors.items():
            measure_editor(folder, plan.mode, replace(meter, name=label), editor, cases, progress)
            if label != BASE:
                measure_latency(folder, label, editor, vlm, cases[: plan.latency], progress)
        return folder.records(list(editors)), dict(folder.manifest.training_seconds)


def _require_measurable(
    plan: Plan, vlm: VLM, cases: Sequence[EditCase], progress: Progress
) -> None:
    """Raise an error for a plan that cannot be measured, before it costs anything."""
    require_sound(plan.mode, len(cases))
    require_enough(plan.latency, len(cases))
    require_distinct_ids(cases)
    for editor in plan.editors.values():
        editor.require_fits(vlm)
    room = _new_tokens(plan)
    require_sound_rows(vlm, cases, new_tokens=room, progress=progress)
    require_finite(vlm, cases[0].request)


def _new_tokens(plan: Plan) -> dict[Probe, int]:
    """Return the room that the generations of every probe need, in tokens: as the plan says, else
    one, as a length that follows from the answers ends where there is no room. Fluency continues
    the requests. Without generations, some probes need the base model's own answer.
    """
    tokens = 1 if plan.max_new_tokens is None else plan.max_new_tokens
    if not tokens:
        return dict.fromkeys(OWN_ANSWER, OWN_ANSWER_TOKENS)
    room = dict.fromkeys(Probe, tokens)
    return room | {Probe.RELIABILITY: max(tokens, plan.generation.fluency_tokens)}


def _fit_all(
    plan: Plan, folder: RunFolder, vlm: VLM, training_cases: TrainingCases, progress: Progress
) -> dict[str, Editor]:
    """Return the plan's editors, each one fitted. The training cases are read and checked once at
    most.
    """

    @cache
    def read() -> Sequence[EditCase]:
        cases = training_cases(named(progress, "reading training cases"))
        require_sound_rows(vlm, cases, progress=named(progress, "checking training cases"))
        return cases

    editors = {}
    for label in plan.editors:
        editors[label] = _fitted(plan, folder, label, vlm, read, progress)
        folder.note_learnt(label, editors[label])
    return editors


def _fitted(
    plan: Plan,
    folder: RunFolder,
    label: str,
    vlm: VLM,
    read_training_cases: Callable[[], Sequence[EditCase]],
    progress: Progress,
) -> Editor:
    """Return an editor as it is, fitted by an earlier part of this run or by another, or fit it."""
    editor = plan.editors[label]
    if not editor.needs_fit or editor.is_fitted:
        return editor
    if label in plan.fitted:
        folder.note_training(label, plan.fitted[label].seconds)
        learnt = type(editor).load(plan.fitted[label].folder)  # settings `after_fit` may differ
        return editor.load_state(learnt.state(), learnt.notes(), learnt.origin)
    earlier = folder.fitted_editor(label)
    if earlier is not None:
        return type(editor).load(earlier, label=editor.label)
    place = editor_folder(folder.directory, label)
    cases = read_training_cases()
    begun = time.perf_counter() - seconds_spent(place)
    named_progress = progress_of(label, progress)
    fitted = editor.fit(vlm, Fitting(cases, seed=plan.seed, progress=named_progress, folder=place))
    seconds = time.perf_counter() - begun
    on_main(lambda: fitted.save(place))
    on_main(lambda: discard(place))
    folder.note_training(label, seconds)
    return fitted


def measure_editor(
    folder: RunFolder,
    mode: Mode,
    meter: Meter,
    editor: Editor,
    cases: Sequence[EditCase],
    progress: Progress,
) -> None:
    """Measure what is missing of one editor's records, and write them."""
    snapshots = folder.snapshots(meter.name, meter.vlm)
    items = jobs(mode, meter, editor, cases, Past(folder.known, snapshots.restore))
    total = number_of_records(mode, meter, editor, cases)
    done = sum(key.editor == meter.name for key in folder.known)
    progress(f"measuring {meter.name}", done, total, "")
    for records in missing_records(items, folder.known, snapshots):
        folder.add(records)
        done += len(records)
        progress(f"measuring {meter.name}", done, total, "")
    on_main(snapshots.discard)


def jobs(
    mode: Mode, meter: Meter, editor: Editor, cases: Sequence[EditCase], past: Past
) -> Iterator[Job | Snapshot]:
    """Return the jobs of one editor in a mode, in order."""
    if isinstance(mode, Sequential):
        return sequential_jobs(mode, meter, editor, cases, past)
    if isinstance(mode, Batch):
        return joint_jobs(meter, editor, cases, mode.k)
    return separate_jobs(meter, editor, cases)


def number_of_records(mode: Mode, meter: Meter, editor: Editor, cases: Sequence[EditCase]) -> int:
    """Return how many records the jobs of one editor give."""
    if not isinstance(mode, Sequential) or isinstance(editor, NoEdit):
        return len(cases)
    return mode.orders * Schedule(mode, cases, meter.batch_size).size


def missing_records(
    items: Iterable[Job | Snapshot], known: Mapping[Key, Record], snapshots: Snapshots
) -> Iterator[list[Record]]:
    """Run the jobs that lack a record, one per process at a time; yield, after each time, the
    records that are not known, in the order of the jobs, and save the snapshots.

    A job runs as a whole even if only some of its records are missing: so the batches, and with
    them the last digits, are those of an uninterrupted run.
    """
    mine = process_number()
    for group in _rounds(items, known, number_of_processes()):
        if isinstance(group, Snapshot):
            on_main(lambda found=group: snapshots.save(found))
            continue
        made = attempt(lambda group=group: group[mine].run() if mine < len(group) else [])
        yield [record for part in gather(made) for record in part if record.key not in known]


def _rounds(
    items: Iterable[Job | Snapshot], known: Mapping[Key, Record], processes: int
) -> Iterator[list[Job] | Snapshot]:
    """Yield the jobs that lack a record, one per process together, and each snapshot after all jobs
    before it.
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
