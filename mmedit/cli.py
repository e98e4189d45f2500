"""The command line: the only file that prints."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mmedit.errors import MmeditError, UnknownNameError
from mmedit.terminal import answers_view, examples_view, method_view, progress, vlms_view

if TYPE_CHECKING:
    from mmedit.bench.records import Record
    from mmedit.bench.runs import Plan, TrainingCases
    from mmedit.bench.speech import SpeechSettings
    from mmedit.cases import EditCase, Example
    from mmedit.config import Kind
    from mmedit.editors import Editor
    from mmedit.vlm import VLM

# torch and transformers take seconds to import: each command imports what it needs.

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Edit knowledge in vision-language models, and measure what else changed.",
)
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

DEMO_EDITORS = ("ft-l", "ft", "ike", "mend")
DEMO_SHOWN = "MEND"

VlmOption = Annotated[
    str, typer.Option("--vlm", help="A name of `mmedit ls vlms`, a model folder, or a hub id.")
]
EditorOption = Annotated[
    str,
    typer.Option(
        "--editor", help="A name of `mmedit ls editors`, a fitted editor's folder, or its hub id."
    ),
]
DatasetOption = Annotated[str, typer.Option("--dataset", help="A name of `mmedit ls datasets`.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Override a setting: editor.lr=1e-5 (repeatable).")
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Seed of cases and training.")]
RunsArgument = Annotated[list[Path], typer.Argument(help="Run folders.")]


data = typer.Typer(no_args_is_help=True, help="What is in a benchmark's files.")
app.add_typer(data, name="data")


def main() -> None:
    """Run the command line: errors raised on purpose are one message and exit code 2."""
    if int(os.environ.get("RANK", "0")):  # of `accelerate launch`: one process speaks for all
        out.quiet = err.quiet = True
    try:
        app()
    except MmeditError as error:
        err.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        err.print(
            "stopped; what was finished is kept, and the same command (of fit: with --resume) "
            "continues from there"
        )
        sys.exit(130)


@app.command("ls")
def list_names(what: Annotated[str, typer.Argument(help="editors, vlms or datasets")]) -> None:
    """List what there is by name."""
    from mmedit.config import describe

    kinds: dict[str, Kind] = {"editors": "editor", "vlms": "vlm", "datasets": "dataset"}
    if what not in kinds:
        raise UnknownNameError("list", what, kinds)
    if what == "vlms":
        from mmedit.adapters import ADAPTERS
        from mmedit.config import named_vlms

        sites = {name: file.sites for name, file in named_vlms().items()}
        out.print(vlms_view(describe("vlm"), sites, ADAPTERS))
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("name", style="bold")
    table.add_column("what it is")
    for name, text in describe(kinds[what]):
        table.add_row(name, text)
    out.print(table)


@app.command("convert")
def convert_files(
    family: Annotated[str, typer.Argument(help="blip2 or minigpt4")],
    vision: Annotated[
        str, typer.Option(help="eva_vit_g.pth, or timm:NAME, or open_clip:ARCH/WEIGHTS.")
    ],
    language: Annotated[str, typer.Option(help="A transformers model folder, or a hub id.")],
    out_folder: Annotated[Path, typer.Option("--out", help="The VLM's folder, made anew.")],
    qformer: Annotated[str | None, typer.Option(help="LAVIS' blip2_pretrained_*.pth.")] = None,
    projection: Annotated[
        str | None, typer.Option(help="MiniGPT-4's pretrained_minigpt4*.pth.")
    ] = None,
    image_size: Annotated[
        int, typer.Option(min=1, help="Pixels a side; positions are interpolated.")
    ] = 364,
    vision_heads: Annotated[int | None, typer.Option(help="If the tower is not EVA-g.")] = None,
    vision_layers: Annotated[int | None, typer.Option(help="If the tower is not EVA-g.")] = None,
    qformer_heads: Annotated[int | None, typer.Option(help="If it is not 768 wide.")] = None,
    format: Annotated[
        str | None, typer.Option("--format", help="Of MiniGPT-4's prompts: vicuna or llama2.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Of what is written; the language model's by default.")
    ] = None,
    drop: Annotated[
        list[str] | None, typer.Option(help="Leave out tensors of this name or pattern.")
    ] = None,
) -> None:
    """Make a model folder from the original files of BLIP-2 or MiniGPT-4 (docs/converting.md)."""
    import transformers

    from mmedit.adapters.checkpoints import Options, Sources, convert

    transformers.utils.logging.disable_progress_bar()
    with err.status("converting"):
        done = convert(
            family,
            Sources(vision=vision, language=language, qformer=qformer, projection=projection),
            out_folder,
            Options(
                image_size=image_size,
                vision_heads=vision_heads,
                vision_layers=vision_layers,
                qformer_heads=qformer_heads,
                format=format,
                dtype=dtype,
                drop=tuple(drop or ()),
            ),
        )
    for part in done.accounts:
        dropped = f", {len(part.dropped)} dropped" if part.dropped else ""
        out.print(escape(f"{part.role} {part.source}: {part.used} tensors used{dropped}"))
    for name, reason in done.filled.items():
        out.print(escape(f"in no source: {name}: {reason}"))
    out.print(
        f"{done.model_type} in {done.dtype}, {image_size} pixels -> {out_folder}/ (conversion.json)"
    )
    out.print(f"next: mmedit bench --vlm {out_folder} --editor ft --limit 10 --out runs/x")


@app.command()
def edit(
    prompt: Annotated[str, typer.Option(help="What is asked, word for word.")],
    target: Annotated[str, typer.Option(help="The answer the VLM shall give from now on.")],
    image: Annotated[
        Path | None, typer.Option(help="The image that the question is about.")
    ] = None,
    vlm: VlmOption = "embedded",
    editor: EditorOption = "ft",
    dataset: DatasetOption = "easyvqa",
    settings: SetOption = None,
    seed: SeedOption = 0,
) -> None:
    """Make one edit and print the answer before and after, and what it did to three unrelated
    questions.
    """
    from mmedit.cases import Example, Probe
    from mmedit.config import load_cases, load_editor, load_vlm_file
    from mmedit.images import open_image

    overrides = settings or []
    request = Example(
        prompt=prompt, target=target, image=open_image(image) if image is not None else None
    )
    vlm_file = load_vlm_file(vlm, overrides)
    label, method = load_editor(editor, vlm, overrides)
    cases = load_cases(dataset, "test", limit=2, seed=seed, overrides=overrides)
    unrelated = [
        cases[0].probes[Probe.TEXT_LOCALITY][0],
        cases[0].probes[Probe.IMAGE_LOCALITY][0],
        cases[1].probes[Probe.IMAGE_LOCALITY][0],
    ]
    loaded = _load_vlm(vlm_file)
    if method.needs_fit and not method.is_fitted:
        _fit(label, method, loaded, _training_cases(dataset, None, seed, overrides), seed)
    begun = time.perf_counter()
    edited = method.apply(loaded, [request])
    seconds = time.perf_counter() - begun
    asked, room = [request, *unrelated], vlm_file.max_new_tokens
    before = loaded.generate(asked, max_new_tokens=room)
    out.print(answers_view(label, asked, before, edited.generate(asked, max_new_tokens=room)))
    out.print(
        f"\n{label} took {seconds:.2f} s. The VLM itself is unchanged; the edit lives in the copy "
        "that was asked."
    )


@app.command()
def fit(
    out_folder: Annotated[Path, typer.Option("--out", help="Where the fitted editor goes.")],
    vlm: VlmOption = "embedded",
    editor: EditorOption = "mend",
    dataset: DatasetOption = "easyvqa",
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most so many training cases.")
    ] = None,
    validation: Annotated[
        int,
        typer.Option(min=0, help="Training cases kept aside to choose the best checkpoint by."),
    ] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")
    ] = False,
    settings: SetOption = None,
    seed: SeedOption = 0,
) -> None:
    """Train an editor that learns, and save it: then `mmedit bench --editor DIR`. Also under
    `accelerate launch -m mmedit fit ...`.
    """
    from mmedit.bench.records import make_folder
    from mmedit.config import check_cases, load_editor, load_vlm_file
    from mmedit.errors import ConfigError
    from mmedit.training import (
        is_main_process,
        number_of_processes,
        seconds_spent,
        steps_done,
    )

    overrides = settings or []
    vlm_file = load_vlm_file(vlm, overrides)
    label, method = load_editor(editor, vlm, overrides)
    if not method.needs_fit:
        raise ConfigError(
            f"{editor} has nothing to learn; use it directly: mmedit bench --editor {editor}"
        )
    if method.is_fitted:
        raise ConfigError(f"{editor} is a fitted editor already; name a method to fit anew")
    done = steps_done(out_folder)
    if done and not resume:
        raise ConfigError(
            f"{out_folder} holds a training of {done} steps; go on from there with --resume, or "
            "choose another --out"
        )
    if resume and not done:
        err.print(f"{out_folder} holds no checkpoint: training starts from the beginning")
    check_cases(dataset, overrides)
    make_folder(out_folder)
    loaded = _load_vlm(vlm_file)
    earlier = seconds_spent(out_folder)
    cases = _training_cases(dataset, limit, seed, overrides)
    number, seconds = _fit(label, method, loaded, cases, seed, validation, out_folder)
    if is_main_process():
        method.save(out_folder)
    spent = f"{earlier + seconds:.0f} s" + (f" (from step {done})" if done else "")
    together = f" by {number_of_processes()} processes" if number_of_processes() > 1 else ""
    out.print(f"{label} was fitted on {number} cases{together} in {spent} -> {out_folder}")
    out.print(
        f"next: mmedit bench --vlm {vlm} --editor {out_folder} --dataset {dataset} --out runs/x"
    )


@app.command()
def push(
    editor: Annotated[Path, typer.Argument(help="A fitted editor's folder.")],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="On the hub.")],
    private: Annotated[bool, typer.Option("--private", help="Only you can see it.")] = False,
) -> None:
    """Share a fitted editor on the Hugging Face hub; `--editor OWNER/NAME` then fetches it."""
    from mmedit.editors.files import push as upload

    out.print(f"pushed: {upload(editor, repository, private=private)}", soft_wrap=True)


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
        plan, out_folder, lambda: _load_vlm(vlm_file), cases,
        _training_cases(dataset, None, seed, overrides),
    )  # fmt: skip
    out.print(method_view(records, training_seconds, notes))
    _write_tables(out_folder, records, training_seconds, notes)
    out.print(f"records and tables: {out_folder}/")


@data.command("check")
def check_data(
    name: Annotated[str, typer.Argument(help="evqa, eic or vlkeb")],
    root: Annotated[Path, typer.Option("--root", help="The benchmark's folder.")],
    images: Annotated[
        Path | None, typer.Option(help="Where the images lie, if not in the folder.")
    ] = None,
    decode: Annotated[bool, typer.Option("--decode", help="Open every image as well.")] = False,
) -> None:
    """Count and check a benchmark's records and images, as Markdown."""
    from mmedit.datasets.audit import audit, markdown, sources_of

    settings = {"images": str(images)} if images else {}
    sources = sources_of(name, str(root), **settings)
    with progress(err) as report:
        audits = [
            audit(
                source,
                decode=decode,
                report=lambda done, total, name=source.name: report(
                    f"opening images of {name}", done, total, ""
                ),
            )
            for source in sources
        ]
    print(markdown(audits, " ".join(["mmedit", *sys.argv[1:]])), end="")


