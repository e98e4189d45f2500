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
from typing import TYPE_CHECKING, Any

from mmedit.bench.continuation import earlier_manifest
from mmedit.bench.contradictions import OnContradiction, settle
from mmedit.bench.latency import require_enough
from mmedit.bench.modes import MODES, require_sound
from mmedit.bench.plan import Fitted, Plan
from mmedit.bench.run import run
from mmedit.cases import EditCase
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
from mmedit.config_files import MAX_BATCH, Block, VLMFile, require_names
from mmedit.pages import write_page
from mmedit.processes import is_main_process
from mmedit.progress import Progress, by_itself, silent
from mmedit.records.notes import notes_of
from mmedit.records.schema import Record, RunManifest
from mmedit.records.store import RECORDS, read_manifest
from mmedit.report.published import Comparison, compare_with_published, load_published
from mmedit.report.render import render
from mmedit.report.run_tables import run_table
from mmedit.report.runs import Origin, measured_run
from mmedit.settings import MAX_SEED, Overrides
from mmedit.storage import require_path, write_atomically
from mmedit.vlm.interface import VLM

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class RunOptions:
    """Options that hold for all runs of a suite."""

    limit: int | None = None
    """Use at most this many test cases; a block may use fewer."""
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
    def training_key(self) -> tuple[Any, ...]:
        """Blocks with the same key train their editors once."""
        changed = [text for text in self.overrides.written if text.partition(".")[0] not in MODES]
        return (self.block.vlm, self.block.dataset, self.plan.seed, tuple(changed))


@dataclass(frozen=True)
class BlockResult:
    """Measurements of one run."""

    name: str
    title: str
    folder: Path
    records: Sequence[Record]
    manifest: RunManifest
    table: pandas.DataFrame
    """The method table: a row per editor."""
    comparison: Comparison | None
    """The published values of the same methods, if the block names a published table."""


@dataclass(frozen=True)
class Reusable:
    """Parts that a later block takes over: the last VLM, and editors fitted on the same cases."""

    vlm_file: VLMFile | None = None
    vlm: VLM | None = None
    fitted: Mapping[tuple[Any, ...], Mapping[str, Fitted]] = field(default_factory=dict)


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


def prepare(name: str, block: Block, folder: Path, options: RunOptions) -> BlockPlan:
    """Read and check everything that a block names. The VLM is not loaded. Raises MmeditError."""
    require_names(block)
    own = read_overrides(block.settings)
    require_used(own, block.editors, [block.mode])
    require_published(block)
    overrides = own | options.overrides
    require_consistent(overrides, options.batch_size, generate=options.generate)
    vlm_file = load_vlm_file(block.vlm, overrides.of("vlm"))
    limit = min((n for n in (block.limit, options.limit) if n is not None), default=None)
    settings = overrides.of("dataset")
    editors = load_editors(block.editors, block.vlm, overrides)
    mode = load_mode(block.mode, overrides)
    cases = read_cases(block.dataset, "test", settings, limit=limit, seed=options.seed)
    settled = settle(cases, mode, options.on_contradiction or block.on_contradiction)
    require_sound(mode, len(settled.cases))
    require_enough(options.latency, len(settled.cases))
    for editor in editors.values():
        require_trainable(editor, block.dataset, overrides)
    generation = load_generation(overrides)
    plan = Plan(
        vlm_name=block.vlm,
        dataset=block.dataset,
        limit=limit,
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
    earlier_manifest(plan, folder)
    return BlockPlan(name, block, folder, plan, vlm_file, settled.cases, overrides)


def run_block(
    plan: BlockPlan, reusable: Reusable | None = None, *, progress: Progress = silent
) -> tuple[BlockResult, Reusable]:
    """Run a block, or continue it, and write its tables and its report.

    Returns the result, and what the next block can take over. Must be called by all processes of
    `accelerate launch`.
    """
    reusable = reusable or Reusable()
    vlm = reusable.vlm
    if vlm is None or reusable.vlm_file != plan.vlm_file:
        reusable = replace(reusable, vlm=None)  # one VLM in memory at a time
        progress("loading the VLM", 0, 1, "")
        vlm = load_vlm_of(plan.block.vlm, plan.vlm_file)
        progress("loading the VLM", 1, 1, "")
    fitted = reusable.fitted.get(plan.training_key, {})
    bench = replace(plan.plan, fitted=fitted)
    settings = plan.overrides.of("dataset")
    records, seconds = run(
        bench,
        plan.folder,
        vlm,
        plan.cases,
        lambda progress: read_cases(
            plan.block.dataset, "train", settings, seed=bench.seed, progress=progress
        ),
        progress=progress,
    )
    result = _result(plan, records, seconds)
    write_block(result, plan.cases)
    fitted = {**fitted, **bench.fitted_in(plan.folder, seconds)}
    return result, Reusable(plan.vlm_file, vlm, {**reusable.fitted, plan.training_key: fitted})


def write_block(result: BlockResult, cases: Sequence[EditCase]) -> None:
    """Write `table.md`, `table.tex` and `report.html` beside the records of a run."""
    if not is_main_process():
        return
    for name, format in (("table.md", "md"), ("table.tex", "latex")):
        content = render(result.table, format)
        write_atomically(result.folder / name, content.encode())
    write_page(result.folder, result.records, result.manifest, cases, title=result.title)


def write_suite_table(folder: Path, results: Sequence[BlockResult]) -> None:
    """Write the tables of all runs, with published values beside, to `table.md` in `folder`."""
    if is_main_process():
        sections = [f"## {r.title}\n\n{render(r.table, 'md', r.comparison)}" for r in results]
        write_atomically(folder / "table.md", "\n".join(sections).encode())


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
        comparison=_comparison(plan.block, table, measured.origins),
    )


def _comparison(
    block: Block, table: pandas.DataFrame, origins: Mapping[str, Origin]
) -> Comparison | None:
    if block.published is None:
        return None
    return compare_with_published(
        table,
        load_published(block.published),
        origins,
        model=block.published_model,
        dataset=block.published_dataset,
    )
