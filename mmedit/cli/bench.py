"""Benchmark runs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.markup import escape

from mmedit.catalog import MODES, names
from mmedit.cli.console import (
    SeedOption,
    SetOption,
    app,
    either,
    err,
    examples,
    folder,
    known,
    one_of,
    out,
    say,
)
from mmedit.cli.progress import show_progress
from mmedit.errors import ConfigError

if TYPE_CHECKING:  # suite imports torch
    from mmedit.bench.contradictions import OnContradiction
    from mmedit.config_files import Block
    from mmedit.suite import BlockPlan, BlockResult

Blocks = dict[str, "Block"]
"""The runs of a command, by name."""


def _table(value: str | None) -> str | None:
    """Check the table's name: a word after a flag lands here."""
    if value in ("true", "false", "True", "False", "yes", "no"):
        raise ConfigError(
            f"{value!r} was read as the name of a table; --generate and --no-generate take no value"
        )
    return known("table")(value)


TableArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="TABLE",
        help=f"A whole table: {either(names('table'))}, or a file of this kind.",
        callback=_table,
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        parser=folder,
        metavar="DIR",
        help="Folder of the run. A run that was stopped in it is continued.",
        show_default="runs/TABLE for a table, else required",
    ),
]
VlmOption = Annotated[
    str | None,
    typer.Option(
        "--vlm",
        metavar="NAME",
        help="A name of `mmedit ls vlms`, a model folder, or a hub id.",
        show_default="embedded",
        callback=known("vlm"),
    ),
]
EditorOption = Annotated[
    list[str] | None,
    typer.Option(
        "--editor",
        metavar="NAME",
        help=f"An editor (repeatable): {either(names('editor'))}; a YAML file of this kind; or the "
        "folder or hub id of a fitted one.",
        show_default="mend",
        callback=known("editor"),
    ),
]
DatasetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--dataset",
        metavar="NAME",
        help=f"A dataset (repeatable): {either(names('dataset'))}.",
        show_default="easyvqa",
        callback=known("dataset"),
    ),
]
ModeOption = Annotated[
    str | None,
    typer.Option(
        "--mode",
        metavar="MODE",
        help=f"How edits are made: {either(MODES)}. For batch: --set batch.k=10.",
        show_default="independent",
        callback=one_of("mode", MODES),
    ),
]
LimitOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Use at most this many test cases.",
        show_default="all; for a table, its own",
    ),
]
TrainLimitOption = Annotated[
    int | None,
    typer.Option(
        "--train-limit",
        min=1,
        metavar="N",
        help="Let editors learn from at most this many training cases.",
        show_default="all; for a table, its own",
    ),
]
BatchSizeOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=100_000,
        metavar="N",
        help="Separate edits per pass. No result depends on it.",
        show_default="the VLM's own, in configs/vlm",
    ),
]
LatencyOption = Annotated[
    int,
    typer.Option(
        min=0,
        metavar="N",
        help="Also time N edits of each editor one at a time, without probes. The table shows the "
        "median and the 95th percentile.",
    ),
]
ContradictionOption = Annotated[
    str | None,
    typer.Option(
        "--on-contradiction",
        metavar="WHAT",
        help="error: refuse a run in which one edit changes what another edit's probe asks; skip: "
        "leave these probes out, and count them under the table. Separate edits are never refused.",
        show_default="error",
        callback=one_of("way with contradictions", ("error", "skip")),
    ),
]
GenerateOption = Annotated[bool, typer.Option(help="Let the VLM answer freely too.")]


@app.command(
    epilog=examples(
        "mmedit bench --editor ft --editor ike --limit 100 --out runs/x",
        "mmedit bench --vlm blip2-opt-2.7b --editor ft --dataset evqa \\",
        "    --set dataset.root=editing-data --limit 2 --out runs/try",
        "mmedit bench --editor ft --mode sequential --limit 100 --out runs/sequence",
        "mmedit bench embedded",
        "accelerate launch -m mmedit bench --editor mend --out runs/mend",
    )
)
def bench(
    table: TableArgument = None,
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
        root, blocks = _table_blocks(table, out_folder, vlm, editor, dataset, mode)
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
    if is_table:
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


def _table_blocks(table: str, out_folder: Path | None, *flags: object) -> tuple[Path, Blocks]:
    """Return the folder of a table, and its blocks."""
    from mmedit.config import load_table

    if any(flags):
        raise ConfigError(
            f"the table {table} says which VLM, editors, datasets and mode; leave out --vlm, "
            "--editor, --dataset and --mode, or the table"
        )
    name, file = load_table(table)
    return out_folder or Path("runs") / name, file.named_blocks()


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
