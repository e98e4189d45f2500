"""The files written about a run: its tables, and the report page with the dataset's images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mmedit.cases import EditCase, image_name
from mmedit.config import read_cases
from mmedit.config_files import Block
from mmedit.errors import MmeditError
from mmedit.processes import is_main_process
from mmedit.records.schema import Record, RunManifest
from mmedit.records.store import read_run
from mmedit.report.papers import load_published
from mmedit.report.published import Comparison, compare_with_published
from mmedit.report.render import render
from mmedit.report.render.page import EXAMPLES, write_report
from mmedit.report.runs import Origin
from mmedit.settings import Overrides
from mmedit.storage import write_atomically

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class BlockResult:
    """Measurements of one run."""

    name: str
    title: str
    folder: Path
    records: Sequence[Record]
    manifest: RunManifest
    table: pandas.DataFrame
    """The method table: a row per editor."""
    comparison: Comparison | None
    """The published values of the same methods, if the block names a published table."""


def report_run(folder: Path, *, examples: int = EXAMPLES) -> tuple[Path, str]:
    """Write `report.html` of a finished run from its records, without a model.

    `examples` is the number of edits shown with their images. Returns the path, and why the page
    has no images ("" if it has them). Raises DataError for a folder without records.
    """
    records, manifest = read_run(folder)
    try:
        cases, reason = _pictured_cases(manifest, examples), ""
    except MmeditError as error:
        cases, reason = [], str(error)
    title = folder.resolve().name
    return write_page(folder, records, manifest, cases, title=title, examples=examples), reason


def write_page(
    folder: Path,
    records: Sequence[Record],
    manifest: RunManifest,
    cases: Sequence[EditCase],
    *,
    title: str,
    examples: int = EXAMPLES,
) -> Path:
    """Write `report.html` of a run, with the images of the first cases; returns its path."""
    return write_report(
        folder,
        records,
        images=save_images(cases[:examples], folder / "images"),
        title=title,
        examples=examples,
        manifest=manifest,
    )


def save_images(cases: Sequence[EditCase], folder: Path) -> dict[str, Path]:
    """Return a file for every image of the cases, by the image's name in records.

    Images made in memory are written to `folder` as PNG.
    """
    files: dict[str, Path] = {}
    for example in (e for case in cases for asked in case.probes.values() for e in asked):
        name = image_name(example)
        if name is None or example.image is None:
            continue
        if isinstance(example.image, Path):
            files[name] = example.image
        else:
            folder.mkdir(parents=True, exist_ok=True)
            files[name] = folder / f"{name}.png"
            example.image.save(files[name])
    return files


def _pictured_cases(manifest: RunManifest, number: int) -> Sequence[EditCase]:
    """Read the first cases of a run's dataset again."""
    written = manifest.run.overrides
    overrides = Overrides.parse(text for text in written if text.startswith("dataset."))
    limit = max(1, min(manifest.limit or number, number))
    settings = overrides.of("dataset")
    split = manifest.run.split
    return read_cases(manifest.dataset, split, settings, limit=limit, seed=manifest.seed)


def write_block(result: BlockResult, cases: Sequence[EditCase]) -> None:
    """Write `table.md`, `table.tex` and `report.html` beside the records of a run."""
    if not is_main_process():
        return
    for name, format in (("table.md", "md"), ("table.tex", "latex")):
        content = render(result.table, format)
        write_atomically(result.folder / name, content.encode())
    write_page(result.folder, result.records, result.manifest, cases, title=result.title)


def write_suite_table(folder: Path, results: Sequence[BlockResult]) -> None:
    """Write the tables of all runs, with published values beside, to `table.md` in `folder`."""
    if is_main_process():
        sections = [f"## {r.title}\n\n{render(r.table, 'md', r.comparison)}" for r in results]
        write_atomically(folder / "table.md", "\n".join(sections).encode())


def comparison_of(
    block: Block, table: pandas.DataFrame, origins: Mapping[str, Origin]
) -> Comparison | None:
    """Return the values that the published table of a block has beside the measured ones."""
    if block.published is None:
        return None
    return compare_with_published(
        table,
        load_published(block.published),
        origins,
        model=block.published_model,
        dataset=block.published_dataset,
    )
