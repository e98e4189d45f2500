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
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch

from mmedit.bench.base_outputs import BaseOutputs
from mmedit.bench.modes import (
    READ_MODE,
    Independent,
    Job,
    Mode,
    Past,
    Snapshot,
    jobs,
    records_in,
    require_sound,
)
from mmedit.bench.protocol import Meter, NoEdit, image_name
from mmedit.bench.records import (
    LEFT_OUT,
    MANIFEST,
    MODE,
    PACKED,
    RECORDS,
    RUN,
    Key,
    Record,
    RecordWriter,
    RunManifest,
    make_folder,
    read_manifest,
    write_manifest,
)
from mmedit.bench.speech import SpeechSettings
from mmedit.bench.states import STATE, States
from mmedit.bench.tables import BASE
from mmedit.cases import EditCase
from mmedit.editors import Editor
from mmedit.editors.base import dataset_hash
from mmedit.errors import ConfigError, RunError
from mmedit.folders import config_folder
from mmedit.training import (
    attempted,
    discard,
    from_main,
    gathered,
    number_of_processes,
    process_number,
    seconds_spent,
)
from mmedit.vlm import VLM

Report = Callable[[str, int, int, str], None]
"""Called with (what is being done, done, total, figures)."""


TrainingCases = Callable[[Callable[[int, int], None]], Sequence[EditCase]]
"""Reads the training cases, reporting (done, total). Called once at most, if an editor learns."""


class Fitted(NamedTuple):
    """An editor that a run has fitted, and how long that took."""

    folder: Path
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that decides what the records of a run say."""

    vlm_name: str
    dataset: str
    limit: int | None
    seed: int
    editors: Mapping[str, Editor]
    batch_size: int
    max_new_tokens: int
    command: str
    overrides: tuple[str, ...] = ()
    """What `--set` changed, of the VLM and the dataset too."""
    speech: SpeechSettings = field(default_factory=SpeechSettings)
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Records that are no cases, by reason."""
    mode: Mode = field(default_factory=Independent)
    fitted: Mapping[str, Fitted] = field(default_factory=dict)
    """Editors that another run has fitted on the same cases."""

    def __post_init__(self) -> None:
        if self.speech.wanted and not self.max_new_tokens:
            raise ConfigError(
                f"speech.{self.speech.wanted[0]} scores what is said freely, and nothing is to be "
                "generated: leave out --no-generate, or --set speech..."
            )

    def fitted_in(
        self, directory: Path, training_seconds: Mapping[str, float]
    ) -> dict[str, Fitted]:
        """The editors that this run has fitted, or taken from another one."""
        return {
            label: self.fitted.get(label) or Fitted(_editor_folder(directory, label), seconds)
            for label, seconds in training_seconds.items()
        }

    def manifest(
        self, training_seconds: Mapping[str, float], hashes: Mapping[str, str] | None = None
    ) -> RunManifest:
        """What is noted of the run."""
        config: dict[str, object] = {
            RUN: {
                "batch_size": self.batch_size,
                "max_new_tokens": self.max_new_tokens,
                **self.speech.model_dump(mode="json", exclude_defaults=True),
                "overrides": list(self.overrides),
                **({} if self.mode == Independent() else {MODE: self.mode.model_dump(mode="json")}),
                **({LEFT_OUT: dict(self.left_out)} if self.left_out else {}),
            }
        }
        for label, editor in self.editors.items():
            config[label] = editor.config.model_dump(mode="json")
        packages = ("mmedit", "torch", "transformers", "easy-vqa")
        return RunManifest(
            command=self.command,
            versions={
                "python": platform.python_version(),
                **{name: version(name) for name in packages},
            },
            vlm=self.vlm_name,
            dataset=self.dataset,
            limit=self.limit,
            seed=self.seed,
            editors=tuple(self.editors),
            config=config,
            training_seconds=dict(training_seconds),
            commit=_commit(),
            hashes=dict(hashes or {}),
        )


