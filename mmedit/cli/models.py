"""What there is by name, and models from original files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from mmedit.cli.console import app, err, out
from mmedit.errors import UnknownNameError

if TYPE_CHECKING:
    from mmedit.catalog import Kind
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

if TYPE_CHECKING:  # adapters import torch, and `mmedit table` does without
    from mmedit.adapters.base import Adapter, Stage


@app.command("ls")
def list_names(
    what: Annotated[str, typer.Argument(help="editors, vlms, datasets or tables")],
) -> None:
    """List what there is by name."""
    from mmedit.catalog import describe

    kinds: dict[str, Kind] = {
        "editors": "editor",
        "vlms": "vlm",
        "datasets": "dataset",
        "tables": "table",
    }
    if what not in kinds:
        raise UnknownNameError("list", what, kinds)
    if what == "vlms":
        from mmedit.adapters import ADAPTERS
        from mmedit.config import named_vlms

        sites = {name: file.sites for name, file in named_vlms().items()}
        out.print(vlms_view(describe("vlm"), sites, ADAPTERS))
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("name", style="bold")
    table.add_column("what it is")
    for name, text in describe(kinds[what]):
        table.add_row(name, text)
    out.print(table)


@app.command("convert")
def convert_files(
    family: Annotated[str, typer.Argument(help="blip2 or minigpt4")],
    vision: Annotated[
        str, typer.Option(help="eva_vit_g.pth, or timm:NAME, or open_clip:ARCH/WEIGHTS.")
    ],
    language: Annotated[str, typer.Option(help="A transformers model folder, or a hub id.")],
    out_folder: Annotated[Path, typer.Option("--out", help="The VLM's folder, made anew.")],
    qformer: Annotated[str | None, typer.Option(help="LAVIS' blip2_pretrained_*.pth.")] = None,
    projection: Annotated[
        str | None, typer.Option(help="MiniGPT-4's pretrained_minigpt4*.pth.")
    ] = None,
    image_size: Annotated[
        int, typer.Option(min=1, help="Pixels a side; positions are interpolated.")
    ] = 364,
    vision_heads: Annotated[int | None, typer.Option(help="If the tower is not EVA-g.")] = None,
    vision_layers: Annotated[int | None, typer.Option(help="If the tower is not EVA-g.")] = None,
    qformer_heads: Annotated[int | None, typer.Option(help="If it is not 768 wide.")] = None,
    format: Annotated[
        str | None, typer.Option("--format", help="Of MiniGPT-4's prompts: vicuna or llama2.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Of what is written; the language model's by default.")
    ] = None,
    drop: Annotated[
        list[str] | None, typer.Option(help="Leave out tensors of this name or pattern.")
    ] = None,
) -> None:
    """Make a model folder from the original files of BLIP-2 or MiniGPT-4 (docs/converting.md)."""
    import transformers

    from mmedit.convert.conversion import Options, convert
    from mmedit.convert.parts import Sources

    transformers.utils.logging.disable_progress_bar()
    with err.status("converting"):
        done = convert(
            family,
            Sources(vision=vision, language=language, qformer=qformer, projection=projection),
            out_folder,
            Options(
                image_size=image_size,
                vision_heads=vision_heads,
                vision_layers=vision_layers,
                qformer_heads=qformer_heads,
                format=format,
                dtype=dtype,
                drop=tuple(drop or ()),
            ),
        )
    for part in done.accounts:
        dropped = f", {len(part.dropped)} dropped" if part.dropped else ""
        out.print(escape(f"{part.role} {part.source}: {part.used} tensors used{dropped}"))
    for name, reason in done.filled.items():
        out.print(escape(f"in no source: {name}: {reason}"))
    out.print(
        f"{done.model_type} in {done.dtype}, {image_size} pixels -> {out_folder}/ (conversion.json)"
    )
    out.print(f"next: mmedit bench --vlm {out_folder} --editor ft --limit 10 --out runs/x")


def vlms_view(
    described: Sequence[tuple[str, str]],
    sites: Mapping[str, Mapping[Stage, tuple[str, ...]]],
    adapters: Mapping[str, type[Adapter]],
) -> RenderableType:
    """Every named VLM with its edit sites by stage, then the families that any folder may be of."""
    named: list[RenderableType] = []
    for name, text in described:
        named.append(f"[bold]{name}[/]  {escape(text)}")
        for stage, patterns in sites[name].items():
            named += [Text(f"  {stage:8}  {pattern}", style="dim") for pattern in patterns]
    families = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("adapter", "model type in config.json"):
        families.add_column(heading)
    for name, adapter in adapters.items():
        types = ", ".join(adapter.model_types) or "any other that transformers knows, with a "
        families.add_row(f"[bold]{name}", types + ("" if adapter.model_types else "chat template"))
    return Group(*named, Text("\nAny folder or hub id of these families works too:\n"), families)
