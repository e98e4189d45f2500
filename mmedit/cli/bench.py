"""Benchmark runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from mmedit.cli.console import SeedOption, SetOption, app, err, out
from mmedit.cli.runs import Common, measured, prepared

if TYPE_CHECKING:
    from mmedit.bench.plan import Plan
    from mmedit.cases import Example
    from mmedit.config import Block
    from mmedit.records.schema import Record
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mmedit.cases import Example, Probe
from mmedit.records.schema import ProbeRecord, Record

if TYPE_CHECKING:  # adapters import torch, and `mmedit table` does without
    pass


Blocks = tuple[Path, "dict[str, Block]"]
"""A run's folder, and what is run in it or, of several, in folders of their names."""
DEMO_EDITORS = ("ft-l", "ft", "ike", "mend")
DEMO_SHOWN = "MEND"
REPORTED = 8
"""Edits shown with pictures in the report."""


@app.command()
def bench(
    table: Annotated[
        str | None,
        typer.Argument(help="A whole table: a name of configs/table, or a file like those."),
    ] = None,
    out_folder: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="The run's folder; a stopped run in it is continued. [table: runs/NAME]",
        ),
    ] = None,
    vlm: Annotated[
        str | None,
        typer.Option(
            "--vlm", help="A name of `mmedit ls vlms`, a model folder, or a hub id. [embedded]"
        ),
    ] = None,
    editor: Annotated[
        list[str] | None,
        typer.Option(
            "--editor", help="A name, a fitted editor's folder or hub id (repeatable). [mend]"
        ),
    ] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option("--dataset", help="A name of `mmedit ls datasets` (repeatable). [easyvqa]"),
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(
            "--mode",
            help="independent; batch (--set batch.k=10); or sequential. [independent]",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many test edits.")] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1, help="Edits per pass; the VLM's own by default. No result depends on it."
        ),
    ] = None,
    generate: Annotated[bool, typer.Option(help="Also let the VLM answer freely.")] = True,
    settings: SetOption = None,
    seed: SeedOption = 0,
) -> None:
    """Measure editors on a benchmark and print the table. Also under `accelerate launch -m mmedit
    bench ...`, where the processes share the work.
    """
    from mmedit.config import require_used
    from mmedit.processes import is_main_process
    from mmedit.report.render import render
    from mmedit.report.render.terminal import table_view
    from mmedit.storage import write_atomically

    common = Common(limit, batch_size, generate, tuple(settings or ()), seed)
    if table is not None:
        folder, blocks = _table_blocks(table, out_folder, vlm, editor, dataset, mode)
    else:
        folder, blocks = _flag_blocks(out_folder, vlm, editor, dataset, mode)
    require_used(common.overrides, {block.mode for block in blocks.values()})
    is_table = table is not None or len(blocks) > 1
    runs = [
        prepared(name, block, folder / name if is_table else folder, common)
        for name, block in blocks.items()
    ]
    for one in runs:
        for note in one.notes:
            err.print(note)
    sections = []
    for one in measured(runs):
        frame = one.frame()
        beside = one.beside(frame)
        if is_table:
            out.print(f"\n[bold]{escape(one.title)}[/]")
        out.print(table_view(frame, beside))
        one.write(frame)
        sections.append(f"## {one.title}\n\n{render(frame, 'md', beside)}")
    if is_table and is_main_process():
        write_atomically(folder / "table.md", "\n".join(sections).encode())
    out.print(f"records and tables: {folder}/")


def _table_blocks(table: str, out_folder: Path | None, *flags: object) -> Blocks:
    """The blocks of a table's file, and the folder of their folders."""
    from mmedit.config import load_table
    from mmedit.errors import ConfigError

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
) -> Blocks:
    """A block for every dataset, and their folder."""
    from mmedit.config import Block
    from mmedit.errors import ConfigError

    if out_folder is None:
        raise ConfigError("where shall the records go? Name a folder: --out runs/x")
    common = {
        "vlm": vlm or "embedded",
        "editors": tuple(editors or ["mend"]),
        "mode": mode or "independent",
    }
    names = dict.fromkeys(datasets or ["easyvqa"])
    return out_folder, {name: Block.model_validate(common | {"dataset": name}) for name in names}


