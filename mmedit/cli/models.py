"""The lists of `mmedit ls`, and VLMs made from original checkpoint files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mmedit.catalog import CONVERTED, FAMILIES, LISTS, describe, edit_sites
from mmedit.cli.console import app, either, err, examples, folder, one_of, out, say
from mmedit.cli.progress import show_status

if TYPE_CHECKING:
    from mmedit.convert.account import Conversion


@app.command("ls", epilog=examples("mmedit ls", "mmedit ls vlms"))
def list_names(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="LIST",
            help=f"{either(tuple(LISTS))}.",
            show_default="all lists",
            callback=one_of("list", tuple(LISTS)),
            autocompletion=lambda: list(LISTS),
        ),
    ] = None,
) -> None:
    """List the available editors, VLMs, datasets and tables."""
    for place, name in enumerate([what] if what else LISTS):
        described = describe(LISTS[name])
        if what is None:
            out.print(Text(f"\n{name}" if place else name, style="underline"))
        if what == "vlms":
            out.print(vlms_view(described, {vlm: edit_sites(vlm) for vlm, _ in described}))
        elif what == "editors":
            out.print(editors_view(described))
        else:
            out.print(names_view(described))


FamilyArgument = Annotated[
    str,
    typer.Argument(
        metavar="FAMILY",
        help=f"{either(CONVERTED)}.",
        callback=one_of("family to convert", CONVERTED),
    ),
]
Pixels = Annotated[
    int,
    typer.Option(min=1, metavar="N", help="Pixels on each side; positions are interpolated."),
]
Number = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Only for a vision tower other than EVA-g.")
]
DropOption = Annotated[
    list[str] | None,
    typer.Option(metavar="PATTERN", help="Leave out tensors of this name (repeatable)."),
]


@app.command(
    "convert",
    epilog=examples(
        "mmedit convert blip2 --vision eva_vit_g.pth --qformer blip2_pretrained_opt2.7b.pth \\",
        "  --language facebook/opt-2.7b --out models/blip2-opt-2.7b",
    ),
)
def convert_files(
    family: FamilyArgument,
    vision: Annotated[
        str,
        typer.Option(metavar="FILE", help="eva_vit_g.pth, timm:NAME or open_clip:ARCH/WEIGHTS."),
    ],
    language: Annotated[
        str, typer.Option(metavar="NAME", help="A transformers model folder, or a hub id.")
    ],
    out_folder: Annotated[
        Path, typer.Option("--out", parser=folder, metavar="DIR", help="New folder for the VLM.")
    ],
    qformer: Annotated[
        str | None, typer.Option(metavar="FILE", help="The blip2_pretrained_*.pth of LAVIS.")
    ] = None,
    projection: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="The pretrained_minigpt4*.pth of MiniGPT-4."),
    ] = None,
    image_size: Pixels = 364,
    vision_heads: Number = None,
    vision_layers: Number = None,
    qformer_heads: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Only for a Q-Former that is not 768 wide."),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option("--format", help="Format of MiniGPT-4's prompts: vicuna or llama2."),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="Number format of the new weights.", show_default="the language model's"),
    ] = None,
    drop: DropOption = None,
) -> None:
    """Make a model folder from original files of BLIP-2 or MiniGPT-4.

    docs/converting.md says where the files come from.
    """
    import transformers

    from mmedit.convert.conversion import Options, convert
    from mmedit.convert.parts import Sources

    transformers.utils.logging.disable_progress_bar()
    sources = Sources(vision=vision, language=language, qformer=qformer, projection=projection)
    options = Options(
        image_size=image_size,
        vision_heads=vision_heads,
        vision_layers=vision_layers,
        qformer_heads=qformer_heads,
        format=format,
        dtype=dtype,
        drop=tuple(drop or ()),
    )
    with show_status(err, "converting"):
        done = convert(family, sources, out_folder, options)
    _print_conversion(done, out_folder, image_size)


def _print_conversion(done: Conversion, folder: Path, image_size: int) -> None:
    for part in done.accounts:
        dropped = f", {len(part.dropped)} dropped" if part.dropped else ""
        say(f"{part.role} {part.source}: {part.used} tensors used{dropped}")
    for name, reason in done.filled.items():
        say(f"in no source: {name}: {reason}")
    say(f"{done.model_type} in {done.dtype}, {image_size} pixels -> {folder}/ (conversion.json)")
    say(f"next: mmedit bench --vlm {folder} --editor ft --limit 10 --out runs/x")


def names_view(described: Sequence[tuple[str, str]]) -> RenderableType:
    """Make a table of names with their descriptions."""
    table = Table(box=None, pad_edge=False)
    table.add_column("name", style="bold", no_wrap=True)
    table.add_column("description")
    for name, text in described:
        table.add_row(Text(name), Text(text))
    return table


def editors_view(described: Sequence[tuple[str, str]]) -> RenderableType:
    """Make a list of the named editors: paper, what an edit changes, what is learnt before."""
    from mmedit.config_files import read_editor

    lines: list[RenderableType] = []
    for name, text in described:
        file = read_editor(name)
        lines.append(Text.assemble((name, "bold"), f"  {text}"))
        said = (("", file.paper), ("edits ", file.edits), ("learns ", file.learns))
        about = "; ".join(f"{verb}{what}" for verb, what in said if what)
        lines.append(Text(f"  {about}", style="dim"))
    return Group(*lines)


def vlms_view(
    described: Sequence[tuple[str, str]], sites: Mapping[str, Mapping[str, Sequence[str]]]
) -> RenderableType:
    """Make a list of the named VLMs with their edit sites by stage, and of all model families."""
    named: list[RenderableType] = []
    for name, text in described:
        named.append(Text.assemble((name, "bold"), f"  {text}"))
        for stage, patterns in sites[name].items():
            named += [Text(f"  {stage:8}  {pattern}", style="dim") for pattern in patterns]
    families = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("adapter", "model type in config.json"):
        families.add_column(heading)
    for adapter, types in FAMILIES.items():
        shown = ", ".join(types) or "any other that transformers knows, with a chat template"
        families.add_row(Text(adapter, style="bold"), shown)
    return Group(*named, Text("\nA folder or hub id of these families works too:\n"), families)
