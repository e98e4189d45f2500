"""The settings of an editor: what each means, and its value for a VLM."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic import BaseModel
from rich.markup import escape
from rich.table import Table

from mmedit.catalog import require_known
from mmedit.cli.console import VlmOption, app, examples, out, say

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from mmedit.editors.base import Editor

show = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Show the settings of an editor."
)
app.add_typer(show, name="show")


@show.command(
    "editor",
    epilog=examples("mmedit show editor mend", "mmedit show editor ft --vlm blip2-opt-2.7b"),
)
def show_editor(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name of `mmedit ls editors`.")],
    vlm: VlmOption = "embedded",
) -> None:
    """Show every setting of an editor: its meaning, its default and its value for a VLM.

    Also shows the method's paper, whether it must be fitted, and measured times.
    """
    from mmedit.config import load_editor

    require_known("editor", name)
    require_known("vlm", vlm)
    editor = load_editor(name, vlm)
    out.print(f"[bold]{escape(editor.label)}[/] ({editor.method})")
    say(f"{_about(editor)}\nPaper: {editor.paper}")
    fitted = " It is already fitted." if editor.is_fitted else ""
    needs = (
        f"It must be fitted before it edits: mmedit fit --editor {name} --vlm {vlm} --out "
        f"editors/{name}; mmedit bench fits it too.{fitted}"
    )
    say(needs if editor.needs_fit else "It needs no fitting.")
    say(_costs(editor.label, vlm))
    out.print(_settings_view(editor, vlm))
    say(f"Change a setting: --set editor.KEY=VALUE, or --set {name}.KEY=VALUE for it alone.")


def _about(editor: Editor) -> str:
    """Return the first paragraph of the method's module, which names its paper."""
    text = inspect.getdoc(inspect.getmodule(type(editor))) or ""
    return " ".join(text.split("\n\n")[0].split())


def _settings_view(editor: Editor, vlm: str) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("setting", style="bold", no_wrap=True)
    table.add_column("default", overflow="fold")
    table.add_column(f"for {escape(vlm)}", overflow="fold")
    table.add_column("meaning", ratio=1)
    values = editor.config.model_dump(mode="json")
    for key, field, default in _fields(type(editor.config)):
        value = _at(values, key)
        changed = escape(_text(value)) if value != default else "[dim]the default[/]"
        meaning = " ".join((field.description or "").split())
        choices = _choices(field.annotation)
        table.add_row(key, escape(_text(default)), changed, escape(f"{meaning}{choices}"))
    return table


def _fields(
    model: type[BaseModel], prefix: str = "", default: Any = None
) -> Iterator[tuple[str, FieldInfo, Any]]:
    """Yield every setting by its dotted key, with its default as plain JSON."""
    usual = default if default is not None else model.model_construct()
    for name, field in model.model_fields.items():
        value = getattr(usual, name)
        if isinstance(value, BaseModel):
            yield from _fields(type(value), f"{prefix}{name}.", value)
        else:
            yield f"{prefix}{name}", field, list(value) if isinstance(value, tuple) else value


def _at(values: Mapping[str, Any], key: str) -> Any:
    for part in key.split("."):
        values = values[part]
    return values


def _text(value: object) -> str:
    if isinstance(value, list):
        return "\n".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _choices(annotation: Any) -> str:
    """Return the values that a setting may have, if they are few."""
    if get_origin(annotation) is Literal:
        return f" One of: {', '.join(map(str, get_args(annotation)))}."
    return ""


def _costs(label: str, vlm: str) -> str:
    """Return the times and the memory of an earlier run of this editor on this VLM, if there is
    one in `results/`.
    """
    from mmedit.errors import MmeditError
    from mmedit.records.store import RECORDS, read_manifest, read_records
    from mmedit.storage import config_folder

    for file in sorted((config_folder().parent / "results").glob(f"*/{RECORDS}")):
        try:
            manifest = read_manifest(file.parent)
            if manifest.vlm != vlm or label not in manifest.editors:
                continue
            records = [r for r in read_records(file) if r.editor == label]
        except MmeditError:
            continue
        if not records or manifest.run.mode["kind"] != "independent":
            continue
        seconds = median(record.seconds for record in records)
        memory = max(record.peak_memory_bytes for record in records) / 2**30
        training = manifest.training_seconds.get(label)
        fitting = f"fitting took {training:.0f} s, " if training else ""
        return (
            f"Measured on {manifest.dataset} (results/{file.parent.name}): {fitting}an edit "
            f"{seconds:.2g} s; the process used up to {memory:.1f} GiB."
        )
    return (
        "Time and memory were not measured with this VLM. Measure them: mmedit bench --vlm "
        f"{vlm} --editor ... --limit 2 --out runs/try (s/edit and memory are in the table)."
    )
