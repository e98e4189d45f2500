"""The files made of a trace's records: table, plots and page."""

from __future__ import annotations

from pathlib import Path

from mmedit.storage import write_atomically
from mmedit.trace.captions import notes_of, title_of
from mmedit.trace.page import write_page
from mmedit.trace.plots import write_plots
from mmedit.trace.summary import Trace

CSV, TABLE = "trace.csv", "trace.md"


def image_file(number: int) -> str:
    """Return the name of the small copy of an item's image, by the item's place in the manifest."""
    return f"images/{number:04}.webp"


def write_outputs(trace: Trace, folder: Path) -> list[Path]:
    """Write table, plots and page of a trace into its folder; return their paths."""
    write_atomically(folder / CSV, trace.table().to_csv(index=False).encode())
    write_atomically(folder / TABLE, markdown(trace).encode())
    images = {
        name: file
        for number, name in enumerate(trace.manifest.items)
        if (file := folder / image_file(number)).is_file()
    }
    plots = write_plots(trace, folder)
    return [folder / CSV, folder / TABLE, *plots, write_page(trace, folder, images)]


def markdown(trace: Trace) -> str:
    """Return the best layer of each group and component, as a table with notes."""
    lines = [
        f"# {title_of(trace)}",
        "",
        "| component | group | n | best layer | recovery rate | 95 % interval | TE | IE "
        "| layer of one half | recovery rate in the other |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in trace.best():
        layer = "–" if one.layer is None else one.layer
        lines.append(
            f"| {one.component} | {one.group} | {one.n} | {layer} | {one.rate:.2f} | {one.ends} "
            f"| {one.total_effect:.3f} | {one.effect:.3f} "
            f"| {one.halves.layer if one.halves else '–'} | {one.halves or '–'} |"
        )
    return "\n".join([*lines, "", *(f"- {note}" for note in notes_of(trace))]) + "\n"
