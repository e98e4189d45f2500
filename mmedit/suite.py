"""Whole tables of runs: several editors on several VLMs, datasets and modes.

    block = Block(dataset="easyvqa", editors=("ft", "ike"), limit=20)
    [result] = run_suite({"vqa": block}, "runs/x")
    result.table

Every run leaves a folder with its records, `table.md`, `table.tex` and `report.html`; the same
call continues what was stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmedit.bench.continuation import earlier_manifest
from mmedit.bench.contradictions import OnContradiction, settle
from mmedit.bench.known import warn_of_another_vlm
from mmedit.bench.latency import require_enough
from mmedit.bench.modes import require_sound
from mmedit.bench.plan import Fitted, Plan
from mmedit.bench.run import run
from mmedit.cases import Cases, EditCase, image_name
from mmedit.config import (
    load_editors,
    load_generation,
    load_mode,
    load_vlm_file,
    load_vlm_of,
    read_cases,
    read_overrides,
    require_trainable,
)
from mmedit.config_checks import (
    named_blocks,
    require_consistent,
    require_number,
    require_published,
    require_used,
    require_uses,
)
from mmedit.config_files import MAX_BATCH, Block, VLMFile, require_names, smallest
from mmedit.errors import ConfigError
from mmedit.pages import BlockResult, comparison_of, write_block, write_suite_table
from mmedit.progress import Progress, by_itself, silent
from mmedit.records.notes import notes_of
from mmedit.records.schema import Record
from mmedit.records.store import RECORDS, read_manifest
from mmedit.report.run_tables import run_table
from mmedit.report.runs import measured_run
from mmedit.settings import MAX_SEED, Overrides
from mmedit.storage import require_path
from mmedit.vlm.interface import VLM


@dataclass(frozen=True)
class RunOptions:
    """Options that hold for all runs of a suite."""

    limit: int | None = None
    """Use at most this many cases; a block may use fewer."""
    train_limit: int | None = None
    """Editors learn from at most this many training cases; a block may use fewer."""
    batch_size: int | None = None
    """Separate edits per pass; None: the VLM's own number."""
    generate: bool = True
    """Let the VLM answer freely too."""
    overrides: Overrides = field(default_factory=Overrides)
    """Settings that come after those of the blocks."""
    seed: int = 0
    on_contradiction: OnContradiction | None = None
    """Treatment of probes that another edit of the run contradicts; None: what a block says."""
    latency: int = 0
    """Number of edits of each editor that are timed one at a time besides."""
    command: str = "mmedit.run_suite"
    """The command that started the runs, for their manifests."""

    def __post_init__(self) -> None:
        require_number("limit", self.limit, least=1)
        require_number("train_limit", self.train_limit, least=1)
        require_number("batch_size", self.batch_size, least=1, most=MAX_BATCH)
        require_number("seed", self.seed, least=0, most=MAX_SEED)
        if not isinstance(self.overrides, Overrides):  # texts, as --set takes them
            object.__setattr__(self, "overrides", read_overrides(self.overrides))


@dataclass(frozen=True)
class BlockPlan:
    """A block whose names, settings and files were checked, before anything costs time."""

    name: str
    block: Block
    folder: Path
    plan: Plan
    vlm_file: VLMFile
    cases: Sequence[EditCase]
    overrides: Overrides
    read: Cases
    """The cases as the dataset gives them, with those that contradict each other."""

    @property
    def title(self) -> str:
        """The title of the block, or its name."""
        return self.block.title or self.name

    @property
    def notes(self) -> list[str]:
        """Notes that a reader of the table needs besides its figures."""
        return notes_of(self.plan.manifest({}))

    @property
    def is_continued(self) -> bool:
        """Whether the folder already holds a part of this run."""
        return (self.folder / RECORDS).exists()

    @property
    def trainings(self) -> dict[str, tuple[Any, ...]]:
        """A key for the training of each editor, by label. Equal keys are trained once."""
        block, held_out = self.block, len(self.cases) if self.block.split == "validation" else 0
        changed = [str(self.overrides.of(part)) for part in ("vlm", "dataset")]
        shared = (block.vlm, block.dataset, *changed, self.plan.seed, block.train_limit, held_out)
        editors = self.plan.editors.items()
        return {label: (*shared, one.method, one.config.of_fit()) for label, one in editors}

    def training_cases(self, progress: Progress = silent, *, limit: int | None = None) -> Cases:
        """Read the training cases. Those with the id or the image of a validation case are left
        out of them.
        """
        read = read_cases(
            self.block.dataset, "train", self.overrides.of("dataset"),
            limit=smallest(self.block.train_limit, limit), seed=self.plan.seed, progress=progress,
        )  # fmt: skip
        if self.block.split == "test":
            return read
        ids = {case.id for case in self.cases}
        images = {image_name(case.request) for case in self.cases} - {None}
        return Cases(
            tuple(c for c in read if c.id not in ids and image_name(c.request) not in images),
            read.left_out,
        )


@dataclass(frozen=True)
class Reusable:
    """Parts that a later block takes over: the last VLM, and editors fitted on the same cases."""

    vlm_file: VLMFile | None = None
    vlm: VLM | None = None
    fitted: Mapping[tuple[Any, ...], Fitted] = field(default_factory=dict)


def run_suite(
    blocks: Mapping[str, Block],
    folder: str | Path,
    *,
    options: RunOptions | None = None,
    progress: Progress | None = None,
) -> list[BlockResult]:
    """Run every block in a folder of its name inside `folder`, and write `table.md` of all.

    All blocks are checked before the first one starts. Consecutive blocks share a VLM, and blocks
    with the same VLM, dataset and settings share fitted editors. Without a `progress`, bars are
    shown in a Jupyter notebook, and nothing elsewhere. Raises MmeditError.
    """
    require_path(folder)
    progress = progress or by_itself()
    plans = prepare_all(named_blocks(blocks), Path(folder), options or RunOptions())
    results, reusable = [], Reusable()
    for plan in plans:
        result, reusable = run_block(plan, reusable, progress=progress)
        results.append(result)
    write_suite_table(Path(folder), results)
    return results


