"""One edit, with the answers before and after."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from mmedit.cases import EditCase, Example, Probe
from mmedit.cli.console import (
    DatasetOption,
    EditorOption,
    SeedOption,
    SetOption,
    VlmOption,
    app,
    err,
    examples,
    out,
    say,
)
from mmedit.cli.fit import fit_editor, load_vlm, read_settings, training_cases
from mmedit.errors import DataError

if TYPE_CHECKING:  # imports torch
    from mmedit.adapters.generation import Answer

UNRELATED = (
    (0, Probe.TEXT_LOCALITY),
    (0, Probe.IMAGE_LOCALITY),
    (1, Probe.IMAGE_LOCALITY),
)
"""The unrelated questions that an edit is shown with: the number of the case, and its probe."""
UNUSED = (
    "vlm.batch_size",
    "generation.fluency_tokens",
    "generation.clip_score",
    "generation.judge",
)
"""Settings that have no effect on one edit."""


def _not_empty(value: str) -> str:
    if not value.strip():
        raise typer.BadParameter("the text is empty")
    return value


@app.command(
    epilog=examples(
        'mmedit edit --image cat.png --prompt "What animal is this?" --target dog',
        "mmedit edit --editor editors/mend --image cat.png --prompt ... --target ...",
        'mmedit edit --prompt "The capital of France is" --target Rome --set editor.steps=30',
    )
)
def edit(
    prompt: Annotated[
        str, typer.Option(metavar="TEXT", help="The question, word for word.", callback=_not_empty)
    ],
    target: Annotated[
        str, typer.Option(metavar="TEXT", help="The answer that the edited VLM should give.")
    ],
    image: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The image that the question is about.", show_default="none"
        ),
    ] = None,
    vlm: VlmOption = "embedded",
    editor: EditorOption = "ft",
    dataset: DatasetOption = "easyvqa",
    settings: SetOption = None,
    seed: SeedOption = 0,
) -> None:
    """Make one edit, and print the answers before and after.

    Also asks up to three unrelated questions of --dataset. Nothing is saved.
    """
    from mmedit.bench.base_outputs import are_finite, require_finite
    from mmedit.bench.generation import length_for
    from mmedit.config import load_editors, load_vlm_file, read_cases, require_trainable
    from mmedit.images import open_image

    overrides = read_settings(vlm, editor, settings, without=UNUSED)
    request = Example(
        prompt=prompt, target=target, image=open_image(image) if image is not None else None
    )
    vlm_file = load_vlm_file(vlm, overrides.of("vlm"))
    [method] = load_editors([editor], vlm, overrides).values()
    cases = read_cases(dataset, "test", overrides.of("dataset"), limit=2, seed=seed)
    asked = [request, *_unrelated(cases)]
    require_trainable(method, dataset, overrides)
    if method.needs_fit and not method.is_fitted:
        say(_fit_first(editor, vlm, method.label), to=err)
    loaded = load_vlm(vlm, vlm_file)
    length = length_for(loaded, asked)
    for fault in loaded.frozen.faults(asked, new_tokens=length):
        if fault is not None:
            raise DataError(fault)
    require_finite(loaded, request)
    if method.needs_fit and not method.is_fitted:
        training = training_cases(dataset, overrides, seed=seed)
        method, _ = fit_editor(method, loaded, training, seed=seed)
    begun = time.perf_counter()
    edited = method.apply(loaded, [request])
    seconds = time.perf_counter() - begun
    before = loaded.answer(asked, max_new_tokens=length)
    after = edited.answer(asked, max_new_tokens=length)
    out.print(answers_view(method.label, asked, before, after))
    if broken := are_finite(edited, asked).count(False):
        say(
            f"\n{method.label} broke the VLM: NaN or infinite outputs on {broken} of {len(asked)} "
            "questions, so their answers mean nothing. Make a weaker edit (--set editor.lr=..., "
            "editor.steps=...).",
            to=err,
        )
    say(
        f"\n{method.label} took {seconds:.2f} s. The VLM itself is unchanged; the edit exists only "
        "in the edited copy, which is not saved."
    )


def _unrelated(cases: Sequence[EditCase]) -> list[Example]:
    """Return the unrelated questions that the cases have; a minimal dataset has none."""
    return [
        cases[number].probes[probe][0]
        for number, probe in UNRELATED
        if number < len(cases) and probe in cases[number].probes
    ]


def _fit_first(editor: str, vlm: str, label: str) -> str:
    return (
        f"{label} must be fitted before it can edit. It is fitted now, for this edit alone, and "
        f"then thrown away. To keep it: mmedit fit --editor {editor} --vlm {vlm} --out "
        f"editors/{editor}; then mmedit edit --editor editors/{editor} ..."
    )


def answers_view(
    label: str, asked: Sequence[Example], before: Sequence[Answer], after: Sequence[Answer]
) -> RenderableType:
    """Return a table of one edit: the answers to the request, then to unrelated questions."""
    table = Table(box=None, pad_edge=False)
    for heading in ("", "question", "before", f"after {escape(label)}", ""):
        table.add_column(heading)
    for number, (example, old, new) in enumerate(zip(asked, before, after, strict=True)):
        about = "" if example.image is None else " (image)" if number == 0 else " (another image)"
        verdict = (
            _edit_verdict(new.text, example.target)
            if number == 0
            else _local_verdict(old.text, new.text)
        )
        sort = "edit" if number == 0 else "unrelated"
        table.add_row(sort, escape(example.prompt + about), _shown(old), _shown(new), verdict)
    return table


def _shown(answer: Answer) -> str:
    return escape(answer.text) + (" …" if answer.is_cut_off else "")


def _edit_verdict(answer: str, target: str) -> str:
    """Compare as the score `exact` does: neither case nor marks around the answer count."""
    from mmedit.metrics.generation import exact

    is_right = bool(exact(answer, [target]))
    return "[green]as expected" if is_right else f"[red]expected: {escape(target)}"


def _local_verdict(before: str, after: str) -> str:
    return "[green]unchanged" if before == after else "[red]changed"
