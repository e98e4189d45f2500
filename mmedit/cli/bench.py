"""Benchmark runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from mmedit.cli.console import (
    DatasetOption,
    SeedOption,
    SetOption,
    VlmOption,
    app,
    err,
    out,
)
from mmedit.cli.edit import load_vlm, training_cases_of
from mmedit.terminal import examples_view, method_view, progress

if TYPE_CHECKING:
    from mmedit.bench.records import Record
    from mmedit.bench.runs import Plan, TrainingCases
    from mmedit.bench.speech import SpeechSettings
    from mmedit.cases import EditCase, Example
    from mmedit.editors import Editor
    from mmedit.vlm import VLM

DEMO_EDITORS = ("ft-l", "ft", "ike", "mend")
DEMO_SHOWN = "MEND"
REPORTED = 8
"""Edits shown with pictures in the report."""


@app.command()
def bench(
    out_folder: Annotated[
        Path, typer.Option("--out", help="The run's folder; a stopped run in it is continued.")
    ],
    vlm: VlmOption = "embedded",
    editor: Annotated[
        list[str] | None,
        typer.Option("--editor", help="A name, a fitted editor's folder or hub id (repeatable)."),
    ] = None,
    dataset: DatasetOption = "easyvqa",
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
    """Measure editors on a benchmark, each edit from the base model, and print the table."""
    from mmedit.bench.records import notes_of
    from mmedit.config import load_cases, load_editors, load_speech, load_vlm_file

    overrides = settings or []
    vlm_file = load_vlm_file(vlm, overrides)
    speech = load_speech(overrides)
    editors = load_editors(editor or ["mend"], vlm, overrides)
    cases = load_cases(dataset, "test", limit=limit, seed=seed, overrides=overrides)
    plan = _plan(
        vlm,
        dataset,
        limit,
        seed,
        editors,
        batch_size or vlm_file.batch_size,
        vlm_file.max_new_tokens if generate else 0,
        overrides,
        speech,
        cases,
    )
    notes = notes_of(plan.manifest({}))
    for note in notes:
        err.print(note)
    records, training_seconds = _run(
        plan, out_folder, lambda: load_vlm(vlm_file), cases,
        training_cases_of(dataset, None, seed, overrides),
    )  # fmt: skip
    out.print(method_view(records, training_seconds, notes))
    _write_tables(out_folder, records, training_seconds, notes)
    out.print(f"records and tables: {out_folder}/")


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
    from mmedit.config import load_cases, load_editors, load_vlm_file

    vlm_file = load_vlm_file("embedded")
    editors = load_editors(DEMO_EDITORS, "embedded")
    cases = load_cases("easyvqa", "test", limit=edits, seed=seed)
    out.print(
        f"[bold]mmedit demo[/]: {len(cases)} edits of the embedded BLIP-2 on easy-VQA pictures it "
        "never saw, each from the "
        f"unedited model; {', '.join(editors)}. About three minutes on two cores."
    )
    plan = _plan(
        "embedded", "easyvqa", edits, seed, editors, vlm_file.batch_size, vlm_file.max_new_tokens
    )
    records, training_seconds = _run(
        plan,
        out_folder,
        lambda: load_vlm(vlm_file),
        cases,
        training_cases_of("easyvqa", None, seed, ()),
    )
    out.print(method_view(records, training_seconds))
    out.print(examples_view([r for r in records if r.editor == DEMO_SHOWN][:3]))
    _write_tables(out_folder, records, training_seconds)
    _write_report(out_folder, plan, records, cases, training_seconds)
    _print_next(out_folder, cases[0].request)


def _plan(
    vlm: str,
    dataset: str,
    limit: int | None,
    seed: int,
    editors: dict[str, Editor],
    batch_size: int,
    max_new_tokens: int,
    overrides: Sequence[str] = (),
    speech: SpeechSettings | None = None,
    cases: Sequence[EditCase] = (),
) -> Plan:
    from mmedit.bench.runs import Plan
    from mmedit.bench.speech import SpeechSettings
    from mmedit.datasets.sources import Cases

    return Plan(
        vlm_name=vlm,
        dataset=dataset,
        limit=limit,
        seed=seed,
        editors=editors,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        command=" ".join(["mmedit", *sys.argv[1:]]),
        overrides=tuple(overrides),
        speech=speech or SpeechSettings(),
        left_out=cases.left_out if isinstance(cases, Cases) else {},
    )


def _run(
    plan: Plan,
    folder: Path,
    load: Callable[[], VLM],
    cases: Sequence[Any],
    training_cases: TrainingCases,
) -> tuple[list[Record], dict[str, float]]:
    from mmedit.bench.records import RECORDS
    from mmedit.bench.runs import check_directory, run

    check_directory(plan, folder)
    if (folder / RECORDS).exists():
        err.print(
            f"continuing the run in {folder}: what is finished there is kept, not measured again"
        )
    vlm = load()
    with progress(err) as report:
        return run(plan, folder, vlm, cases, training_cases, report=report)


def _write_tables(
    folder: Path,
    records: Sequence[Record],
    training_seconds: dict[str, float],
    notes: Sequence[str] = (),
) -> None:
    from mmedit.bench.formats import render
    from mmedit.bench.records import write_atomically
    from mmedit.bench.tables import method_table

    frame = method_table(records, training_seconds=training_seconds or None, notes=notes)
    for name, format in (("table.md", "md"), ("table.tex", "latex")):
        write_atomically(folder / name, render(frame, format).encode())


def _write_report(
    folder: Path,
    plan: Plan,
    records: Sequence[Record],
    cases: Sequence[Any],
    training_seconds: dict[str, float],
) -> None:
    from mmedit.bench.report import write_report
    from mmedit.bench.runs import save_images

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