def prepare_all(blocks: Mapping[str, Block], folder: Path, options: RunOptions) -> list[BlockPlan]:
    """Check all blocks of a suite. Raises MmeditError, also for a setting that no block uses."""
    require_uses(blocks.values(), options.overrides)
    return [prepare(name, block, folder / name, options) for name, block in blocks.items()]


def prepare(
    name: str, block: Block, folder: Path, options: RunOptions, *, cases: Cases | None = None
) -> BlockPlan:
    """Read and check everything that a block names. The VLM is not loaded. Raises MmeditError.

    `cases` are those of an earlier plan that differs in the settings of editors alone.
    """
    require_names(block)
    require_published(block)
    overrides = _overrides_of(block, options)
    vlm_file = load_vlm_file(block.vlm, overrides.of("vlm"))
    block = block.limited(options.limit, options.train_limit)
    editors = load_editors(block.editors, block.vlm, overrides)
    mode = load_mode(block.mode, overrides)
    if cases is None:
        read = (block.dataset, block.split, overrides.of("dataset"))
        cases = read_cases(*read, limit=block.limit, seed=options.seed)
    settled = settle(cases, mode, options.on_contradiction or block.on_contradiction)
    generation = load_generation(overrides)
    plan = Plan(
        vlm_name=block.vlm,
        dataset=block.dataset,
        split=block.split,
        limit=block.limit,
        seed=options.seed,
        editors=editors,
        batch_size=options.batch_size or vlm_file.batch_size,
        max_new_tokens=generation.max_new_tokens if options.generate else 0,
        command=options.command,
        overrides=overrides.written,
        generation=generation,
        read=len(cases) + sum(cases.left_out.values()),
        left_out=cases.left_out,
        contradictions=settled.counts,
        on_contradiction=settled.on_contradiction,
        mode=mode,
        latency=options.latency,
    )
    return _checked(BlockPlan(name, block, folder, plan, vlm_file, settled.cases, overrides, cases))


def _overrides_of(block: Block, options: RunOptions) -> Overrides:
    """Return the settings of a block, and over them those of all blocks. Raises ConfigError."""
    own = read_overrides(block.settings)
    require_used(own, block.editors, [block.mode])
    overrides = own | options.overrides
    require_consistent(overrides, options.batch_size, generate=options.generate)
    return overrides


def _checked(plan: BlockPlan) -> BlockPlan:
    """Return the plan, and make its folder. Raises an error if that holds another run, or if there
    are too few cases to measure or to train on: costs reading some training cases.
    """
    require_sound(plan.plan.mode, len(plan.cases))
    require_enough(plan.plan.latency, len(plan.cases))
    for editor in plan.plan.editors.values():
        require_trainable(editor, plan.block.dataset, plan.overrides)
    learns = any(one.needs_fit and not one.is_fitted for one in plan.plan.editors.values())
    held_out = plan.block.split == "validation"
    if learns and held_out and not plan.training_cases(limit=2 * len(plan.cases) + 1):
        raise ConfigError(
            f"the {len(plan.cases)} validation cases leave none of the training cases of "
            f"{plan.block.dataset} to train on; use a smaller limit"
        )
    earlier_manifest(plan.plan, plan.folder)
    return plan


def run_block(
    plan: BlockPlan, reusable: Reusable | None = None, *, progress: Progress = silent
) -> tuple[BlockResult, Reusable]:
    """Run a block, or continue it, and write its tables and its report.

    Returns the result, and what the next block can take over. Must be called by all processes of
    `accelerate launch`.
    """
    reusable = reusable or Reusable()
    vlm = load_vlm_for(plan, reusable, progress)
    warn_of_another_vlm(plan.overrides.of("dataset"), vlm)
    reusable = replace(reusable, vlm=vlm, vlm_file=plan.vlm_file)
    keys = plan.trainings
    known = {label: reusable.fitted[key] for label, key in keys.items() if key in reusable.fitted}
    bench = replace(plan.plan, fitted=known)
    records, seconds = run(
        bench, plan.folder, vlm, plan.cases, plan.training_cases, progress=progress
    )
    result = _result(plan, records, seconds)
    write_block(result, plan.cases)
    made = bench.fitted_in(plan.folder, seconds)
    made = {key: made[label] for label, key in keys.items() if label in made}
    return result, replace(reusable, fitted={**reusable.fitted, **made})


def load_vlm_for(plan: BlockPlan, reusable: Reusable, progress: Progress) -> VLM:
    """Return the VLM of a block: the one that can be taken over, else load it."""
    if reusable.vlm is not None and reusable.vlm_file == plan.vlm_file:
        return reusable.vlm
    progress("loading the VLM", 0, 1, "")
    vlm = load_vlm_of(plan.block.vlm, plan.vlm_file)
    progress("loading the VLM", 1, 1, "")
    return vlm


def _result(
    plan: BlockPlan, records: Sequence[Record], training_seconds: Mapping[str, float]
) -> BlockResult:
    manifest = read_manifest(plan.folder)
    manifest = manifest.model_copy(update={"training_seconds": dict(training_seconds)})
    measured = measured_run(records, manifest)
    table = run_table(measured)
    return BlockResult(
        name=plan.name,
        title=plan.title,
        folder=plan.folder,
        records=records,
        manifest=manifest,
        table=table,
        comparison=comparison_of(plan.block, table, measured.origins),
    )