@app.command()
def table(
    runs: RunsArgument,
    format: Annotated[
        str | None,
        typer.Option(
            "--format", help="md, latex, csv, html or json; in a terminal, blocks that fit it."
        ),
    ] = None,
    columns: Annotated[
        str, typer.Option("--columns", help="default (tok and EM), generation or locality")
    ] = "default",
    published: Annotated[
        str | None,
        typer.Option("--published", help="Values to put beside: mmedit, liveedit or unike."),
    ] = None,
    published_model: Annotated[
        str | None, typer.Option(help="The paper's model; by default, the one named as --vlm.")
    ] = None,
    published_dataset: Annotated[
        str | None, typer.Option(help="The paper's dataset; by default, named as --dataset.")
    ] = None,
) -> None:
    """Make the paper's table from the records of one or more runs: a row per run and editor."""
    from mmedit.bench.formats import FORMATS, render
    from mmedit.bench.published import compare_with_published, load_published
    from mmedit.bench.run_folders import read_runs
    from mmedit.bench.tables import method_table
    from mmedit.table_view import table_view

    if format is not None and format not in FORMATS:
        raise UnknownNameError("table format", format, FORMATS)
    paper = load_published(published) if published else None
    runs_read = read_runs(runs)
    datasets = sorted({origin.dataset for origin in runs_read.origins.values()})
    if len(datasets) > 1:
        err.print(
            f"the rows are of different datasets ({', '.join(datasets)}), and the best of a column "
            "is the best of all rows; rather make a table of each"
        )
    frame = method_table(
        runs_read.records,
        columns=columns,
        training_seconds=runs_read.training_seconds or None,
        notes=runs_read.notes,
    )
    beside = paper and compare_with_published(
        frame, paper, runs_read.origins, model=published_model, dataset=published_dataset
    )
    if format is None and out.is_terminal:
        out.print(table_view(frame, beside, width=out.width))
    else:
        print(render(frame, format or "md", beside), end="")