@app.command()
def demo(
    out_folder: Annotated[
        Path, typer.Option("--out", help="Where the records, tables and report go.")
    ] = Path("runs/demo"),
    edits: Annotated[int, typer.Option(min=3, help="Number of test edits.")] = 100,
    seed: SeedOption = 0,
) -> None:
    """The whole job in minutes: train MEND, compare it with FT and IKE on the embedded VLM, print
    the table.
    """
    from mmedit.config import Block
    from mmedit.report.render.terminal import table_view

    block = Block(vlm="embedded", editors=DEMO_EDITORS, dataset="easyvqa")
    run = prepared("demo", block, out_folder, Common(limit=edits, seed=seed))
    out.print(
        f"[bold]mmedit demo[/]: {len(run.cases)} edits of the embedded BLIP-2 on easy-VQA pictures "
        "it never saw, each from the unedited model; "
        f"{', '.join(run.plan.editors)}. About three minutes on two cores."
    )
    [done] = measured([run])
    frame = done.frame()
    out.print(table_view(frame))
    out.print(examples_view([r for r in done.records if r.editor == DEMO_SHOWN][:3]))
    done.write(frame)
    _write_report(out_folder, run.plan, done.records, run.cases, done.training_seconds)
    _print_next(out_folder, run.cases[0].request)


def _write_report(
    folder: Path,
    plan: Plan,
    records: Sequence[Record],
    cases: Sequence[Any],
    training_seconds: Mapping[str, float],
) -> None:
    from mmedit.report.render.page import write_report
    from mmedit.suite import save_images

    write_report(
        folder,
        records,
        images=save_images(cases[:REPORTED], folder / "images"),
        title="mmedit demo",
        intro=f"{len(cases)} edits of the embedded VLM on easy-VQA, each from the unedited model.",
        examples=REPORTED,
        manifest=plan.manifest(training_seconds),
    )


def _print_next(folder: Path, request: Example) -> None:
    out.print(
        f"\nwritten: {folder}/records.jsonl, table.md, table.tex, and [bold]report.html[/] with "
        "the images: open it."
    )
    out.print("\n[bold]try next[/]")
    fitted = folder / "editors" / "mend"
    for line in (
        f'mmedit edit --editor {fitted} --image "{request.image}" '
        f'--prompt "{request.prompt}" --target "{request.target}"',
        f"mmedit bench --editor {fitted} --dataset easyvqa-caption --limit 200 --out runs/captions",
        "mmedit bench --editor ft --set editor.steps=30 --limit 100 --out runs/ft-30",
        "mmedit ls editors",
    ):
        out.print(f"  {escape(line)}", soft_wrap=True)


def method_view(
    records: Sequence[Record],
    training_seconds: Mapping[str, float],
    notes: Sequence[str] = (),
) -> RenderableType:
    """The method table of records in 80 characters."""
    from mmedit.report.render.terminal import table_view
    from mmedit.report.table import method_table  # SciPy behind it takes a second to import

    table = method_table(records, training_seconds=training_seconds or None, notes=notes)
    return table_view(table)


def examples_view(records: Sequence[Record]) -> RenderableType:
    """Some edits in words: what was said to every probe before and after."""
    blocks: list[RenderableType] = []
    for record in records:
        request = record.probes[Probe.RELIABILITY][0]
        table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
        for probe, asked in record.probes.items():
            for one in asked:
                table.add_row(f"  {probe.replace('_', ' ')}", escape(one.prompt), _said(probe, one))
        heading = f"\n[bold]{escape(record.editor)}[/]: {escape(request.prompt)} -> [bold]"
        blocks += [Text.from_markup(f"{heading}{escape(request.target)}[/]"), table]
    return Group(*blocks)


def _said(probe: Probe, asked: ProbeRecord) -> str:
    before, after = asked.generated_pre or "", asked.generated_post or ""
    good = after == (before if probe.is_locality else asked.target)
    return f"{escape(before)} -> [{'green' if good else 'red'}]{escape(after)}[/]"
