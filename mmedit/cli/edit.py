"""One edit; training an editor, and sharing it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmedit.cli.console import (
    DatasetOption,
    EditorOption,
    SeedOption,
    SetOption,
    VlmOption,
    app,
    err,
    out,
)
from mmedit.cli.progress import show_progress
from mmedit.progress import named

if TYPE_CHECKING:
    from mmedit.bench.plan import TrainingCases
    from mmedit.editors.base import Editor
    from mmedit.vlm.interface import VLM
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from mmedit.cases import Example, Probe

if TYPE_CHECKING:  # adapters import torch, and `mmedit table` does without
    pass


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
    from mmedit.cases import Example
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
    loaded = load_vlm(vlm_file)
    if method.needs_fit and not method.is_fitted:
        cases_to_fit = training_cases_of(dataset, None, seed, overrides)
        method, _, _ = _fit(label, method, loaded, cases_to_fit, seed)
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
    from mmedit.config import check_cases, load_editor, load_vlm_file
    from mmedit.errors import ConfigError
    from mmedit.processes import is_main_process, number_of_processes
    from mmedit.storage import make_folder
    from mmedit.training.resume import seconds_spent, steps_done

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
    loaded = load_vlm(vlm_file)
    earlier = seconds_spent(out_folder)
    cases = training_cases_of(dataset, limit, seed, overrides)
    fitted, number, seconds = _fit(label, method, loaded, cases, seed, validation, out_folder)
    if is_main_process():
        fitted.save(out_folder)
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
    from mmedit.editors.saved import push as upload

    out.print(f"pushed: {upload(editor, repository, private=private)}", soft_wrap=True)


def load_vlm(vlm_file: Any) -> VLM:
    """The VLM of a file of settings, without bars of its own."""
    import transformers

    from mmedit.config import load_vlm_of

    transformers.utils.logging.disable_progress_bar()
    with err.status("loading the VLM"):
        return load_vlm_of(vlm_file)


def training_cases_of(
    dataset: str, limit: int | None, seed: int, overrides: Sequence[str]
) -> TrainingCases:
    """Reads the training cases when they are wanted."""
    from mmedit.config import load_cases

    return lambda progress: load_cases(
        dataset, "train", limit=limit, seed=seed, overrides=overrides, progress=progress
    )


def _fit(
    label: str,
    editor: Editor,
    vlm: VLM,
    training_cases: TrainingCases,
    seed: int,
    validation: int = 0,
    folder: Path | None = None,
) -> tuple[Editor, int, float]:
    """Return the fitted editor, the number of its cases, and the seconds that it took. The last
    `validation` cases are kept aside.
    """
    from mmedit.editors.base import Fitting
    from mmedit.errors import ConfigError

    with show_progress(err) as progress:
        cases = training_cases(named(progress, "reading training cases"))
        if validation >= len(cases):
            raise ConfigError(
                f"--validation {validation} leaves none of the {len(cases)} cases for training"
            )
        trained_on = len(cases) - validation
        begun = time.perf_counter()
        fitting = Fitting(
            cases[:trained_on],
            validation=cases[trained_on:],
            seed=seed,
            progress=named(progress, f"fitting {label}"),
            folder=folder,
        )
        fitted = editor.fit(vlm, fitting)
    return fitted, trained_on, time.perf_counter() - begun


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