@app.command("compare")
def compare_runs(
    first: Annotated[str, typer.Argument(metavar="RUN_A", help="A run folder, or RUN:EDITOR.")],
    second: Annotated[str, typer.Argument(metavar="RUN_B", help="Another, or RUN:EDITOR.")],
    show: Annotated[int, typer.Option(min=0, help="At most so many edits in words.")] = 5,
    columns: Annotated[
        str, typer.Option("--columns", help="default (tok and EM), generation or locality")
    ] = "default",
) -> None:
    """Compare two methods edit by edit: paired differences, and the edits where they disagree."""
    from mmedit.bench.compare import compare
    from mmedit.bench.run_folders import matched_methods
    from mmedit.table_view import comparison_view

    for ours, theirs in matched_methods(first, second):
        out.print(comparison_view(compare(ours, theirs, columns=columns), show=show))


@app.command()
def plot(
    runs: RunsArgument,
    out_folder: Annotated[Path, typer.Option("--out", help="Where the SVG and PNG files go.")],
) -> None:
    """Draw the trade-off, every split, and both metrics by answer length, as SVG and PNG."""
    from mmedit.bench.plots import write_plots
    from mmedit.bench.run_folders import read_runs

    for path in write_plots(read_runs(runs).records, out_folder):
        out.print(f"written: {path}", soft_wrap=True)


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
        lambda: _load_vlm(vlm_file),
        cases,
        _training_cases("easyvqa", None, seed, ()),
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