def run(
    plan: Plan,
    directory: Path,
    vlm: VLM,
    cases: Sequence[EditCase],
    training_cases: TrainingCases,
    *,
    report: Report,
) -> tuple[list[Record], dict[str, float]]:
    """All records of the run, the unedited model's first, and the seconds that each editor's fit
    took.

    A directory that already holds part of the same run is continued: records and fitted editors are
    kept. Raises RunError where it holds another run, or another process writes it. Must be called
    by all processes of `accelerate launch`; all of them get the records.
    """
    require_sound(plan.mode, len(cases))
    training_seconds = from_main(lambda: check_directory(plan, directory))
    hashes = from_main(lambda: _earlier_hashes(directory))
    _note(directory, hashes, {"vlm": vlm.identity.weights, "dataset": dataset_hash(cases)})
    speech = plan.speech.scorer()
    with ExitStack() as opened:
        writer = RecordWriter(directory / RECORDS)
        earlier = from_main(lambda: opened.enter_context(writer).earlier)
        known = {record.key: record for record in earlier}
        editors: dict[str, Editor | NoEdit] = {BASE: NoEdit()}
        read = cache(
            lambda: training_cases(
                lambda done, total: report("reading training cases", done, total, "")
            )
        )
        from_main(lambda: write_manifest(directory, plan.manifest(training_seconds, hashes)))
        for label, editor in plan.editors.items():
            editors[label] = fitted = _fitted(
                editor, label, directory, vlm, read, plan, training_seconds, report
            )
            _note(directory, hashes, _learnt_hash(label, fitted))
            from_main(lambda: write_manifest(directory, plan.manifest(training_seconds, hashes)))
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
                report(f"measuring {label}", done, total, "")
            from_main(states.discard)
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
            from_main(lambda found=group: states.save(found))
            continue
        made = attempted(lambda group=group: group[mine].run() if mine < len(group) else [])
        for record in (record for part in gathered(made) for record in part):
            if record.key not in known:
                from_main(lambda record=record: writer.append(record))
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
    report: Report,
) -> Editor:
    """The editor, fitted: as given, from an earlier part of this run, or now."""
    if not editor.needs_fit or editor.is_fitted:
        return editor
    if label in plan.fitted:
        training_seconds[label] = plan.fitted[label].seconds
        return type(editor).load(plan.fitted[label].folder)
    folder = _editor_folder(directory, label)
    if label in training_seconds and folder.is_dir():
        return type(editor).load(folder)
    cases = read_training_cases()
    begun = time.perf_counter() - seconds_spent(folder)
    editor.fit(
        vlm,
        cases,
        seed=plan.seed,
        report=lambda done, total, figures: report(f"fitting {label}", done, total, figures),
        folder=folder,
    )
    training_seconds[label] = time.perf_counter() - begun
    from_main(lambda: editor.save(folder))
    from_main(lambda: discard(folder))
    return editor


def _editor_folder(directory: Path, label: str) -> Path:
    return directory / "editors" / label.lower()


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


@cache
def _commit() -> str | None:
    """Of the checkout that mmedit lies in, with "+" where it was changed since."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        run = partial(subprocess.run, check=True, capture_output=True, text=True, timeout=10)
        if not run([*git, "ls-files", __file__]).stdout:
            return None  # installed into another project's checkout
        source = [".", str(config_folder())]
        changed = run([*git, "status", "--porcelain", "--untracked-files=no", *source]).stdout
        return run([*git, "rev-parse", "HEAD"]).stdout.strip() + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def save_images(cases: Sequence[EditCase], folder: Path) -> dict[str, Path]:
    """A file for every image of the cases, by its name in the records: images made in memory are
    written as PNG.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, Path] = {}
    for example in (e for case in cases for asked in case.probes.values() for e in asked):
        name = image_name(example)
        if name is None or example.image is None:
            continue
        if isinstance(example.image, Path):
            files[name] = example.image
        else:
            files[name] = folder / f"{name}.png"
            example.image.save(files[name])
    return files
