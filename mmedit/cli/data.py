"""What is in a benchmark's files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from mmedit.cli.console import app, err
from mmedit.terminal import progress

data = typer.Typer(no_args_is_help=True, help="What is in a benchmark's files.")
app.add_typer(data, name="data")


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
