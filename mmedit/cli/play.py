"""The playground in the browser."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmedit.cli.console import (
    DatasetOption,
    SeedOption,
    SetOption,
    app,
    err,
    examples,
    folder,
    say,
)
from mmedit.cli.edit_folders import OptionalVlmOption, edit_folders, vlm_of, with_edits
from mmedit.cli.fit import load_vlm
from mmedit.cli.progress import show_status

if TYPE_CHECKING:
    from mmedit.settings import Overrides

PORT = 7860
UNUSED = ("editor", "generation", "vlm.batch_size")
"""Settings that have no effect on the playground."""


@app.command(
    epilog=examples(
        "mmedit play",
        "mmedit play --edit edits/cat-is-dog",
        "mmedit play --vlm qwen2.5-vl-7b --editor editors/mend --set vlm.dtype=bfloat16",
    )
)
def play(
    vlm: OptionalVlmOption = None,
    edit: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR",
            help="Begin with this saved edit, a folder or a hub id (repeatable).",
            show_default="the base model",
            autocompletion=edit_folders,
        ),
    ] = None,
    editor: Annotated[
        list[str] | None,
        typer.Option(
            "--editor",
            metavar="DIR",
            help="Offer this fitted editor too, a folder or a hub id (repeatable).",
            show_default="none",
        ),
    ] = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="N", help="The port; 0 takes a free one.")
    ] = PORT,
    edits_dir: Annotated[
        Path,
        typer.Option(parser=folder, metavar="DIR", help="Folder of saved edits."),
    ] = Path("edits"),
    exports_dir: Annotated[
        Path,
        typer.Option(parser=folder, metavar="DIR", help="Folder of exported models."),
    ] = Path("exports"),
    editors_dir: Annotated[
        Path,
        typer.Option(
            parser=folder, metavar="DIR", help="Folder that is looked through for fitted editors."
        ),
    ] = Path("editors"),
    dataset: DatasetOption = "easyvqa",
    settings: SetOption = None,
    seed: SeedOption = 0,
) -> None:
    """Open the playground: ask, edit, and see what else changed, in the browser.

    The page is on this machine alone and loads nothing from the network. It needs Gradio: pip
    install 'mmedit[play]'.
    """
    from mmedit.config import load_vlm_file, read_cases
    from mmedit.edits.loading import load_edit
    from mmedit.play.actions import Playground
    from mmedit.play.folders import Folders
    from mmedit.play.questions import CASES, Pictures
    from mmedit.play.server import (
        application,
        bound_socket,
        private_uploads,
        require_gradio,
        serve,
    )

    require_gradio()
    overrides = _read_settings(settings or ())
    edits = [load_edit(path) for path in edit or ()]
    vlm = vlm or vlm_of(edits)
    vlm_file = load_vlm_file(vlm, overrides.of("vlm"))
    cases = read_cases(dataset, "test", overrides.of("dataset"), limit=CASES, seed=seed)
    with closing(bound_socket(port)) as opened, private_uploads():
        playground = Playground(
            start=with_edits(load_vlm(vlm, vlm_file), edits),
            pictures=Pictures(cases),
            folders=Folders(edits_dir, exports_dir),
            editors_dir=editors_dir,
            editors=tuple(editor or ()),
            overrides=overrides,
            vlm_name=vlm,
        )
        playground.check_editors()
        with show_status(err, "preparing the page"):
            page = application(playground, opened.getsockname()[1])
        serve(page, opened, _say_ready)


def _read_settings(settings: Sequence[str]) -> Overrides:
    """Read `--set`: of the VLM, of the dataset, and of methods by name (ft.steps=30)."""
    from mmedit.config import read_overrides
    from mmedit.config_checks import require_used
    from mmedit.play.methods import READY

    overrides = read_overrides(settings)
    require_used(overrides, READY, without=UNUSED)
    return overrides


def _say_ready(address: str) -> None:
    say(f"the playground is ready: open {address} in a browser. Ctrl+C ends it.")
