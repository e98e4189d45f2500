"""Collecting the statistics of methods that locate facts: second moments of what weights take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer
from rich.table import Table

from mmedit.cases import Split
from mmedit.cli.console import (
    DatasetOption,
    SeedOption,
    SetOption,
    VlmOption,
    app,
    err,
    examples,
    folder,
    one_of,
    out,
    say,
)
from mmedit.cli.progress import show_progress
from mmedit.errors import ConfigError, shortened
from mmedit.progress import named

if TYPE_CHECKING:  # they import torch
    from mmedit.editors.closed_form.moments import SecondMoments
    from mmedit.editors.closed_form.statistics import SavedMoments
    from mmedit.vlm.interface import VLM

ETA = 0.01
"""Share of the trace that the null space in the table holds, at most."""
WIDEST = 4096
"""Inputs up to which the null space is counted: its cost grows with their third power."""
HEADINGS = (
    "site", "in", "tr C/in\ntext", "tr C/in\nimage", "rank\ntext", "rank\nimage", "null\nspace",
    "enough",
)  # fmt: skip
NOTHING = "-"


@app.command(
    epilog=examples(
        "mmedit stats --vlm embedded --dataset easyvqa",
        "mmedit stats --vlm photo --dataset grocery --set dataset.root=DIR --layers 3,4,5",
        "mmedit stats --site language_model.model.decoder.layers.2.fc2 --limit 500",
    )
)
def stats(
    vlm: VlmOption = "embedded",
    dataset: DatasetOption = "easyvqa",
    split: Annotated[
        str,
        typer.Option(
            "--split",
            metavar="SPLIT",
            help="train or test. Editors are fitted on train.",
            callback=one_of("split", get_args(Split)),
        ),
    ] = "train",
    limit: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Use at most this many cases.", show_default="all"),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            "--layers",
            metavar="N,N,...",
            help="Decoder layers, from 0 on: the weight that ends the feed-forward block of each.",
            show_default="all",
        ),
    ] = None,
    sites: Annotated[
        list[str] | None,
        typer.Option(
            "--site",
            metavar="NAME",
            help="A Linear weight of the language model by its name, in place of --layers "
            "(repeatable).",
        ),
    ] = None,
    out_folder: Annotated[
        Path | None,
        typer.Option(
            "--out",
            parser=folder,
            metavar="DIR",
            help="Folder for the statistics. Editors read the default one.",
            show_default="statistics, in the folder MMEDIT_HOME or ~/.cache/mmedit",
        ),
    ] = None,
    settings: SetOption = None,
    seed: SeedOption = 0,
) -> None:
    """Collect second moments E[k k^T] of what weights of the language model take.

    ROME, MEMIT and AlphaEdit need them so that an edit changes little else. They are collected over
    the prompts of requests and the text-locality questions, answered by the base model, for text
    and image tokens apart. What is in the folder already is not computed again, so fitting an
    editor on the same cases takes them from there. The same command continues one that was stopped.
    """
    from mmedit.cli.fit import load_vlm
    from mmedit.config import load_vlm_file, read_cases, read_overrides
    from mmedit.config_checks import require_used

    numbers = _numbers(layers)
    if numbers and sites:
        raise ConfigError("--layers and --site were both given; give one of them")
    overrides = read_overrides(settings or ())
    require_used(overrides, (), without=("editor", "generation", "vlm.batch_size"))
    vlm_file = load_vlm_file(vlm, overrides.of("vlm"))
    with show_progress(err) as progress:
        reading = named(progress, f"reading {split} cases")
        values = overrides.of("dataset")
        cases = read_cases(
            dataset, cast("Split", split), values, limit=limit, seed=seed, progress=reading
        )
    from mmedit.editors.closed_form.statistics import (
        questions_of,
        second_moments,
        statistics_folder,
    )
    from mmedit.storage import make_folder

    place = out_folder or statistics_folder()
    make_folder(place)
    loaded = load_vlm(vlm, vlm_file)
    chosen = _sites(loaded, numbers, sites or ())
    first = [case.request for case in cases[:1]]
    loaded.observe(first, chosen)  # a wrong site is found before any question is answered
    with show_progress(err) as progress:
        questions = questions_of(loaded, cases, progress=progress, folder=place)
        moments = second_moments(loaded, questions, chosen, progress=progress, folder=place)
    _print(moments)
    say(f"{len(questions):,} questions of {len(cases):,} cases -> {moments.folder}/")


def _numbers(layers: str | None) -> list[int]:
    """Read numbers with commas between them. Raises ConfigError."""
    try:
        numbers = [int(part) for part in layers.split(",")] if layers is not None else []
    except ValueError:
        numbers = [-1]
    if any(number < 0 for number in numbers):
        raise ConfigError(
            f"--layers is {shortened(layers)}; expected numbers of layers with commas between "
            "them, for example --layers 3,4,5"
        )
    return numbers


def _sites(vlm: VLM, layers: Sequence[int], sites: Sequence[str]) -> list[str]:
    """Return the names of the weights. Raises ConfigError, SiteError."""
    found = vlm.value_sites
    if sites or not found:
        if not sites:
            raise ConfigError(
                "the feed-forward blocks of this VLM cannot be told apart; name weights with --site"
            )
        return list(dict.fromkeys(sites))
    for layer in layers:
        if layer >= len(found):
            raise ConfigError(
                f"--layers names layer {layer}; this VLM has {len(found)} decoder layers, 0 to "
                f"{len(found) - 1}"
            )
    return [found[layer] for layer in dict.fromkeys(layers or range(len(found)))]


def _print(moments: SavedMoments) -> None:
    """Print a row for each site; one is in memory at a time."""
    from mmedit.editors.closed_form.moments import ENOUGH

    table = Table(box=None, pad_edge=False)
    for heading in HEADINGS:
        left = heading in (HEADINGS[0], HEADINGS[-1])
        table.add_column(heading, justify="left" if left else "right", overflow="fold")
    counts = ""
    for site in moments:
        one = moments[site]
        table.add_row(site, *_cells(one))
        counts = f"{one.text_count:,} text tokens and {one.image_count:,} image tokens"
    out.print(table)
    say(f"from {counts}, balanced: half of the mean of each")
    say(
        "tr C/in: mean square of an input. rank: (tr C)^2 / tr C^2, directions that share the "
        f"trace. null space: directions with {ETA:g} of the balanced trace, up to {WIDEST:,} inputs"
    )
    say(
        f"enough: kinds of tokens with {ENOUGH} or more for each input; of fewer, editors shrink "
        "C or refuse it"
    )


def _cells(one: SecondMoments) -> Iterator[str]:
    """Yield the cells of a site after its name."""
    from mmedit.editors.closed_form.moments import Tokens, effective_rank, spare_directions

    seen = {kind: one.mean(kind) if one.count(kind) else None for kind in ("text", "image")}
    yield f"{one.width:,}"
    for mean in seen.values():
        yield NOTHING if mean is None else f"{mean.diagonal().mean():.3g}"
    for mean in seen.values():
        yield NOTHING if mean is None else f"{effective_rank(mean):.1f}"
    narrow = one.width <= WIDEST
    yield f"{spare_directions(one.mean('balanced'), ETA):,}" if narrow else NOTHING
    yield ", ".join(kind for kind in get_args(Tokens) if one.is_enough(kind)) or NOTHING
