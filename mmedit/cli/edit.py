"""Edits made, shown with the answers before and after, and kept."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.filesize import decimal

from mmedit.cases import Example
from mmedit.cli.console import (
    DatasetOption,
    EditorOption,
    SeedOption,
    SetOption,
    app,
    err,
    examples,
    folder,
    out,
    say,
)
from mmedit.cli.edit_folders import OptionalVlmOption, edit_folders, vlm_of, with_edits
from mmedit.cli.fit import fit_editor, load_vlm, read_settings, training_cases
from mmedit.storage import size_of

if TYPE_CHECKING:  # imports torch
    from mmedit.vlm.edit import Edit

UNUSED = ("generation.fluency_tokens", "generation.clip_score", "generation.judge")
"""Settings that have no effect on this command."""
UNCHANGED = "The VLM itself is unchanged."
NOT_KEPT = "The edit exists only in the edited copy, which is not saved; --out DIR keeps it."


def _not_empty(value: str | None) -> str | None:
    if value is not None and not value.strip():
        raise typer.BadParameter("the text is empty")
    return value


@app.command(
    epilog=examples(
        'mmedit edit --image cat.png --prompt "What animal is this?" --target dog --out edits/dog',
        "mmedit edit --requests facts.json --editor editors/mend --out edits/facts",
        "mmedit edit --requests facts.json --together --on edits/dog --out edits/facts",
        'mmedit edit --prompt "The capital of France is" --target Rome --set editor.steps=30',
        'mmedit edit --editor editors/rome --prompt "The capital of France is" --target Rome '
        "--subject France",
    )
)
def edit(
    prompt: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="The question, word for word.", callback=_not_empty,
            show_default="none",
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="The answer that the edited VLM should give.",
            show_default="none",
        ),
    ] = None,
    image: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The image that the question is about.", show_default="none"
        ),
    ] = None,
    subject: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="What the question is about, as it stands in it: ROME, MEMIT and AlphaEdit edit "
            "there.",
            callback=_not_empty, show_default="none",
        ),
    ] = None,
    requests: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Many edits: a JSON list of records with src (the question), alt (the answer) "
            "and image.",
            show_default="none",
        ),
    ] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option(
            parser=folder, metavar="DIR", help="A folder of the images of --requests (repeatable).",
            show_default="the folder of the file",
        ),
    ] = None,
    together: Annotated[
        bool,
        typer.Option(
            "--together",
            help="Make one edit of all --requests; otherwise one edit each, one after another.",
        ),
    ] = False,
    on: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR", help="Start from an earlier edit, a folder or a hub id (repeatable).",
            show_default="the base model", autocompletion=edit_folders,
        ),
    ] = None,
    out_folder: Annotated[
        Path | None,
        typer.Option(
            "--out", parser=folder, metavar="DIR", help="Keep the new edits in this folder.",
            show_default="they are not kept",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an edit that is in --out.")
    ] = False,
    vlm: OptionalVlmOption = None,
    editor: EditorOption = "ft",
    save_editor: Annotated[
        Path | None,
        typer.Option(
            parser=folder, metavar="DIR", help="Keep the editor that must be fitted first.",
            show_default="it is not kept",
        ),
    ] = None,
    dataset: DatasetOption = "easyvqa",
    settings: SetOption = None,
    seed: SeedOption = 0,
) -> None:  # fmt: skip
    """Make an edit or many, print the answers before and after, and keep the edits.

    Also asks up to three unrelated questions of --dataset. With --out the edits are kept in a
    folder, which `mmedit ask` and `mmedit edits` read. A long sequence that was stopped goes on
    when the same command is given again.
    """
    from mmedit.cli import kept_editors, making
    from mmedit.config import load_editors, load_vlm_file, read_cases, require_trainable
    from mmedit.edits.loading import load_edit
    from mmedit.edits.sequence import plan_of
    from mmedit.processes import is_main_process
    from mmedit.vlm.edit_files import write_edits

    given = making.given_request(prompt, target, image, subject)
    asked_for = making.requests_of(given, requests, images or (), together=together)
    wanted = making.Wanted(
        requests=asked_for, together=together, place=out_folder, overwrite=overwrite
    )
    wanted.require_place(on or ())
    earlier = [load_edit(path) for path in on or ()]
    vlm = vlm or vlm_of(earlier)
    overrides = read_settings(vlm, editor, settings, without=UNUSED)
    vlm_file = load_vlm_file(vlm, overrides.of("vlm"))
    [method] = load_editors([editor], vlm, overrides).values()
    others = read_cases(dataset, "test", overrides.of("dataset"), limit=2, seed=seed)
    require_trainable(method, dataset, overrides)
    must_fit = method.needs_fit and not method.is_fitted
    plan = plan_of(
        method,
        asked_for,
        vlm=vlm_file.model_dump(mode="json"),
        on=[[edit.name, edit.made] for edit in earlier],
        data=[dataset, overrides.of("dataset"), seed] if must_fit else None,
    )
    begun = making.was_begun(wanted, plan)
    editor_folder = kept_editors.editor_folder(method, editor, vlm, save_editor, begun=begun)
    unfinished = making.unfinished_sequence(wanted, plan)
    loaded = with_edits(load_vlm(vlm, vlm_file), earlier)
    rows = max(vlm_file.batch_size, making.AT_ONCE)
    asked = making.ask_before(loaded, asked_for, making.unrelated(others), batch_size=rows)
    if editor_folder is not None and kept_editors.is_kept(editor_folder):
        method = kept_editors.kept_editor(method, editor_folder)
    elif must_fit:
        training = training_cases(dataset, overrides, seed=seed)
        method, _ = fit_editor(method, loaded.base, training, seed=seed, directory=editor_folder)
        if editor_folder is not None and is_main_process():
            method.save(editor_folder)
            say(f"The fitted editor is kept in {editor_folder}", to=err)
    edited = making.edit_all(method, loaded, wanted, unfinished)
    new, cut_off, broken = making.ask_after(asked, edited)
    _print_answers(method.label, new, cut_off, broken)
    if out_folder is None:
        say(NOT_KEPT)
        return
    if not is_main_process():
        return
    write_edits(out_folder, new, loaded.identity, vlm_name=loaded.name, overwrite=overwrite)
    if unfinished is not None:
        unfinished.discard()
    _print_kept(out_folder, new, on or (), asked_for[0])


def _print_answers(label: str, edits: Sequence[Edit], cut_off: set[str], broken: int) -> None:
    from mmedit.cli.edit_views import answers_view

    seen = [one for edit in edits for one in edit.seen]
    out.print(answers_view(label, seen, cut_off=cut_off))
    if broken:
        say(
            f"\n{label} broke the VLM: NaN or infinite outputs on {broken} of {len(seen)} "
            "questions, so their answers mean nothing. Make a weaker edit (--set editor.lr=..., "
            "editor.steps=...).",
            to=err,
        )
    say(f"\n{label} took {sum(edit.seconds or 0 for edit in edits):.2f} s. {UNCHANGED}")


def _print_kept(
    place: Path, edits: Sequence[Edit], earlier: Sequence[str], request: Example
) -> None:
    """Say where the edits are, and the command that asks the whole stack."""
    number = "1 edit" if len(edits) == 1 else f"{len(edits):,} edits"
    say(f"kept: {place} ({number}, {decimal(size_of(place.expanduser()))})")
    stacked = " ".join(f"--edit {shlex.quote(str(path))}" for path in (*earlier, place))
    image = f" --image {shlex.quote(str(request.image))}" if request.image else ""
    say(f"next: mmedit ask {stacked}{image} {shlex.quote(request.prompt)}")
