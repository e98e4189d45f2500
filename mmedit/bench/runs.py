"""A benchmark run in a directory: fit what must be fitted, measure every editor on every case,
continue where it stopped.

runs/x/manifest.json     what the run is: VLM, dataset, settings, versions
runs/x/records.jsonl     one line per edit
runs/x/editors/LABEL/    editors fitted for this run
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path

from mmedit.bench.protocol import BaseOutputs, NoEdit, evaluate, image_name
from mmedit.bench.records import (
    LEFT_OUT,
    MANIFEST,
    RECORDS,
    RUN,
    Record,
    RecordWriter,
    RunManifest,
    make_folder,
    read_manifest,
    write_manifest,
)
from mmedit.bench.speech import SpeechScorer, SpeechSettings
from mmedit.bench.tables import BASE
from mmedit.cases import EditCase
from mmedit.editors import Editor
from mmedit.errors import ConfigError, RunError
from mmedit.training import discard, seconds_spent
from mmedit.vlm import VLM

Report = Callable[[str, int, int, str], None]
"""Called with (what is being done, done, total, figures)."""


TrainingCases = Callable[[Callable[[int, int], None]], Sequence[EditCase]]
"""Reads the training cases, reporting (done, total). Called once at most, if an editor learns."""


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

    def __post_init__(self) -> None:
        if self.speech.wanted and not self.max_new_tokens:
            raise ConfigError(
                f"speech.{self.speech.wanted[0]} scores what is said freely, and nothing is to be "
                "generated: leave out --no-generate, or --set speech..."
            )

    def manifest(self, training_seconds: Mapping[str, float]) -> RunManifest:
        config: dict[str, object] = {
            RUN: {
                "batch_size": self.batch_size,
                "max_new_tokens": self.max_new_tokens,
                **self.speech.model_dump(mode="json", exclude_defaults=True),
                "overrides": list(self.overrides),
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
    kept. Raises RunError where it holds another run.
    """
    training_seconds = check_directory(plan, directory)
    speech = plan.speech.scorer()
    with RecordWriter(directory / RECORDS) as writer:
        write_manifest(directory, plan.manifest(training_seconds))
        editors: dict[str, Editor | NoEdit] = {BASE: NoEdit()}
        read = cache(
            lambda: training_cases(
                lambda done, total: report("reading training cases", done, total, "")
            )
        )
        for label, editor in plan.editors.items():
            editors[label] = _fitted(
                editor, label, directory, vlm, read, plan, training_seconds, report
            )
            write_manifest(directory, plan.manifest(training_seconds))
        base = BaseOutputs.of(vlm)
        records = {(record.editor, record.case_id): record for record in writer.earlier}
        for label, editor in editors.items():
            for record in _missing(plan, label, editor, vlm, cases, base, speech, records, report):
                writer.append(record)
                records[label, record.case_id] = record
    return [records[label, case.id] for label in editors for case in cases], training_seconds


def _missing(
    plan: Plan,
    label: str,
    editor: Editor | NoEdit,
    vlm: VLM,
    cases: Sequence[EditCase],
    base: BaseOutputs,
    speech: SpeechScorer,
    records: Mapping[tuple[str, str], Record],
    report: Report,
) -> Iterator[Record]:
    """Whole batches are measured again where any of their records is missing: so the batches, and
    with them the last digits, are those of an uninterrupted run.
    """
    missing = {case.id for case in cases if (label, case.id) not in records}
    starts = range(0, len(cases), plan.batch_size)
    batches = [cases[start : start + plan.batch_size] for start in starts]
    again = [case for batch in batches if missing & {c.id for c in batch} for case in batch]
    done = len(cases) - len(missing)
    for record in evaluate(
        vlm,
        editor,
        again,
        name=label,
        batch_size=plan.batch_size,
        seed=plan.seed,
        base=base,
        max_new_tokens=plan.max_new_tokens,
        speech=speech,
    ):
        if record.case_id in missing:
            done += 1
            yield record
            report(f"measuring {label}", done, len(cases), "")


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
    folder = directory / "editors" / label.lower()
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
    editor.save(folder)
    discard(folder)
    return editor


def check_directory(plan: Plan, directory: Path) -> dict[str, float]:
    """The training seconds noted in the directory, which must hold this very run or none: else
    RunError.
    """
    make_folder(directory)
    if not (directory / MANIFEST).exists():
        if (directory / RECORDS).exists():
            raise RunError(f"{directory} holds records without a {MANIFEST}; choose another --out")
        return {}
    earlier, now = read_manifest(directory), plan.manifest({})
    for name in ("vlm", "dataset", "limit", "seed", "editors", "config"):
        if getattr(earlier, name) != getattr(now, name):
            raise RunError(
                f"{directory} holds another run: its {name} is {getattr(earlier, name)!r}, here "
                f"{getattr(now, name)!r}. Choose another --out, or delete that folder."
            )
    return earlier.training_seconds


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
