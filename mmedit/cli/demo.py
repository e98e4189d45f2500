"""The demo: the whole way from training an editor to a table and a report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from mmedit.cases import Example, Probe
from mmedit.cli.bench import command_line, measure, print_table
from mmedit.cli.console import SeedOption, app, examples, folder, out, say
from mmedit.records.schema import ProbeRecord, Record

DEMO_EDITORS = ("ft-l", "ft", "ike", "mend")
DEMO_SHOWN = "MEND"
DURATION = (
    "On 2 cores with AVX2 it takes about 3 minutes: one and a half for training MEND, 15 seconds "
    "for IKE's index, 40 for measuring."
)
"""Duration of the demo, as measured. The README files say it too."""


@app.command(epilog=examples("mmedit demo", "mmedit demo --edits 20 --out runs/quick"))
def demo(
    out_folder: Annotated[
        Path,
        typer.Option(
            "--out", parser=folder, metavar="DIR", help="Folder for records, tables and report."
        ),
    ] = Path("runs/demo"),
    edits: Annotated[int, typer.Option(min=3, metavar="N", help="Number of test edits.")] = 100,
    seed: SeedOption = 0,
) -> None:
    """Show everything in minutes: train MEND, compare it with FT and IKE, print the table.

    Uses the small VLM inside the package and needs no network.
    """
    from mmedit.config_files import Block
    from mmedit.suite import RunOptions, prepare

    block = Block(vlm="embedded", editors=DEMO_EDITORS, dataset="easyvqa", title="mmedit demo")
    options = RunOptions(limit=edits, seed=seed, command=command_line())
    plan = prepare("demo", block, out_folder, options)
    out.print(
        f"[bold]mmedit demo[/]: {len(plan.cases)} edits of the embedded BLIP-2 on easy-VQA "
        "pictures it never saw, each from the base model. Methods: "
        f"{', '.join(plan.plan.editors)}."
    )
    say(f"{DURATION} Output: {out_folder}/")
    [result] = measure([plan])
    print_table(result)
    out.print(examples_view([r for r in result.records if r.editor == DEMO_SHOWN][:3]))
    _print_next(out_folder, plan.cases[0].request)


def _print_next(directory: Path, request: Example) -> None:
    say(
        f"\nwritten: {directory}/records.jsonl, table.md, table.tex, and report.html with the "
        "images: open it."
    )
    out.print("\n[bold]try next[/]")
    fitted = directory / "editors" / "mend"
    for line in (
        f'mmedit edit --editor {fitted} --image "{request.image}" '
        f'--prompt "{request.prompt}" --target "{request.target}"',
        f"mmedit bench --editor {fitted} --dataset easyvqa-caption --limit 200 --out runs/captions",
        "mmedit bench --editor ft --set editor.steps=30 --limit 100 --out runs/ft-30",
        "mmedit ls editors",
    ):
        say(f"  {line}")


def examples_view(records: Sequence[Record]) -> RenderableType:
    """Return some edits as text: the answer to every probe before and after."""
    blocks: list[RenderableType] = []
    for record in records:
        request = record.probes[Probe.RELIABILITY][0]
        table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
        for probe, asked in record.probes.items():
            for one in asked:
                name = f"  {probe.replace('_', ' ')}"
                table.add_row(name, escape(one.prompt), _answers(probe, one))
        heading = f"\n[bold]{escape(record.editor)}[/]: {escape(request.prompt)} -> [bold]"
        blocks += [Text.from_markup(f"{heading}{escape(request.target)}[/]"), table]
    return Group(*blocks)


def _answers(probe: Probe, asked: ProbeRecord) -> str:
    before, after = asked.generated_pre or "", asked.generated_post or ""
    good = after == (before if probe.is_locality else asked.target)
    return f"{escape(before)} -> [{'green' if good else 'red'}]{escape(after)}[/]"
