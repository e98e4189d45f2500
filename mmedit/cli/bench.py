"""Benchmark runs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from rich.markup import escape

from mmedit.cli.bench_options import (
    BatchSizeOption,
    BlockOption,
    ContradictionOption,
    DatasetOption,
    EditorOption,
    GenerateOption,
    LatencyOption,
    LimitOption,
    ModeOption,
    OutOption,
    TableArgument,
    TrainLimitOption,
    VlmOption,
)
from mmedit.cli.console import SeedOption, SetOption, app, err, examples, one_of, out, say
from mmedit.cli.progress import show_progress
from mmedit.errors import ConfigError

if TYPE_CHECKING:  # suite imports torch
    from mmedit.bench.contradictions import OnContradiction
    from mmedit.config_files import Block
    from mmedit.suite import BlockPlan, BlockResult

Blocks = dict[str, "Block"]
"""The runs of a command, by name."""


@app.command(
    epilog=examples(
        "mmedit bench --editor ft --editor ike --limit 100 --out runs/x",
        "mmedit bench --vlm blip2-opt-2.7b --editor ft --dataset evqa \\",
        "    --set dataset.root=editing-data --limit 2 --out runs/try",
        "mmedit bench --editor ft --mode sequential --limit 100 --out runs/sequence",
        "mmedit bench embedded",
        "mmedit bench photo --block object --set dataset.root=DIR",
        "accelerate launch -m mmedit bench --editor mend --out runs/mend",
    )
)
def bench(
    table: TableArgument = None,
    block: BlockOption = None,
    out_folder: OutOption = None,
    vlm: VlmOption = None,
    editor: EditorOption = None,
    dataset: DatasetOption = None,
    mode: ModeOption = None,
    limit: LimitOption = None,
    train_limit: TrainLimitOption = None,
    batch_size: BatchSizeOption = None,
    generate: GenerateOption = True,
    on_contradiction: ContradictionOption = None,
    latency: LatencyOption = 0,
    settings: SetOption = None,
    seed: SeedOption = 0,
) -> None:
    """Measure editors on a benchmark, and print the table.

    The folder gets records.jsonl, table.md, table.tex and report.html. The same command continues a
    run that was stopped. Under `accelerate launch`, the processes share the work.
    """
    if table is not None:
        root, blocks = _table_blocks(table, block, out_folder, vlm, editor, dataset, mode)
    elif block:
        raise ConfigError("--block is a part of a table; name the table, as in mmedit bench photo")
    else:
        root, blocks = _flag_blocks(out_folder, vlm, editor, dataset, mode)
    is_table = table is not None or len(blocks) > 1
    from mmedit.config import read_overrides
    from mmedit.config_checks import require_uses

    overrides = read_overrides(settings or ())
    require_uses(blocks.values(), overrides)  # in milliseconds; the next import takes seconds
    from mmedit.suite import RunOptions, prepare, write_suite_table

    options = RunOptions(
        limit=limit,
        train_limit=train_limit,
        batch_size=batch_size,
        generate=generate,
        overrides=overrides,
        seed=seed,
        latency=latency,
        on_contradiction=cast("OnContradiction | None", on_contradiction),
        command=command_line(),
    )
    plans = [
        prepare(name, block, root / name if is_table else root, options)
        for name, block in blocks.items()
    ]
    results = []
    for result in measure(plans):
        if is_table:
            out.print(f"\n[bold]{escape(result.title)}[/]")
        print_table(result)
        results.append(result)
    if is_table and not block:
        write_suite_table(root, results)
    say(f"records, tables and report.html: {root}/")


def measure(plans: Sequence[BlockPlan]) -> Iterator[BlockResult]:
    """Run the plans one after another with progress bars."""
    from mmedit.bench.modes import left_out_tests
    from mmedit.cli.fit import silence_transformers
    from mmedit.suite import Reusable, run_block

    for plan in plans:
        beyond = left_out_tests(plan.plan.mode, len(plan.cases))
        for note in (*plan.notes, *plan.plan.remarks, *beyond):
            say(note, to=err)
    silence_transformers()
    reusable = Reusable()
    for plan in plans:
        if plan.is_continued:
            say(
                f"continuing the run in {plan.folder}: what is finished there is kept, and not "
                "measured again",
                to=err,
            )
        with show_progress(err) as progress:
            result, reusable = run_block(plan, reusable, progress=progress)
        yield result


def print_table(result: BlockResult) -> None:
    """Print the table of a run, with the published values beside."""
    from mmedit.report.render.terminal import table_view

    out.print(table_view(result.table, result.comparison))


def command_line() -> str:
    """Return the command that was typed."""
    return " ".join(["mmedit", *sys.argv[1:]])


def _table_blocks(
    table: str, chosen: Sequence[str] | None, out_folder: Path | None, *flags: object
) -> tuple[Path, Blocks]:
    """Return the folder of a table, and its blocks: the chosen ones, or all."""
    from mmedit.config import load_table

    if any(flags):
        raise ConfigError(
            f"the table {table} says which VLM, editors, datasets and mode; leave out --vlm, "
            "--editor, --dataset and --mode, or the table"
        )
    name, file = load_table(table)
    blocks = file.named_blocks()
    one_of(f"block of the table {table}", list(blocks))(chosen)
    blocks = {name: block for name, block in blocks.items() if not chosen or name in chosen}
    return out_folder or Path("runs") / name, blocks


def _flag_blocks(
    out_folder: Path | None,
    vlm: str | None,
    editors: Sequence[str] | None,
    datasets: Sequence[str] | None,
    mode: str | None,
) -> tuple[Path, Blocks]:
    """Return the folder of a run, and a block for every dataset."""
    from mmedit.config_files import Block

    if out_folder is None:
        raise ConfigError("--out is missing: name the output folder, for example --out runs/x")
    common = {
        "vlm": vlm or "embedded",
        "editors": tuple(editors or ["mend"]),
        "mode": mode or "independent",
    }
    chosen = dict.fromkeys(datasets or ["easyvqa"])
    return out_folder, {name: Block.model_validate(common | {"dataset": name}) for name in chosen}