def _load_vlm(vlm_file: Any) -> VLM:
    import transformers

    from mmedit.config import load_vlm_of

    transformers.utils.logging.disable_progress_bar()
    with err.status("loading the VLM"):
        return load_vlm_of(vlm_file)


def _training_cases(
    dataset: str, limit: int | None, seed: int, overrides: Sequence[str]
) -> TrainingCases:
    from mmedit.config import load_cases

    return lambda report: load_cases(
        dataset, "train", limit=limit, seed=seed, overrides=overrides, report=report
    )


def _fit(
    label: str,
    editor: Editor,
    vlm: VLM,
    training_cases: TrainingCases,
    seed: int,
    validation: int = 0,
    folder: Path | None = None,
) -> tuple[int, float]:
    """Number of cases, and seconds of fitting. The last `validation` cases are kept aside."""
    from mmedit.errors import ConfigError

    with progress(err) as report:
        cases = training_cases(
            lambda done, total: report("reading training cases", done, total, "")
        )
        if validation >= len(cases):
            raise ConfigError(
                f"--validation {validation} leaves none of the {len(cases)} cases for training"
            )
        trained_on = len(cases) - validation
        begun = time.perf_counter()
        editor.fit(
            vlm,
            cases[:trained_on],
            validation=cases[trained_on:],
            seed=seed,
            report=lambda done, total, figures: report(f"fitting {label}", done, total, figures),
            folder=folder,
        )
    return trained_on, time.perf_counter() - begun


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


REPORTED = 8
"""Edits shown with pictures in the report."""

if __name__ == "__main__":
    main()
