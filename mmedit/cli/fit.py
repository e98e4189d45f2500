"""Training an editor, and sharing it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmedit.cases import EditCase
from mmedit.catalog import require_known
from mmedit.cli.console import (
    DatasetOption,
    EditorOption,
    SeedOption,
    SetOption,
    VlmOption,
    app,
    err,
    examples,
    folder,
    say,
)
from mmedit.cli.progress import show_progress, show_status
from mmedit.errors import ConfigError
from mmedit.progress import named

if TYPE_CHECKING:
    from mmedit.config_files import VLMFile
    from mmedit.editors.base import Editor
    from mmedit.settings import Overrides
    from mmedit.vlm.interface import VLM


@app.command(
    epilog=examples(
        "mmedit fit --editor mend --out editors/mend",
        "mmedit fit --editor mend --validation 100 --out editors/mend",
        "mmedit fit --editor mend --out editors/mend --resume",
        "accelerate launch -m mmedit fit --editor serac --out editors/serac",
    )
)
def fit(
    out_folder: Annotated[
        Path,
        typer.Option("--out", parser=folder, metavar="DIR", help="Folder for the fitted editor."),
    ],
    vlm: VlmOption = "embedded",
    editor: EditorOption = "mend",
    dataset: DatasetOption = "easyvqa",
    limit: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Use at most this many training cases.", show_default="all"
        ),
    ] = None,
    validation: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Training cases that are kept aside to choose the best checkpoint.",
        ),
    ] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the last checkpoint in --out.")
    ] = False,
    settings: SetOption = None,
    seed: SeedOption = 0,
) -> None:
    """Train an editor that learns, and save it; then use `mmedit bench --editor DIR`."""
    from mmedit.config import load_editors, load_vlm_file, require_trainable
    from mmedit.processes import is_main_process, number_of_processes
    from mmedit.storage import make_folder
    from mmedit.training.resume import seconds_spent

    overrides = read_settings(vlm, editor, settings, without=("generation", "vlm.batch_size"))
    vlm_file = load_vlm_file(vlm, overrides.of("vlm"))
    [method] = load_editors([editor], vlm, overrides).values()
    _require_unfitted(method, editor)
    _require_cases_left(validation, limit)
    require_trainable(method, dataset, overrides, validation=validation)
    make_folder(out_folder)
    done = _steps_to_continue(out_folder, resume=resume)
    cases = training_cases(dataset, overrides, limit=limit, seed=seed)
    _require_cases_left(validation, len(cases))
    loaded = load_vlm(vlm, vlm_file)
    method.require_fits(loaded)
    earlier = seconds_spent(out_folder)
    method, seconds = fit_editor(
        method, loaded, cases, validation=validation, seed=seed, directory=out_folder
    )
    if is_main_process():
        method.save(out_folder)
    spent = f"{earlier + seconds:.0f} s" + (f" (from step {done})" if done else "")
    together = f" by {number_of_processes()} processes" if number_of_processes() > 1 else ""
    number = len(cases) - validation
    say(f"{method.label} was fitted on {number} cases{together} in {spent} -> {out_folder}")
    say(f"next: mmedit bench --vlm {vlm} --editor {out_folder} --dataset {dataset} --out runs/x")


@app.command(
    epilog=examples(
        "mmedit push editors/mend me/mend-embedded --private", "mmedit push edits/dog me/dog"
    )
)
def push(
    path: Annotated[
        Path,
        typer.Argument(
            parser=folder, metavar="DIR", help="The folder of a fitted editor, or of an edit."
        ),
    ],
    repository: Annotated[
        str, typer.Argument(metavar="OWNER/NAME", help="Its repository on the hub.")
    ],
    private: Annotated[
        bool, typer.Option("--private", help="Let only the owner see the repository.")
    ] = False,
) -> None:
    """Share a fitted editor or an edit on the Hugging Face hub.

    `--editor OWNER/NAME` and `--edit OWNER/NAME` then fetch it. The images of an edit's requests
    go with it.
    """
    from mmedit.vlm.edit_files import is_edit

    if is_edit(path):
        from mmedit.edits.loading import push_edit as upload
    else:
        from mmedit.editors.saved import push as upload
    say(f"pushed: {upload(path, repository, private=private)}")


def silence_transformers() -> None:
    """Hide the progress bars of transformers, which mix with those of the command line."""
    import transformers

    transformers.utils.logging.disable_progress_bar()


def load_vlm(name: str, file: VLMFile) -> VLM:
    """Load the VLM that a file of settings describes, without bars of its own."""
    from mmedit.config import load_vlm_of

    silence_transformers()
    with show_status(err, "loading the VLM"):
        return load_vlm_of(name, file)


def read_settings(
    vlm: str, editor: str, settings: Sequence[str] | None, *, without: Sequence[str]
) -> Overrides:
    """Read `--set`, after a check of the names that takes milliseconds. Raises ConfigError for the
    settings that the command is `without` (`require_used`).
    """
    from mmedit.config import read_overrides
    from mmedit.config_checks import require_used

    require_known("vlm", vlm)
    require_known("editor", editor)
    overrides = read_overrides(settings or ())
    require_used(overrides, [editor], without=without)
    return overrides


def training_cases(
    dataset: str, overrides: Overrides, *, limit: int | None = None, seed: int
) -> Sequence[EditCase]:
    """Read the training cases of a dataset, with a progress bar."""
    from mmedit.config import read_cases

    with show_progress(err) as progress:
        reading = named(progress, "reading training cases")
        settings = overrides.of("dataset")
        return read_cases(dataset, "train", settings, limit=limit, seed=seed, progress=reading)


def fit_editor(
    editor: Editor,
    vlm: VLM,
    cases: Sequence[EditCase],
    *,
    validation: int = 0,
    seed: int,
    directory: Path | None = None,
) -> tuple[Editor, float]:
    """Return the fitted editor, and the seconds of fitting. Raises DataError, before anything is
    fitted, if the VLM cannot be asked a case.

    The last `validation` cases choose the best checkpoint. Checkpoints are in `directory`.
    """
    from mmedit.bench.rows import require_sound_rows
    from mmedit.editors.fitting import Fitting, progress_of

    _require_cases_left(validation, len(cases))
    number = len(cases) - validation
    begun = time.perf_counter()
    with show_progress(err) as progress:
        require_sound_rows(vlm, cases, progress=named(progress, "checking training cases"))
        fitted = editor.fit(
            vlm,
            Fitting(
                cases[:number],
                validation=cases[number:],
                seed=seed,
                progress=progress_of(editor.label, progress),
                folder=directory,
            ),
        )
    return fitted, time.perf_counter() - begun


def _require_unfitted(method: Editor, name: str) -> None:
    if not method.needs_fit:
        raise ConfigError(
            f"{name} has nothing to learn; use it directly: mmedit bench --editor {name}"
        )
    if method.is_fitted:
        raise ConfigError(f"{name} is already fitted; name a method, for example --editor mend")


def _require_cases_left(validation: int, cases: int | None) -> None:
    if cases is not None and validation >= cases:
        raise ConfigError(f"--validation {validation} leaves none of the {cases} cases to train on")


def _steps_to_continue(directory: Path, *, resume: bool) -> int:
    """Return how many steps of an earlier training are in the folder. Raises ConfigError."""
    from mmedit.training.resume import steps_done

    done = steps_done(directory)
    if done and not resume:
        raise ConfigError(
            f"{directory} holds a training of {done} steps; continue it with --resume, or choose "
            "another --out"
        )
    if resume and not done:
        say(f"{directory} holds no checkpoint: training starts from the beginning", to=err)
    return done
