"""The demo: the whole way from training an editor to a table and a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from mmedit.cases import Example, Probe
from mmedit.cli.bench import command_line, measure, print_table
from mmedit.cli.console import SeedOption, app, either, examples, folder, one_of, out, say
from mmedit.datasets.fetch.origins import ORIGINS
from mmedit.records.schema import ProbeRecord, Record


@dataclass(frozen=True, kw_only=True)
class Show:
    """The demo of one VLM: its edits, and the words around them."""

    editors: tuple[str, ...]
    dataset: str
    edits: int
    """Number of test edits by default."""
    out: Path
    """Folder for the output by default: each VLM has its own, as a folder takes one run."""
    about: str
    """The VLM and its pictures, in words."""
    duration: str
    """Duration as measured. The README files say it too."""
    shown: str
    """Label of the editor whose edits are printed."""
    next: tuple[str, ...]
    """Commands to try next. They may name {folder}, {image}, {prompt} and {target}."""


SHOWS = {
    "embedded": Show(
        editors=("ft-l", "ft", "ike", "mend"),
        dataset="easyvqa",
        edits=100,
        out=Path("runs/demo"),
        about="the embedded BLIP-2 on easy-VQA pictures it never saw",
        duration="On 2 cores with AVX2 it takes about 3 minutes: one and a half for training MEND, "
        "15 seconds for IKE's index, 40 for measuring.",
        shown="MEND",
        next=(
            'mmedit edit --editor {folder}/editors/mend --image "{image}" '
            '--prompt "{prompt}" --target "{target}"',
            "mmedit bench --editor {folder}/editors/mend --dataset easyvqa-caption --limit 200 "
            "--out runs/captions",
            "mmedit bench --editor ft --set editor.steps=30 --limit 100 --out runs/ft-30",
            "mmedit ls editors",
        ),
    ),
    "photo": Show(
        editors=("ft-l", "ft"),
        dataset="grocery",
        edits=10,
        out=Path("runs/demo-photo"),
        about="SmolLM2 with eyes, a VLM of pretrained parts, on photographs of groceries",
        duration="On 2 cores with AVX2 it takes about 2 minutes.",
        shown="FT-M",
        next=(
            'mmedit edit --vlm photo --image "{image}" --prompt "{prompt}" --target "{target}"',
            "mmedit bench --vlm photo --editor ft --editor lora --dataset grocery-object "
            "--limit 20 --set dataset.root={root} --out runs/photo",
            "mmedit ls editors",
        ),
    ),
}
"""The demo of each VLM that has one."""


@app.command(
    epilog=examples(
        "mmedit demo", "mmedit demo --edits 20 --out runs/quick", "mmedit demo --vlm photo"
    )
)
def demo(
    vlm: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help=f"{either(list(SHOWS))}. What photo needs: `mmedit data get photo-vlm grocery`.",
            callback=one_of("VLM of the demo", list(SHOWS)),
        ),
    ] = "embedded",
    out_folder: Annotated[
        Path | None,
        typer.Option(
            "--out",
            parser=folder,
            metavar="DIR",
            help="Folder for records, tables and report.",
            show_default="runs/demo; for photo runs/demo-photo",
        ),
    ] = None,
    edits: Annotated[
        int | None,
        typer.Option(
            min=3, metavar="N", help="Number of test edits.", show_default="100; for photo 10"
        ),
    ] = None,
    root: Annotated[
        Path,
        typer.Option("--root", parser=folder, metavar="DIR", help="For photo: the photographs."),
    ] = Path(ORIGINS["grocery"].root),
    seed: SeedOption = 0,
) -> None:
    """Show everything in minutes: edit a VLM by several methods, and print the table.

    The embedded VLM is part of the package and needs no network; MEND is trained for it first.
    """
    from mmedit.config_files import Block
    from mmedit.suite import RunOptions, prepare

    show = SHOWS[vlm]
    into = out_folder or show.out
    settings = (f"dataset.root={root}",) if show.dataset == "grocery" else ()
    block = Block(
        vlm=vlm, editors=show.editors, dataset=show.dataset, settings=settings, title="mmedit demo"
    )
    options = RunOptions(limit=edits or show.edits, seed=seed, command=command_line())
    plan = prepare("demo", block, into, options)
    out.print(
        f"[bold]{block.title}[/]: {len(plan.cases)} edits of {show.about}, each from the base "
        f"model. Methods: {', '.join(plan.plan.editors)}."
    )
    say(f"{show.duration} Output: {into}/")
    [result] = measure([plan])
    print_table(result)
    out.print(examples_view([r for r in result.records if r.editor == show.shown][:3]))
    _print_next(into, plan.cases[0].request, show.next, root)


def _print_next(directory: Path, request: Example, lines: Sequence[str], root: Path) -> None:
    say(
        f"\nwritten: {directory}/records.jsonl, table.md, table.tex, and report.html with the "
        "images: open it."
    )
    out.print("\n[bold]try next[/]")
    for line in lines:
        named = line.format(
            folder=directory, image=request.image, prompt=request.prompt, target=request.target,
            root=root,
        )  # fmt: skip
        say(f"  {named}")


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
