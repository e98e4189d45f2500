"""The playground in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmedit.cli.console import (
    DatasetOption,
    SeedOption,
    SetOption,
    VlmOption,
    app,
    err,
    examples,
    folder,
    say,
)
from mmedit.cli.fit import load_vlm
from mmedit.cli.progress import show_status
from mmedit.errors import ConfigError

if TYPE_CHECKING:
    from mmedit.settings import Overrides
    from mmedit.vlm.interface import VLM

PORT = 7860


@app.command(
    epilog=examples(
        "mmedit play",
        "mmedit play --edit edits/cat-is-dog",
        "mmedit play --vlm qwen2.5-vl-7b --editor editors/mend --set vlm.dtype=bfloat16",
    )
)
def play(
    vlm: VlmOption = "embedded",
    edit: Annotated[
        list[Path] | None,
        typer.Option(
            "--edit", metavar="DIR", help="Begin with this saved edit (repeatable)."
        ),
    ] = None,
    editor: Annotated[
        list[str] | None,
        typer.Option(
            "--editor",
            metavar="DIR",
            help="Offer this fitted editor too: a folder or a hub id (repeatable).",
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
    from mmedit.play.server import bound_socket, require_gradio, run

    require_gradio()
    overrides = _settings(settings)
    vlm_file = load_vlm_file(vlm, overrides.of("vlm"))
    opened = bound_socket(port)
    cases = read_cases(dataset, "test", overrides.of("dataset"), limit=PICTURES, seed=seed)
    loaded = _with_edits(load_vlm(vlm, vlm_file), edit or ())
    with show_status(err, "preparing the page"):
        ...
