"""What `mmedit bench` does with a block of a table: check everything, then measure, then write."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmedit.cli.console import err
from mmedit.cli.edit import load_vlm, training_cases_of
from mmedit.cli.progress import show_progress

if TYPE_CHECKING:
    import pandas

    from mmedit.bench.plan import Fitted, Plan
    from mmedit.cases import EditCase
    from mmedit.config import Block, VLMFile
    from mmedit.records.schema import Record
    from mmedit.report.published import Comparison


@dataclass(frozen=True)
class Common:
    """What the command line says of all blocks."""

    limit: int | None = None
    batch_size: int | None = None
    generate: bool = True
    overrides: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Prepared:
    """A block whose settings and files were found right, before anything costs time."""

    name: str
    block: Block
    folder: Path
    plan: Plan
    vlm_file: VLMFile
    cases: Sequence[EditCase]
    overrides: tuple[str, ...]

    @property
    def notes(self) -> list[str]:
        """What must be said before it begins, and under its table."""
        from mmedit.records.schema import notes_of

        return notes_of(self.plan.manifest({}))

    @property
    def trained_on(self) -> tuple[Any, ...]:
        """Blocks of which this is the same train their editors once."""
        from mmedit.bench.modes import MODES

        block, changed = self.block, [o for o in self.overrides if o.partition(".")[0] not in MODES]
        return (block.vlm, block.dataset, self.plan.seed, tuple(changed))


def prepared(name: str, block: Block, folder: Path, common: Common) -> Prepared:
    """Read and check everything that a block names. Raises MmeditError."""
    from mmedit.bench.modes import require_sound
    from mmedit.bench.plan import Plan
    from mmedit.bench.run import check_directory
    from mmedit.config import load_cases, load_editors, load_mode, load_speech, load_vlm_file
    from mmedit.datasets.annotated.cases import Cases

    overrides = (*block.settings, *common.overrides)
    vlm_file = load_vlm_file(block.vlm, overrides)
    limit = common.limit if block.limit is None else min(block.limit, common.limit or block.limit)
    editors = load_editors(block.editors, block.vlm, overrides)
    mode = load_mode(block.mode, overrides)
    cases = load_cases(block.dataset, "test", limit=limit, seed=common.seed, overrides=overrides)
    require_sound(mode, len(cases))
    plan = Plan(
        vlm_name=block.vlm,
        dataset=block.dataset,
        limit=limit,
        seed=common.seed,
        editors=editors,
        batch_size=common.batch_size or vlm_file.batch_size,
        max_new_tokens=vlm_file.max_new_tokens if common.generate else 0,
        command=" ".join(["mmedit", *sys.argv[1:]]),
        overrides=overrides,
        speech=load_speech(overrides),
        left_out=cases.left_out if isinstance(cases, Cases) else {},
        mode=mode,
    )
    check_directory(plan, folder)
    return Prepared(name, block, folder, plan, vlm_file, cases, overrides)


@dataclass(frozen=True)
class Done:
    """A block with its records."""

    prepared: Prepared
    records: Sequence[Record]
    training_seconds: Mapping[str, float]

    @property
    def title(self) -> str:
        """What the block is called among others."""
        return self.prepared.block.title or self.prepared.name

    def frame(self) -> pandas.DataFrame:
        """The table."""
        from mmedit.report.sequences import sequence_notes
        from mmedit.report.table import method_table

        return method_table(
            self.records,
            training_seconds=self.training_seconds or None,
            notes=[*self.prepared.notes, *sequence_notes(self.records)],
        )

    def beside(self, frame: pandas.DataFrame) -> Comparison | None:
        """The published values of the same methods, where the block names a paper. Raises DataError
        where that has none.
        """
        from mmedit.report.published import compare_with_published, load_published
        from mmedit.report.runs import Origin

        block = self.prepared.block
        if block.published is None:
            return None
        origins = {str(label): Origin(block.vlm, block.dataset) for label in frame.index}
        return compare_with_published(
            frame,
            load_published(block.published),
            origins,
            model=block.published_model,
            dataset=block.published_dataset,
        )

    def write(self, frame: pandas.DataFrame) -> None:
        """table.md and table.tex beside the records."""
        from mmedit.processes import is_main_process
        from mmedit.report.render import render
        from mmedit.storage import write_atomically

        if is_main_process():
            for name, format in (("table.md", "md"), ("table.tex", "latex")):
                write_atomically(self.prepared.folder / name, render(frame, format).encode())


def measured(runs: Iterable[Prepared]) -> Iterator[Done]:
    """Run one block after another. A VLM that follows itself is loaded once, and an editor that
    learns is trained once on the same cases.
    """
    from mmedit.bench.run import run
    from mmedit.records.store import RECORDS

    loaded: tuple[Any, Any] = (None, None)
    trained: dict[tuple[Any, ...], dict[str, Fitted]] = {}
    for one in runs:
        fitted = trained.setdefault(one.trained_on, {})
        plan = replace(one.plan, fitted=fitted)
        if (one.folder / RECORDS).exists():
            err.print(
                f"continuing the run in {one.folder}: what is finished there is kept, not measured "
                "again"
            )
        if loaded[0] != one.vlm_file:
            loaded = (one.vlm_file, load_vlm(one.vlm_file))
        cases = training_cases_of(one.block.dataset, None, plan.seed, one.overrides)
        with show_progress(err) as progress:
            records, seconds = run(plan, one.folder, loaded[1], one.cases, cases, progress=progress)
        fitted |= plan.fitted_in(one.folder, seconds)
        yield Done(one, records, seconds)
