"""How results look in a terminal: what the command line prints, and its progress bars."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from mmedit.bench.records import ProbeRecord, Record
from mmedit.cases import Example, Probe

if TYPE_CHECKING:  # adapters import torch, and `mmedit table` does without
    from mmedit.adapters import Adapter, Stage

Report = Callable[[str, int, int, str], None]
"""Called with (what is being done, done, total, figures)."""


class _Bars(Progress):
    figures = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.figures:
            yield Text(self.figures, style="dim")


@contextmanager
def progress(console: Console) -> Iterator[Report]:
    """A bar for everything that reports: done/total, rate, time passed and left; below, the latest
    figures.
    """
    bars = _Bars(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
    tasks: dict[str, TaskID] = {}
    with bars:

        def report(what: str, done: int, total: int, figures: str) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total, rate="")
            task, bars.figures = tasks[what], figures
            bars.update(task, completed=done, total=total)
            speed = bars.tasks[task].finished_speed or bars.tasks[task].speed
            bars.update(task, rate=f"{speed:.1f}/s" if speed else "")

        yield report


def vlms_view(
    described: Sequence[tuple[str, str]],
    sites: Mapping[str, Mapping[Stage, tuple[str, ...]]],
    adapters: Mapping[str, type[Adapter]],
) -> RenderableType:
    """Every named VLM with its edit sites by stage, then the families that any folder may be of."""
    named: list[RenderableType] = []
    for name, text in described:
        named.append(f"[bold]{name}[/]  {escape(text)}")
        for stage, patterns in sites[name].items():
            named += [Text(f"  {stage:8}  {pattern}", style="dim") for pattern in patterns]
    families = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("adapter", "model type in config.json"):
        families.add_column(heading)
    for name, adapter in adapters.items():
        types = ", ".join(adapter.model_types) or "any other that transformers knows, with a "
        families.add_row(f"[bold]{name}", types + ("" if adapter.model_types else "chat template"))
    return Group(*named, Text("\nAny folder or hub id of these families works too:\n"), families)


def answers_view(
    label: str, examples: Sequence[Example], before: Sequence[str], after: Sequence[str]
) -> RenderableType:
    """One edit: the request's answer before and after, then those of unrelated questions."""
    table = Table(box=None, pad_edge=False)
    for heading in ("", "question", "before", f"after {label}", ""):
        table.add_column(heading)
    for number, (example, old, new) in enumerate(zip(examples, before, after, strict=True)):
        about = "" if example.image is None else " (image)" if number == 0 else " (another image)"
        verdict = _edit_verdict(new, example.target) if number == 0 else _local_verdict(old, new)
        sort = "edit" if number == 0 else "unrelated"
        table.add_row(sort, escape(example.prompt + about), escape(old), escape(new), verdict)
    return table


def _edit_verdict(said: str, target: str) -> str:
    return "[green]as wanted" if said == target else f"[red]wanted: {escape(target)}"


def _local_verdict(before: str, after: str) -> str:
    return "[green]unchanged" if before == after else "[red]changed"


def method_view(
    records: Sequence[Record],
    training_seconds: Mapping[str, float],
    notes: Sequence[str] = (),
) -> RenderableType:
    """The method table of records in 80 characters."""
    from mmedit.bench.tables import method_table  # SciPy behind it takes a second to import
    from mmedit.table_view import table_view

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
